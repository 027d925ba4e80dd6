package example.ister;

import java.time.Duration;
import java.util.Optional;

/** What a producer may be told. Immutable: every method returns another. */
public final class ProducerOptions {
  private static final ProducerOptions DEFAULTS =
      new ProducerOptions(null, 64 << 10, Duration.ofMillis(1), 0, null);

  private final String name;
  private final int batchBytes;
  private final Duration linger;
  private final long windowBytes;
  private final Duration timeout;

  private ProducerOptions(
      String name, int batchBytes, Duration linger, long windowBytes, Duration timeout) {
    this.name = name;
    this.batchBytes = batchBytes;
    this.linger = linger;
    this.windowBytes = windowBytes;
    this.timeout = timeout;
  }

  /** No name, batches of 64 KiB or a millisecond, and the window that the broker allows. */
  public static ProducerOptions defaults() {
    return DEFAULTS;
  }

  /** The same producer over restarts of the program; a second one of that name fences the first. */
  public ProducerOptions name(String told) {
    return new ProducerOptions(told, batchBytes, linger, windowBytes, timeout);
  }

  /** Messages gather until there are so many bytes, or the batch before them is answered. */
  public ProducerOptions batchBytes(int most) {
    return new ProducerOptions(name, Math.max(1, most), linger, windowBytes, timeout);
  }

  /** Messages gather no longer than this. */
  public ProducerOptions linger(Duration most) {
    return new ProducerOptions(name, batchBytes, most, windowBytes, timeout);
  }

  /** At most so many bytes are without a receipt. */
  public ProducerOptions windowBytes(long most) {
    return new ProducerOptions(name, batchBytes, linger, Math.max(0, most), timeout);
  }

  /** How long it may take to open it, and a send may wait for room in the window. */
  public ProducerOptions timeout(Duration most) {
    return new ProducerOptions(name, batchBytes, linger, windowBytes, most);
  }

  Optional<String> name() {
    return Optional.ofNullable(name);
  }

  int batchBytes() {
    return batchBytes;
  }

  Duration linger() {
    return linger;
  }

  long windowBytes() {
    return windowBytes;
  }

  Optional<Duration> timeout() {
    return Optional.ofNullable(timeout);
  }
}

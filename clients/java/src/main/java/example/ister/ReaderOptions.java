package example.ister;

import java.time.Duration;
import java.util.Map;
import java.util.Optional;
import java.util.UUID;

/** What a reader may be told. Immutable: every method returns another. */
public final class ReaderOptions {
  private static final ReaderOptions DEFAULTS = new ReaderOptions(Start.earliest(), 0, null);

  private final Start start;
  private final int credit;
  private final Duration timeout;

  private ReaderOptions(Start start, int credit, Duration timeout) {
    this.start = start;
    this.credit = credit;
    this.timeout = timeout;
  }

  /** From the earliest message on, with credit that follows the program's pace. */
  public static ReaderOptions defaults() {
    return DEFAULTS;
  }

  /** Where it begins. */
  public ReaderOptions start(Start place) {
    return new ReaderOptions(place, credit, timeout);
  }

  /** A fixed number of messages that may wait here. */
  public ReaderOptions creditMessages(int most) {
    return new ReaderOptions(start, Math.max(0, most), timeout);
  }

  /** How long it may take to open it. */
  public ReaderOptions timeout(Duration most) {
    return new ReaderOptions(start, credit, most);
  }

  Optional<Duration> timeout() {
    return Optional.ofNullable(timeout);
  }

  Attachment.Wanted wanted(String topic) {
    String name = "reader-" + UUID.randomUUID();
    return new Attachment.Wanted(
        topic, name, "reader", start.value(), 0, false, Map.of(), false, credit);
  }
}

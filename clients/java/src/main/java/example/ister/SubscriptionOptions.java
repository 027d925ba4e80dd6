package example.ister;

import java.time.Duration;
import java.util.Map;

/**
 * What a subscription is like: PROTOCOL.md, section 10.4. Immutable: every method returns another.
 */
public final class SubscriptionOptions extends Options<SubscriptionOptions> {
  private static final SubscriptionOptions NONE = new SubscriptionOptions(Map.of());

  private SubscriptionOptions(Map<String, Object> arguments) {
    super(arguments);
  }

  /** The broker's defaults. */
  public static SubscriptionOptions none() {
    return NONE;
  }

  @Override
  SubscriptionOptions made(Map<String, Object> all) {
    return new SubscriptionOptions(all);
  }

  /** What is not acknowledged so long is delivered again. */
  public SubscriptionOptions ackTimeout(Duration time) {
    return set("ack_timeout_ms", time);
  }

  /** The wait before a failed message is delivered again, doubling from one to the other. */
  public SubscriptionOptions backoff(Duration least, Duration most) {
    return set("backoff_ms_min", least).set("backoff_ms_max", most);
  }

  /** A message that failed so often is poison; 0 is never. */
  public SubscriptionOptions maxDeliveries(int times) {
    return set("max_deliveries", (Object) times);
  }

  /** What becomes of poison: {@code dead-letter}, {@code drop} or {@code block}. */
  public SubscriptionOptions poison(String what) {
    return set("poison", what);
  }

  /** Where dead letters go. */
  public SubscriptionOptions deadLetterTopic(String topic) {
    return set("dead_letter_topic", topic);
  }

  /** Of a non-reliable topic: how many messages, and bytes, may wait for consumers. */
  public SubscriptionOptions buffer(long messages, long bytes) {
    return set("buffer_messages_max", (Object) messages).set("buffer_bytes_max", (Object) bytes);
  }

  /** Of a non-reliable topic: what goes when that is full, {@code oldest} or {@code newest}. */
  public SubscriptionOptions drop(String which) {
    return set("drop", which);
  }

  /** Whether nothing is delivered. */
  public SubscriptionOptions paused(boolean paused) {
    return set("paused", paused ? 1 : 0);
  }
}

package example.ister;

import java.time.Duration;
import java.util.Map;

/** What a topic is like: PROTOCOL.md, section 10.1. Immutable: every method returns another. */
public final class TopicOptions extends Options<TopicOptions> {
  private static final TopicOptions NONE = new TopicOptions(Map.of());

  private TopicOptions(Map<String, Object> arguments) {
    super(arguments);
  }

  /**
   * A reliable topic that keeps everything until it is acknowledged by nobody's rule but its own.
   */
  public static TopicOptions none() {
    return NONE;
  }

  @Override
  TopicOptions made(Map<String, Object> all) {
    return new TopicOptions(all);
  }

  /** Nothing is stored: messages go to whoever listens. */
  public TopicOptions nonReliable() {
    return set("dispatch", "non-reliable");
  }

  /** When a receipt is given: {@code fsync} (the default), {@code os} or {@code cloud}. */
  public TopicOptions durability(String told) {
    return set("durability", told);
  }

  /** How long messages are kept. */
  public TopicOptions retention(Duration time) {
    return set("retention_ms", time);
  }

  /** How many bytes are kept. */
  public TopicOptions retentionBytes(long bytes) {
    return set("retention_bytes", (Object) bytes);
  }

  /** Whether only what some subscription has not acknowledged is kept. */
  public TopicOptions retentionAcknowledged(boolean only) {
    return set("retention_acknowledged", (Object) (only ? 1 : 0));
  }

  /** Whether it takes dead letters: patterns do not follow it. */
  public TopicOptions deadLetters(boolean takes) {
    return set("dead_letters", (Object) (takes ? 1 : 0));
  }

  /** What is older counts as acknowledged. */
  public TopicOptions messageTtl(Duration time) {
    return set("message_ttl_ms", time);
  }
}

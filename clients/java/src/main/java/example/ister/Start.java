package example.ister;

import java.time.Instant;

/**
 * A place in a topic: where a new subscription or a reader begins, or a subscription is moved to.
 */
public final class Start {
  private static final Start EARLIEST = new Start("earliest");
  private static final Start LATEST = new Start("latest");

  private final Object value;

  private Start(Object value) {
    this.value = value;
  }

  /** The first message that is kept. */
  public static Start earliest() {
    return EARLIEST;
  }

  /** Behind the last message. */
  public static Start latest() {
    return LATEST;
  }

  /** One message. */
  public static Start at(long offset) {
    if (offset < 0) {
      throw IsterException.invalid("an offset is 0 or more, not " + offset);
    }
    return new Start(offset);
  }

  /** The first message that the broker took at or after a time. */
  public static Start at(Instant time) {
    return new Start("time:" + Math.max(0, time.toEpochMilli()));
  }

  Object value() {
    return value;
  }

  @Override
  public String toString() {
    return value.toString();
  }
}

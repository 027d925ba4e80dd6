package example.ister;

import java.time.Duration;
import java.util.Optional;

/** What a consumer may be told. Immutable: every method returns another. */
public final class ConsumerOptions {
  private static final ConsumerOptions DEFAULTS =
      new ConsumerOptions(
          SubscriptionType.SHARED, null, 0, false, 0, false, SubscriptionOptions.none(), null);

  private final SubscriptionType type;
  private final Start start;
  private final int priority;
  private final boolean force;
  private final int credit;
  private final boolean waitForPlace;
  private final SubscriptionOptions subscription;
  private final Duration timeout;

  private ConsumerOptions(
      SubscriptionType type,
      Start start,
      int priority,
      boolean force,
      int credit,
      boolean waitForPlace,
      SubscriptionOptions subscription,
      Duration timeout) {
    this.type = type;
    this.start = start;
    this.priority = priority;
    this.force = force;
    this.credit = credit;
    this.waitForPlace = waitForPlace;
    this.subscription = subscription;
    this.timeout = timeout;
  }

  /**
   * A shared subscription that begins at the latest message, and credit that follows the program's
   * pace.
   */
  public static ConsumerOptions defaults() {
    return DEFAULTS;
  }

  /** How the consumers of the subscription share its messages. */
  public ConsumerOptions type(SubscriptionType told) {
    return new ConsumerOptions(
        told, start, priority, force, credit, waitForPlace, subscription, timeout);
  }

  /** Where the subscription begins if it is new. */
  public ConsumerOptions start(Start place) {
    return new ConsumerOptions(
        type, place, priority, force, credit, waitForPlace, subscription, timeout);
  }

  /** Of a failover subscription: lower is preferred. */
  public ConsumerOptions priority(int told) {
    return new ConsumerOptions(
        type, start, Math.max(0, told), force, credit, waitForPlace, subscription, timeout);
  }

  /** Takes an exclusive subscription over from whoever has it. */
  public ConsumerOptions force() {
    return new ConsumerOptions(
        SubscriptionType.EXCLUSIVE,
        start,
        priority,
        true,
        credit,
        waitForPlace,
        subscription,
        timeout);
  }

  /** A fixed number of messages that may wait here; by default it follows the program's pace. */
  public ConsumerOptions creditMessages(int most) {
    return new ConsumerOptions(
        type, start, priority, force, Math.max(0, most), waitForPlace, subscription, timeout);
  }

  /** Waits for an exclusive subscription that somebody has, as long as the time-out. */
  public ConsumerOptions waitForPlace() {
    return new ConsumerOptions(type, start, priority, force, credit, true, subscription, timeout);
  }

  /** What the subscription is like if it is new; one that is there must be like this. */
  public ConsumerOptions subscription(SubscriptionOptions options) {
    return new ConsumerOptions(
        type, start, priority, force, credit, waitForPlace, options, timeout);
  }

  /** How long it may take to open it. */
  public ConsumerOptions timeout(Duration most) {
    return new ConsumerOptions(
        type, start, priority, force, credit, waitForPlace, subscription, most);
  }

  Optional<Duration> timeout() {
    return Optional.ofNullable(timeout);
  }

  Attachment.Wanted wanted(String topic, String name) {
    return new Attachment.Wanted(
        topic,
        name,
        type.word(),
        start == null ? null : start.value(),
        priority,
        force,
        subscription.arguments(),
        waitForPlace,
        credit);
  }
}

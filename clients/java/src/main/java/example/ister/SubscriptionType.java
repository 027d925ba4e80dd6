package example.ister;

import java.util.Locale;

/** How the consumers of a subscription share its messages. */
public enum SubscriptionType {
  /** One consumer. */
  EXCLUSIVE,
  /** Any consumer; no order. */
  SHARED,
  /** Any number of consumers, of which one is active. */
  FAILOVER,
  /** A key belongs to one consumer at a time, and its messages come in order. */
  KEY_SHARED;

  /** The word of the protocol, like {@code key-shared}. */
  public String word() {
    return name().toLowerCase(Locale.ROOT).replace('_', '-');
  }

  /** The type that a word of the protocol names. */
  public static SubscriptionType of(String word) {
    for (SubscriptionType each : values()) {
      if (each.word().equals(word)) {
        return each;
      }
    }
    throw IsterException.invalid(
        "a subscription is exclusive, shared, failover or key-shared, not " + word);
  }
}

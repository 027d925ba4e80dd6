package example.ister;

import java.util.Locale;

/** What to do about an error. */
public enum Action {
  /** The same again, after a while. */
  RETRY,
  /** Something in the call is wrong: the same again gives the same error. */
  FIX,
  /** Trying again will not help. */
  STOP;

  /** The word of the protocol: {@code retry}, {@code fix} or {@code stop}. */
  public String word() {
    return name().toLowerCase(Locale.ROOT);
  }

  static Action of(String word) {
    return switch (word) {
      case "retry" -> RETRY;
      case "fix" -> FIX;
      default -> STOP;
    };
  }
}

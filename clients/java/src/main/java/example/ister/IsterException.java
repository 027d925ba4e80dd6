package example.ister;

/**
 * What a broker answered, or what happened on this side. The code is stable: programs may compare
 * it. The action says what to do.
 */
public sealed class IsterException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  private final String code;
  private final Action action;

  IsterException(String code, Action action, String text) {
    super(text);
    this.code = code;
    this.action = action;
  }

  IsterException(String code, Action action, String text, Throwable cause) {
    this(code, action, text);
    if (cause != null) {
      initCause(cause);
    }
  }

  /** A code of PROTOCOL.md, section 11, or one of those that the subclasses name. */
  public String code() {
    return code;
  }

  /** What to do: the same again later, mend the call, or give up. */
  public Action action() {
    return action;
  }

  @Override
  public String toString() {
    return "ister: " + code + ": " + getMessage();
  }

  /** The same error with a stack of the thread that is told. */
  IsterException again() {
    IsterException copy;
    if (this instanceof ConnectionLost) {
      copy = new ConnectionLost(getMessage());
    } else if (this instanceof Closed) {
      copy = new Closed(getMessage());
    } else if (this instanceof Refused) {
      copy = new Refused(code, action, getMessage());
    } else {
      copy = new IsterException(code, action, getMessage());
    }
    copy.initCause(this);
    return copy;
  }

  /** The broker refused it, or this client did before it asked: the code and the text say why. */
  public static final class Refused extends IsterException {
    private static final long serialVersionUID = 1L;

    Refused(String code, Action action, String text) {
      super(code, action, text);
    }
  }

  /** {@code connection-lost}: the broker cannot be reached, or lost what this was about. */
  public static final class ConnectionLost extends IsterException {
    private static final long serialVersionUID = 1L;

    ConnectionLost(String text) {
      super("connection-lost", Action.RETRY, text);
    }
  }

  /** {@code closed}: the client, producer or consumer was closed here. */
  public static final class Closed extends IsterException {
    private static final long serialVersionUID = 1L;

    Closed(String what) {
      super("closed", Action.STOP, what.endsWith(" is closed") ? what : what + " is closed");
    }
  }

  /** {@code timeout}: the time that a call was given is over. What it waited for goes on. */
  public static final class Timeout extends IsterException {
    private static final long serialVersionUID = 1L;

    Timeout(String text, Throwable cause) {
      super("timeout", Action.RETRY, text, cause);
    }
  }

  /**
   * {@code cancelled}: the thread was interrupted in a call that cannot throw {@link
   * InterruptedException}.
   */
  public static final class Interrupted extends IsterException {
    private static final long serialVersionUID = 1L;

    Interrupted(InterruptedException cause) {
      super("cancelled", Action.RETRY, "the thread was interrupted", cause);
    }
  }

  static IsterException malformed(String text) {
    return new IsterException("malformed", Action.STOP, text);
  }

  static IsterException invalid(String text) {
    return new Refused("invalid-argument", Action.FIX, text);
  }
}

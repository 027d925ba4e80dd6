package example.ister;

import java.util.List;

/**
 * A producer or a consumer, as its session sees it. Times are nanoseconds of any clock that does
 * not go back.
 */
interface Handle {
  long NEVER = Long.MAX_VALUE;

  long number();

  /** There is a session: open. */
  void onReady(Session session, boolean resumed, long now);

  /** The session's connection is gone, or the handle moves. */
  void onLost(IsterException reason);

  /** A frame about this handle that answers no question; throws where it breaks the protocol. */
  void onFrame(Header header, byte[][] body, long now);

  /** Does what is due. */
  void tick(long now);

  /** When {@link #tick} is wanted next. */
  long deadline();

  /** Whether it is over, and opens no more. */
  boolean isOver();

  /** What is to be said before CLOSE, if that is said over another connection. */
  List<Header> lastWords();

  /** It is over. */
  void fail(IsterException reason);
}

package example.ister;

import java.time.Duration;
import java.util.List;
import java.util.concurrent.locks.Condition;

/** Where a receiver's messages come from: one topic, or all that a pattern stands for. */
interface Source {
  /** What may be taken without the client's lock. */
  Handful current();

  /** The next message, or null; the program asks at now (lock held). */
  Message one(long now);

  /** The next messages that came together, or none (lock held). */
  List<Message> some(int most, long now);

  /** Throws what there is to tell (lock held). */
  void check();

  /** The topics it receives from, each with its conversation (lock held). */
  List<Feed> feeds();

  /** Whose message it is; null where its topic is gone (lock held). */
  Feed of(Message message);

  /** What the broker told besides messages since the last call (lock held). */
  List<Event> events();

  /** Signalled whenever there may be something new. */
  Condition changed();

  /** For error texts. */
  String what();

  String topic();

  String subscription();

  /** Closes it; throws {@link IsterException.Timeout} where that was not confirmed. */
  void close(Duration most);

  /** Ends it without waiting. */
  void abandon();
}

package example.ister;

import java.time.Duration;
import java.util.List;
import java.util.concurrent.locks.Condition;

/** The messages of one topic: an attachment, and who waits for it. */
final class Feed implements Source {
  final Attachment attachment;
  private final IsterClient client;
  private final Condition changed;

  /** Made under the client's lock. */
  Feed(IsterClient client, Attachment.Wanted wanted) {
    this(client, wanted, client.newCondition(), null);
  }

  /** One of many that signal the same; news is run with each that has some. */
  Feed(
      IsterClient client,
      Attachment.Wanted wanted,
      Condition changed,
      java.util.function.Consumer<Feed> news) {
    this.client = client;
    this.changed = changed;
    attachment =
        client.attach(
            number ->
                new Attachment(
                    number,
                    wanted,
                    () -> {
                      if (news != null) {
                        news.accept(this);
                      }
                      changed.signalAll();
                    }));
  }

  void awaitOpened(Duration most) throws InterruptedException {
    boolean done = false;
    try {
      client.until(
          changed,
          most,
          () ->
              "the %s of topic %s was not opened%s"
                  .formatted(what(), topic(), Producer.because(attachment.trouble())),
          now -> {
            if (attachment.error() != null) {
              throw attachment.error().again();
            }
            return attachment.opened() ? Boolean.TRUE : null;
          });
      done = true;
    } catch (IsterException.Timeout over) {
      throw busyOr(over);
    } finally {
      if (!done) {
        abandon();
      }
    }
  }

  /** That its place is taken says more than that the time is over. */
  IsterException busyOr(IsterException over) {
    IsterException trouble = attachment.trouble();
    return trouble != null && trouble.code().equals(Attachment.BUSY) ? trouble.again() : over;
  }

  @Override
  public String what() {
    return attachment.what();
  }

  @Override
  public String topic() {
    return attachment.wanted().topic();
  }

  @Override
  public String subscription() {
    return attachment.wanted().subscription();
  }

  @Override
  public Condition changed() {
    return changed;
  }

  @Override
  public List<Feed> feeds() {
    return List.of(this);
  }

  @Override
  public Feed of(Message message) {
    if (message.delivery().owner() != attachment) {
      throw IsterException.invalid("this message came from another consumer: acknowledge it there");
    }
    return this;
  }

  @Override
  public List<Event> events() {
    return attachment.takeEvents();
  }

  @Override
  public Handful current() {
    return attachment.handing.current();
  }

  @Override
  public Message one(long now) {
    attachment.handing.asked(now);
    Message found = attachment.handing.one();
    wakeIfToSay();
    return found;
  }

  @Override
  public List<Message> some(int most, long now) {
    attachment.handing.asked(now);
    List<Message> found = attachment.handing.some(most);
    wakeIfToSay();
    return found;
  }

  @Override
  public void check() {
    if (attachment.error() != null) {
      throw attachment.error().again();
    }
    IsterException told = attachment.takeComplaint();
    told = told == null ? attachment.takeDamage() : told;
    if (told != null) {
      throw told.again();
    } else if (attachment.phase() == Attachment.Phase.CLOSING) {
      throw new IsterException.Closed("the " + what());
    }
  }

  void wake() {
    client.connectionOf(attachment).wake();
  }

  void wakeIfToSay() {
    Connection at = client.connectionOf(attachment);
    if (at.session().hasSomethingToSay()) {
      at.wake();
    }
  }

  /** Acknowledges (lock held). */
  void ack(Message message) {
    if (attachment.ack(message)) {
      attachment.acks.dueAt(client.now() + Acknowledgments.DELAY);
      wake(); // later it looks by itself
    }
  }

  /** Whether the broker has written every acknowledgment; asks it (lock held). */
  boolean written() {
    if (!attachment.acks.settled()) {
      attachment.acks.flush(true);
      wake();
      return false;
    }
    return true;
  }

  /** Says CLOSE, if that loses nothing, and whether it is closed (lock held). */
  boolean leave() {
    // without a connection acknowledgments wait for the next one; with one, CLOSE carries them
    // along
    if (attachment.phase() == Attachment.Phase.OPEN || attachment.acks.settled()) {
      attachment.close();
      wake();
    }
    return attachment.phase() == Attachment.Phase.CLOSED;
  }

  @Override
  public void close(Duration most) {
    closeAll(client, this, most);
  }

  /** Closes every topic of a source. */
  static void closeAll(IsterClient client, Source source, Duration most) {
    try {
      client.until(
          source.changed(),
          most,
          () -> "the broker did not confirm the close of the " + source.what(),
          now -> {
            boolean all = true;
            for (Feed feed : source.feeds()) {
              all &= feed.leave();
            }
            return all ? Boolean.TRUE : null;
          });
    } catch (InterruptedException stopped) {
      Thread.currentThread().interrupt();
      throw new IsterException.Interrupted(stopped);
    } finally {
      source.abandon();
    }
  }

  @Override
  public void abandon() {
    client.lock();
    try {
      attachment.close();
      attachment.fail(new IsterException.Closed("the " + what()));
      client.detach(attachment);
    } finally {
      client.unlock();
    }
  }
}

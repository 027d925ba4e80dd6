package example.ister;

import java.time.Duration;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;
import java.util.concurrent.locks.Condition;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/** What consumers and readers have in common. Every method may be called from any thread. */
public abstract sealed class Receiver implements AutoCloseable, Iterable<Message>
    permits Consumer, Reader {
  final IsterClient client;
  final Attachment attachment;
  final Condition changed;

  /** Made under the client's lock. */
  Receiver(IsterClient client, Attachment.Wanted wanted) {
    this.client = client;
    changed = client.newCondition();
    attachment = client.attach(number -> new Attachment(number, wanted, changed::signalAll));
  }

  void awaitOpened(Duration most) throws InterruptedException {
    boolean done = false;
    try {
      client.until(
          changed,
          most,
          () ->
              "the %s of topic %s was not opened%s"
                  .formatted(attachment.what(), topic(), Producer.because(attachment.trouble())),
          now -> {
            if (attachment.error() != null) {
              throw attachment.error().again();
            }
            return attachment.opened() ? Boolean.TRUE : null;
          });
      done = true;
    } catch (IsterException.Timeout over) {
      IsterException trouble = attachment.trouble();
      if (trouble != null && trouble.code().equals(Attachment.BUSY)) {
        throw trouble.again();
      }
      throw over;
    } finally {
      if (!done) {
        abandon();
      }
    }
  }

  /** Whose messages it receives. */
  public String topic() {
    return attachment.wanted().topic();
  }

  /**
   * Where it stood when it was opened last. What lies below and is not acknowledged comes again.
   */
  public long position() {
    client.lock();
    try {
      return attachment.position();
    } finally {
      client.unlock();
    }
  }

  /**
   * What the broker told besides messages since the last call, oldest first; at most the last 256.
   */
  public List<Event> events() {
    client.lock();
    try {
      return attachment.takeEvents();
    } finally {
      client.unlock();
    }
  }

  /** The next message; waits for it for as long as it takes. */
  public Message receive() throws InterruptedException {
    Message ready = ready();
    return ready != null ? ready : take(1, null).get(0);
  }

  /** The next message, or none if the time is over. */
  public Optional<Message> receive(Duration most) throws InterruptedException {
    Message ready = ready();
    if (ready != null) {
      return Optional.of(ready);
    }
    List<Message> taken = receiveBatch(1, most);
    return taken.isEmpty() ? Optional.empty() : Optional.of(taken.get(0));
  }

  /** Messages that came together, at least one and at most so many; none if the time is over. */
  public List<Message> receiveBatch(int atMost, Duration most) throws InterruptedException {
    try {
      return take(Math.max(1, atMost), most);
    } catch (IsterException.Timeout over) {
      return List.of();
    }
  }

  /** The next message if there is one already. */
  private Message ready() throws InterruptedException {
    client.lockInterruptibly();
    try {
      if (!attachment.hasNext()) {
        return null;
      }
      Message taken = attachment.nextOne(client.now());
      wakeIfToSay();
      return taken;
    } finally {
      client.unlock();
    }
  }

  private List<Message> take(int atMost, Duration most) throws InterruptedException {
    return client.until(
        changed,
        most,
        () -> "no message from topic " + topic(),
        now -> {
          List<Message> taken = attachment.next(atMost, now);
          wakeIfToSay();
          if (!taken.isEmpty()) {
            return taken;
          }
          check();
          return null;
        });
  }

  /**
   * Messages, one after the other, for ever: until the receiver is closed here, which ends it, or
   * something fails, which is thrown. To interrupt the thread throws {@link
   * IsterException.Interrupted}.
   */
  @Override
  public Iterator<Message> iterator() {
    return new Iterator<>() {
      private Message next;

      @Override
      public boolean hasNext() {
        try {
          next = next == null ? receive() : next;
          return true;
        } catch (IsterException.Closed over) {
          return false;
        } catch (InterruptedException stopped) {
          Thread.currentThread().interrupt();
          throw new IsterException.Interrupted(stopped);
        }
      }

      @Override
      public Message next() {
        if (!hasNext()) {
          throw new NoSuchElementException("the " + attachment.what() + " is closed");
        }
        Message taken = next;
        next = null;
        return taken;
      }
    };
  }

  /** The same as a stream, in order. */
  public Stream<Message> stream() {
    return StreamSupport.stream(spliterator(), false);
  }

  /** Throws what there is to tell (lock held). */
  void check() {
    if (attachment.error() != null) {
      throw attachment.error().again();
    }
    IsterException complaint = attachment.takeComplaint();
    if (complaint != null) {
      throw complaint.again();
    } else if (attachment.phase() == Attachment.Phase.CLOSING) {
      throw new IsterException.Closed("the " + attachment.what());
    }
  }

  void wake() {
    client.connectionOf(attachment).wake();
  }

  private void wakeIfToSay() {
    Connection at = client.connectionOf(attachment);
    if (at.session().hasSomethingToSay()) {
      at.wake();
    }
  }

  /** Closes with the client's time-out. */
  @Override
  public void close() {
    close(client.timeout());
  }

  /** Sends the acknowledgments made so far and leaves. Closing again does nothing. */
  public void close(Duration most) {
    client.lock();
    try {
      if (attachment.phase() == Attachment.Phase.CLOSED || client.isClosed()) {
        client.forget(this);
        return;
      }
    } finally {
      client.unlock();
    }
    try {
      client.until(
          changed,
          most,
          () -> "the broker did not confirm the close of the " + attachment.what(),
          now -> {
            // without a connection, acknowledgments wait for the next one; with one, CLOSE carries
            // them along
            if (attachment.phase() == Attachment.Phase.OPEN || attachment.settled()) {
              attachment.close();
              wake();
            }
            return attachment.phase() == Attachment.Phase.CLOSED ? Boolean.TRUE : null;
          });
    } catch (InterruptedException stopped) {
      Thread.currentThread().interrupt();
      throw new IsterException.Interrupted(stopped);
    } finally {
      abandon();
    }
  }

  /** Ends it without waiting. */
  void abandon() {
    client.lock();
    try {
      attachment.close();
      attachment.fail(new IsterException.Closed("the " + attachment.what()));
      client.detach(attachment);
      client.forget(this);
    } finally {
      client.unlock();
    }
  }
}

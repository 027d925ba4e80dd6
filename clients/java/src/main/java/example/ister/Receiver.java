package example.ister;

import java.time.Duration;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/** What consumers and readers have in common. Every method may be called from any thread. */
public abstract sealed class Receiver implements AutoCloseable, Iterable<Message>
    permits Consumer, Reader {
  final IsterClient client;
  final Source source;

  Receiver(IsterClient client, Source source) {
    this.client = client;
    this.source = source;
  }

  /** Whose messages it receives; of a consumer of many topics, the pattern. */
  public String topic() {
    return source.topic();
  }

  /**
   * Where it stood when it was opened last. What lies below and is not acknowledged comes again. A
   * consumer of many topics stands nowhere: {@code invalid-argument}.
   */
  public long position() {
    return alone().position();
  }

  /** The conversation about its one topic. */
  Attachment alone() {
    if (source instanceof Feed feed) {
      return feed.attachment;
    }
    throw IsterException.invalid(
        "a consumer of many topics stands at no one offset: each message has its own");
  }

  /**
   * What the broker told besides messages since the last call, oldest first; at most the last 256.
   */
  public List<Event> events() {
    client.lock();
    try {
      return source.events();
    } finally {
      client.unlock();
    }
  }

  /**
   * How many messages non-reliable topics have dropped here, because this program was too slow, of
   * the topics that it receives from now.
   */
  public long dropped() {
    client.lock();
    try {
      return source.feeds().stream().mapToLong(feed -> feed.attachment.dropped()).sum();
    } finally {
      client.unlock();
    }
  }

  /** The next message; waits for it for as long as it takes. */
  public Message receive() throws InterruptedException {
    Message ready = ready();
    return ready != null ? ready : await(null);
  }

  /** The next message, or none if the time is over. */
  public Optional<Message> receive(Duration most) throws InterruptedException {
    Message ready = ready();
    try {
      return Optional.of(ready != null ? ready : await(most));
    } catch (IsterException.Timeout over) {
      return Optional.empty();
    }
  }

  /** Messages that came together, at least one and at most so many; none if the time is over. */
  public List<Message> receiveBatch(int atMost, Duration most) throws InterruptedException {
    int wanted = Math.max(1, atMost);
    try {
      return client.until(
          source.changed(),
          most,
          this::nothingCame,
          now -> {
            List<Message> taken = source.some(wanted, now);
            if (taken.isEmpty()) {
              source.check();
              return null;
            }
            return taken;
          });
    } catch (IsterException.Timeout over) {
      return List.of();
    }
  }

  /** A message of those that were handed to the program already; null where there is none. */
  private Message ready() throws InterruptedException {
    if (Thread.interrupted()) {
      throw new InterruptedException();
    }
    return source.current().take();
  }

  private Message await(Duration most) throws InterruptedException {
    return client.until(
        source.changed(),
        most,
        this::nothingCame,
        now -> {
          Message taken = source.one(now);
          if (taken == null) {
            source.check();
          }
          return taken;
        });
  }

  private String nothingCame() {
    return "no message from topic " + topic();
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
          throw new NoSuchElementException("the " + source.what() + " is closed");
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

  /** Closes with the client's time-out. */
  @Override
  public void close() {
    close(client.timeout());
  }

  /** Sends the acknowledgments made so far and leaves. Closing again does nothing. */
  public void close(Duration most) {
    client.lock();
    try {
      boolean over = !client.forget(this) || client.isClosed();
      if (over) {
        return;
      }
    } finally {
      client.unlock();
    }
    source.close(most);
  }

  /** Ends it without waiting. */
  void abandon() {
    client.lock();
    try {
      client.forget(this);
      source.abandon();
    } finally {
      client.unlock();
    }
  }
}

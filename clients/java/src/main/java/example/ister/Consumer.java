package example.ister;

import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.BiConsumer;

/**
 * Receives the messages of one subscription, or of the subscriptions of one name of many topics:
 * see {@link IsterClient#consumer(String, String, ConsumerOptions)}. What is said of messages of a
 * topic that was deleted meanwhile is passed over.
 */
public final class Consumer extends Receiver {
  Consumer(IsterClient client, Source source) {
    super(client, source);
  }

  /** Whose messages it receives. */
  public String subscription() {
    return source.subscription();
  }

  /** The topics that it receives from at present, by name. */
  public List<String> topics() {
    client.lock();
    try {
      return source.feeds().stream().map(Feed::topic).toList();
    } finally {
      client.unlock();
    }
  }

  /**
   * Whether this is the active consumer of a failover subscription; empty where the broker has not
   * said so, and of many topics, each of which has its own: see {@link #events}.
   */
  public Optional<Boolean> active() {
    client.lock();
    try {
      return source instanceof Feed feed
          ? Optional.ofNullable(feed.attachment.active())
          : Optional.empty();
    } finally {
      client.unlock();
    }
  }

  /**
   * Acknowledges a message: it is not delivered to this subscription again. Acknowledgments are
   * sent within a few milliseconds; {@link #flush} waits until they are written.
   */
  public void ack(Message message) {
    client.lock();
    try {
      Feed feed = source.of(message);
      if (feed != null) {
        feed.check();
        feed.ack(message);
      }
    } finally {
      client.unlock();
    }
  }

  /** Acknowledges messages, of whatever topics. */
  public void ack(List<Message> messages) {
    client.lock();
    try {
      check(messages);
      Delivery last = null;
      Feed feed = null;
      for (Message message : messages) {
        if (message.delivery() != last) {
          last = message.delivery();
          feed = source.of(message);
        }
        if (feed != null) {
          feed.ack(message);
        }
      }
    } finally {
      client.unlock();
    }
  }

  /**
   * Acknowledges everything up to and including a message: of the whole subscription (exclusive,
   * failover), or of what this consumer was given.
   */
  public void ackUntil(Message message) {
    ofEach(List.of(message), (feed, some) -> feed.attachment.acks.addUntil(message));
  }

  /** Gives a message back, to be delivered again after the subscription's back-off. */
  public void nack(Message message) {
    nack(List.of(message), null, "");
  }

  /**
   * Gives a message back, to be delivered again after a delay, zero means at once. The reason is
   * for people.
   */
  public void nack(Message message, Duration delay, String reason) {
    nack(List.of(message), delay, reason);
  }

  /**
   * Gives messages back; a delay of null is the subscription's back-off. The reason is for people.
   */
  public void nack(List<Message> messages, Duration delay, String reason) {
    ofEach(messages, (feed, some) -> feed.attachment.nack(some, delay, reason));
  }

  /** Says that a message is still being worked on: its acknowledgment timeout begins anew. */
  public void extend(Message message) {
    extend(List.of(message));
  }

  /** Says that messages are still being worked on. */
  public void extend(List<Message> messages) {
    ofEach(messages, (feed, some) -> feed.attachment.acks.sayOf(Wire.EXTEND, some, null, null));
  }

  /**
   * Says that the program has failed: what it has in hand, as a whole, has failed as by {@link
   * #nack(Message)}. For a program whose work ends by an error of its own; without it the messages
   * in hand are delivered again at once, and one that is always an error comes again for ever.
   */
  public void failed(String reason) {
    client.lock();
    try {
      for (Feed feed : source.feeds()) {
        feed.attachment.blame(reason);
        feed.wake();
      }
    } finally {
      client.unlock();
    }
  }

  /** Throws what there is to tell of the topics of messages (lock held). */
  private void check(List<Message> messages) {
    Delivery last = null;
    for (Message message : messages) {
      if (message.delivery() != last) {
        last = message.delivery();
        Feed feed = source.of(message);
        if (feed != null) {
          feed.check();
        }
      }
    }
  }

  private void ofEach(List<Message> messages, BiConsumer<Feed, List<Message>> what) {
    client.lock();
    try {
      check(messages);
      Map<Feed, List<Message>> parts = new LinkedHashMap<>();
      for (Message message : messages) {
        Feed feed = source.of(message);
        if (feed != null) {
          parts.computeIfAbsent(feed, own -> new ArrayList<>()).add(message);
        }
      }
      parts.forEach(
          (feed, some) -> {
            what.accept(feed, some);
            if (feed.attachment.acks.wantsDue()) {
              feed.attachment.acks.dueAt(client.now() + Acknowledgments.DELAY);
            }
            feed.wake();
          });
    } finally {
      client.unlock();
    }
  }

  /**
   * Waits until the broker has written every acknowledgment made so far, with the client's
   * time-out.
   */
  public void flush() throws InterruptedException {
    flush(client.timeout());
  }

  /**
   * Waits until the broker has written every acknowledgment made so far. {@link
   * IsterException.ConnectionLost} says that the broker forgot what it had delivered: those
   * messages are delivered again.
   */
  public void flush(Duration most) throws InterruptedException {
    client.until(
        source.changed(),
        most,
        () -> "acknowledgments of topic %s were not confirmed%s".formatted(topic(), trouble()),
        now -> {
          source.check();
          boolean written = true;
          for (Feed feed : source.feeds()) {
            if (feed.attachment.phase() != Attachment.Phase.CLOSED) {
              feed.check();
              written &= feed.written();
            }
          }
          if (!written) {
            return null;
          }
          boolean forgotten = false;
          for (Feed feed : source.feeds()) {
            forgotten |= feed.attachment.acks.takeForgotten();
          }
          if (forgotten) {
            throw new IsterException.ConnectionLost(
                "the broker forgot what some acknowledgments were about; it delivers those messages again");
          }
          return Boolean.TRUE;
        });
  }

  private String trouble() {
    for (Feed feed : source.feeds()) {
      if (feed.attachment.trouble() != null) {
        return Producer.because(feed.attachment.trouble());
      }
    }
    return "";
  }

  /**
   * Moves the whole subscription, with the client's time-out; returns the offset of the next
   * message.
   */
  public long seek(Start to) throws InterruptedException {
    return seek(to, client.timeout());
  }

  /**
   * Moves the whole subscription; returns the offset of the next message. Its other consumers are
   * told. Of a consumer of many topics each subscription is moved by {@link Admin#seek}.
   */
  public long seek(Start to, Duration most) throws InterruptedException {
    int begun;
    Attachment attachment = alone();
    client.lock();
    try {
      begun = attachment.begun();
      attachment.acks.flush(false);
      ((Feed) source).wake();
    } finally {
      client.unlock();
    }
    long end = client.now() + IsterClient.nanos(most);
    long position = client.admin(most).seek(topic(), subscription(), to);
    client.until(
        source.changed(),
        Duration.ofNanos(Math.max(0, end - client.now())),
        () -> "the news of the move of %s has not come".formatted(subscription()),
        now -> {
          if (attachment.error() != null) {
            throw attachment.error().again();
          }
          boolean told = attachment.begun() != begun || attachment.phase() != Attachment.Phase.OPEN;
          return told || attachment.standby() ? Boolean.TRUE : null;
        });
    return position;
  }
}

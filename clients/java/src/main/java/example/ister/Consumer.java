package example.ister;

import java.time.Duration;
import java.util.List;

/** Receives the messages of one subscription. */
public final class Consumer extends Receiver {
  Consumer(IsterClient client, Attachment.Wanted wanted) {
    super(client, wanted);
  }

  /** Whose messages it receives. */
  public String subscription() {
    return attachment.wanted().subscription();
  }

  /**
   * Acknowledges a message: it is not delivered to this subscription again. Acknowledgments are
   * sent within a few milliseconds; {@link #flush} waits until they are written.
   */
  public void ack(Message message) {
    own(message);
    client.lock();
    try {
      check();
      boolean waited = attachment.ackIsDue();
      attachment.ack(message, client.now());
      if (!waited) {
        wake(); // else it looks by itself when they are due
      }
    } finally {
      client.unlock();
    }
  }

  /** Acknowledges messages. */
  public void ack(List<Message> messages) {
    own(messages);
    client.lock();
    try {
      check();
      boolean waited = attachment.ackIsDue();
      long now = client.now();
      for (Message message : messages) {
        attachment.ack(message, now);
      }
      if (!waited) {
        wake(); // else it looks by itself when they are due
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
    own(message);
    doing(() -> attachment.ackUntil(message, client.now()));
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
    own(messages);
    Long delayMs = delay == null ? null : Math.max(0, delay.toMillis());
    int[] letters = reason.codePoints().limit(Wire.REASON_CHARACTERS_MAX).toArray();
    String told = letters.length == 0 ? null : new String(letters, 0, letters.length);
    doing(() -> attachment.nack(messages, delayMs, told));
  }

  /** Says that a message is still being worked on: its acknowledgment timeout begins anew. */
  public void extend(Message message) {
    extend(List.of(message));
  }

  /** Says that messages are still being worked on. */
  public void extend(List<Message> messages) {
    own(messages);
    doing(() -> attachment.extend(messages));
  }

  private void own(List<Message> messages) {
    messages.forEach(this::own);
  }

  private void own(Message message) {
    if (message.owner() != attachment) {
      throw IsterException.invalid("this message came from another consumer: acknowledge it there");
    }
  }

  private void doing(Runnable what) {
    client.lock();
    try {
      check();
      what.run();
      wake();
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
        changed,
        most,
        () ->
            "acknowledgments of topic %s were not confirmed%s"
                .formatted(topic(), Producer.because(attachment.trouble())),
        now -> {
          check();
          if (!attachment.settled()) {
            attachment.flush(true);
            wake();
            return null;
          } else if (attachment.takeForgotten()) {
            throw new IsterException.ConnectionLost(
                "the broker forgot what some acknowledgments were about; it delivers those messages again");
          }
          return Boolean.TRUE;
        });
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
   * told.
   */
  public long seek(Start to, Duration most) throws InterruptedException {
    int epoch;
    client.lock();
    try {
      epoch = attachment.epoch();
      attachment.flush(false);
      wake();
    } finally {
      client.unlock();
    }
    long end = client.now() + IsterClient.nanos(most);
    long position = client.admin(most).seek(topic(), subscription(), to);
    client.until(
        changed,
        Duration.ofNanos(Math.max(0, end - client.now())),
        () -> "the news of the move of %s has not come".formatted(subscription()),
        now -> {
          if (attachment.error() != null) {
            throw attachment.error().again();
          }
          boolean told = attachment.epoch() != epoch || attachment.phase() != Attachment.Phase.OPEN;
          return told || attachment.standby() ? Boolean.TRUE : null;
        });
    return position;
  }
}

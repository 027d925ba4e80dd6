package example.ister;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.locks.Condition;

/** Sends messages to one topic. Every method may be called from any thread. */
public final class Producer implements AutoCloseable {
  private final IsterClient client;
  private final Condition changed;
  private final Publication publication;
  private final Duration timeout;

  /** Made under the client's lock. */
  Producer(IsterClient client, String topic, ProducerOptions options) {
    this.client = client;
    timeout = options.timeout().orElse(client.timeout());
    changed = client.newCondition();
    long id =
        options
            .name()
            .map(name -> Wire.producerId(topic, name))
            .orElseGet(() -> ThreadLocalRandom.current().nextLong() >>> 1 | 1);
    publication =
        client.attach(
            number ->
                new Publication(
                    number,
                    topic,
                    id,
                    options.batchBytes(),
                    IsterClient.nanos(options.linger()),
                    options.windowBytes(),
                    changed::signalAll));
  }

  void awaitOpened(Duration most) throws InterruptedException {
    boolean done = false;
    try {
      client.until(
          changed,
          most,
          () ->
              "the producer for topic %s was not opened%s"
                  .formatted(topic(), because(publication.trouble())),
          now -> {
            if (publication.error() != null) {
              throw publication.error().again();
            }
            return publication.opened() ? Boolean.TRUE : null;
          });
      done = true;
    } finally {
      if (!done) {
        abandon();
      }
    }
  }

  static String because(IsterException trouble) {
    return trouble == null ? "" : ": " + trouble.getMessage();
  }

  /** Where it sends to. */
  public String topic() {
    return publication.topic();
  }

  /** Whether the topic stores what is sent to it. */
  public boolean reliable() {
    client.lock();
    try {
      return publication.reliable();
    } finally {
      client.unlock();
    }
  }

  /** The number of the next message; at first, for a name, the one to go on with. */
  public long nextSequence() {
    client.lock();
    try {
      return publication.next();
    } finally {
      client.unlock();
    }
  }

  /** Sends a payload; see {@link #send(OutgoingMessage, Duration)}. */
  public Receipt send(byte[] payload) throws InterruptedException {
    return send(payload, null, null, 0, timeout);
  }

  /** Sends a text in UTF-8; see {@link #send(OutgoingMessage, Duration)}. */
  public Receipt send(String payload) throws InterruptedException {
    return send(payload.getBytes(StandardCharsets.UTF_8));
  }

  /** Sends a message; see {@link #send(OutgoingMessage, Duration)}. */
  public Receipt send(OutgoingMessage message) throws InterruptedException {
    return send(message, timeout);
  }

  /**
   * Has a message taken, and returns the promise of an answer. It waits only while the window is
   * full; when the time is over, or the thread is interrupted, the message was not taken.
   */
  public Receipt send(OutgoingMessage message, Duration most) throws InterruptedException {
    if (message.sequence().isPresent()) {
      return sendNumbered(message, message.sequence().getAsLong(), most);
    }
    return send(
        message.payloadBytes(),
        message.keyBytes(),
        message.packedAttributes(),
        message.deliverAtMs(),
        most);
  }

  private Receipt send(
      byte[] payload, byte[] key, byte[] attributes, long deliverAtMs, Duration most)
      throws InterruptedException {
    client.lock();
    try {
      check();
      fits(payload, key, attributes, deliverAtMs);
      if (publication.hasRoomFor(payload, key, attributes, deliverAtMs)) {
        return take(payload, key, attributes, deliverAtMs);
      }
      wake();
    } finally {
      client.unlock();
    }
    return client.until(
        changed,
        most,
        this::windowIsFull,
        now -> {
          check();
          fits(payload, key, attributes, deliverAtMs);
          return publication.hasRoomFor(payload, key, attributes, deliverAtMs)
              ? take(payload, key, attributes, deliverAtMs)
              : null;
        });
  }

  private Receipt take(byte[] payload, byte[] key, byte[] attributes, long deliverAtMs) {
    boolean gathered = publication.gathers();
    int flying = publication.inFlight();
    long now = gathered ? 0 : client.now(); // it counts for the first that lingers
    Receipt receipt = publication.take(payload, key, attributes, deliverAtMs, now);
    if (!gathered || publication.inFlight() != flying) {
      wake(); // sent, or the first that lingers: the others are waited for already
    }
    return receipt;
  }

  private Receipt sendNumbered(OutgoingMessage message, long sequence, Duration most)
      throws InterruptedException {
    byte[] payload = message.payloadBytes();
    byte[] key = message.keyBytes();
    byte[] attributes = message.packedAttributes();
    return client.until(
        changed,
        most,
        this::windowIsFull,
        now -> {
          check();
          fits(payload, key, attributes, message.deliverAtMs());
          if (sequence < publication.next()) {
            return publication.before(sequence);
          } else if (sequence > publication.next()) {
            if (!publication.answered()) {
              publication.seal();
              wake();
              return null;
            }
            publication.skipTo(sequence);
          }
          return publication.hasRoomFor(payload, key, attributes, message.deliverAtMs())
              ? take(payload, key, attributes, message.deliverAtMs())
              : null;
        });
  }

  /** Sends messages at once: one receipt, consecutive offsets. */
  public Receipt sendBatch(List<OutgoingMessage> messages) throws InterruptedException {
    return sendBatch(messages, timeout);
  }

  /** The same with a time-out of its own. */
  public Receipt sendBatch(List<OutgoingMessage> messages, Duration most)
      throws InterruptedException {
    Batch batch = new Batch();
    int largest = 0;
    long latest = 0;
    for (OutgoingMessage message : messages) {
      largest = Math.max(largest, message.payloadBytes().length);
      latest = Math.max(latest, message.deliverAtMs());
      batch.add(message);
    }
    return sendBatch(batch.count(), batch.columns(), batch.body(false), largest, latest, most);
  }

  /** Sends messages that are payloads alone at once: one receipt, consecutive offsets. */
  public Receipt sendPayloads(List<byte[]> payloads) throws InterruptedException {
    return sendPayloads(payloads, timeout);
  }

  /** The same with a time-out of its own. */
  public Receipt sendPayloads(List<byte[]> payloads, Duration most) throws InterruptedException {
    int largest = 0;
    long bytes = 0;
    for (byte[] payload : payloads) {
      largest = Math.max(largest, payload.length);
      bytes += payload.length;
    }
    long size = bytes + 4L * payloads.size();
    client.lock();
    try {
      check();
      fits(largest, size, payloads.size(), 0);
    } finally {
      client.unlock();
    }
    byte[][] body = Batch.body(payloads, payloads.size(), (int) bytes);
    return sendBatch(payloads.size(), 0, body, largest, 0, most);
  }

  private Receipt sendBatch(
      int count, int columns, byte[][] body, int largest, long latest, Duration most)
      throws InterruptedException {
    if (count == 0) {
      throw IsterException.invalid("a batch holds at least one message");
    }
    long size = Batch.sizeOf(body);
    return client.until(
        changed,
        most,
        this::windowIsFull,
        now -> {
          check();
          fits(largest, size, count, latest);
          Receipt receipt = publication.takeBatch(count, columns, body);
          wake();
          return receipt;
        });
  }

  private String windowIsFull() {
    return "the window of the producer for topic %s is full (%d bytes without a receipt)%s"
        .formatted(topic(), publication.unanswered(), because(publication.trouble()));
  }

  private void check() {
    if (publication.error() != null) {
      throw publication.error().again();
    } else if (publication.phase() == Publication.Phase.CLOSING) {
      throw new IsterException.Closed("the producer for topic " + topic());
    }
  }

  private void fits(byte[] payload, byte[] key, byte[] attributes, long deliverAtMs) {
    int keyBytes = key == null ? 0 : key.length;
    int attributeBytes = attributes == null ? 0 : attributes.length;
    long size = Batch.sizeOf(payload.length, keyBytes, attributeBytes, deliverAtMs);
    fits(payload.length, size, 1, deliverAtMs);
  }

  /** Compares with the limits: the worker would close the connection without a word. */
  private void fits(int payload, long size, int count, long deliverAtMs) {
    Session.Limits limits = publication.limits();
    if (payload > limits.messageBytesMax()) {
      throw new IsterException.Refused(
          "message-too-large",
          Action.FIX,
          "message of %d bytes is over message_bytes_max (%d) of topic %s"
              .formatted(payload, limits.messageBytesMax(), topic()));
    }
    if (size > limits.batchBytesMax() && (count > 1 || size - payload > beside(limits))) {
      throw new IsterException.Refused(
          "batch-too-large",
          Action.FIX,
          "batch of %d bytes is over batch_bytes_max (%d) of topic %s"
              .formatted(size, limits.batchBytesMax(), topic()));
    }
    if (deliverAtMs > 0 && !publication.reliable()) {
      throw IsterException.invalid(
          "topic %s is non-reliable: it can delay no message".formatted(topic()));
    }
  }

  /** What of a message alone is not counted: ISTER-5.2-3. */
  private static long beside(Session.Limits limits) {
    return Math.min(Math.max(limits.batchBytesMax() / 16, 64), 65_536);
  }

  private void wake() {
    client.connectionOf(publication).wake();
  }

  /** Sends what is gathered, for a close (lock held). */
  void sealAll() {
    publication.seal();
    wake();
  }

  /** Waits until everything taken so far is answered, with the default time-out. */
  public void flush() throws InterruptedException {
    flush(timeout);
  }

  /**
   * Waits until everything taken so far is answered. Throws the error of a refused message whose
   * receipt nobody has looked at.
   */
  public void flush(Duration most) throws InterruptedException {
    client.until(
        changed,
        most,
        () -> "no receipts from topic %s%s".formatted(topic(), because(publication.trouble())),
        now -> {
          publication.seal();
          wake();
          if (publication.answered()) {
            return Boolean.TRUE;
          } else if (publication.error() != null) {
            throw publication.error().again();
          }
          return null;
        });
    client.awaitCompleted(most);
    IsterException refusal;
    client.lock();
    try {
      refusal = publication.unseenRefusal();
    } finally {
      client.unlock();
    }
    if (refusal != null) {
      throw refusal.again();
    }
  }

  /** Closes with the default time-out. */
  @Override
  public void close() {
    close(timeout);
  }

  /** Flushes, and tells the broker that this producer is done. Closing again does nothing. */
  public void close(Duration most) {
    client.lock();
    try {
      if (publication.phase() == Publication.Phase.CLOSED || client.isClosed()) {
        client.forget(this);
        return;
      }
    } finally {
      client.unlock();
    }
    long end = client.now() + IsterClient.nanos(most);
    try {
      flush(most);
      client.lock();
      try {
        publication.close();
        wake();
      } finally {
        client.unlock();
      }
      client.until(
          changed,
          Duration.ofNanos(Math.max(0, end - client.now())),
          () -> "the broker did not confirm the close of the producer for topic " + topic(),
          now -> publication.phase() == Publication.Phase.CLOSED ? Boolean.TRUE : null);
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
      publication.close();
      publication.fail(new IsterException.Closed("the producer for topic " + topic()));
      client.detach(publication);
      client.forget(this);
    } finally {
      client.unlock();
    }
  }
}

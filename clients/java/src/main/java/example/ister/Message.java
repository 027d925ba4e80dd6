package example.ister;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.Arrays;
import java.util.Map;
import java.util.Optional;

/**
 * One message as it was delivered. What it holds is cut out of the delivery when it is asked for.
 */
public final class Message {
  private final Delivery delivery;
  private final int index;
  private final long offset;
  private byte[] payload;

  Message(Delivery delivery, int index, long offset) {
    this.delivery = delivery;
    this.index = index;
    this.offset = offset;
  }

  Delivery delivery() {
    return delivery;
  }

  /** The topic it was published to. */
  public String topic() {
    return delivery.topic();
  }

  /** Its position in the topic. */
  public long offset() {
    return offset;
  }

  /** The payload, in an array of its own. */
  public byte[] payload() {
    if (payload == null) {
      payload =
          Arrays.copyOfRange(
              delivery.payloads(), delivery.payloadBegin(index), delivery.payloadEnd(index));
    }
    return payload;
  }

  /** The payload without a copy, to be read. */
  public ByteBuffer payloadBuffer() {
    int begin = delivery.payloadBegin(index);
    return ByteBuffer.wrap(delivery.payloads(), begin, delivery.payloadEnd(index) - begin)
        .slice()
        .asReadOnlyBuffer();
  }

  /** The payload as UTF-8. */
  public String text() {
    int begin = delivery.payloadBegin(index);
    return new String(
        delivery.payloads(), begin, delivery.payloadEnd(index) - begin, StandardCharsets.UTF_8);
  }

  /** The key, if it has one. */
  public Optional<byte[]> key() {
    return Optional.ofNullable(delivery.key(index));
  }

  /**
   * The attributes, none if it has none.
   *
   * @throws IsterException {@code malformed}: they are not what the protocol says; the broker does
   *     not look at them
   */
  public Map<String, String> attributes() {
    return delivery.attributes(index);
  }

  /** When the broker took it. */
  public Instant timestamp() {
    return Instant.ofEpochMilli(delivery.timestampMs(index));
  }

  /** The time before which it was not to be delivered, if it has one. */
  public Optional<Instant> deliverAt() {
    long ms = delivery.deliverAtMs(index);
    return ms == 0 ? Optional.empty() : Optional.of(Instant.ofEpochMilli(ms));
  }

  /** How often it was delivered: 1 for the first time. */
  public int attempt() {
    return delivery.attempt();
  }

  @Override
  public String toString() {
    int size = delivery.payloadEnd(index) - delivery.payloadBegin(index);
    return "Message[%s at %d, %d bytes]".formatted(topic(), offset, size);
  }
}

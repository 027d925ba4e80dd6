package example.ister;

import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;
import java.util.OptionalLong;

/** A message to be sent: a payload, and what else is said of it. Immutable. */
public final class OutgoingMessage {
  private final byte[] payload;
  private final byte[] key;
  private final byte[] attributes;
  private final long deliverAtMs;
  private final long sequence;

  private OutgoingMessage(Builder builder) {
    payload = builder.payload;
    key = builder.key;
    attributes = Batch.pack(builder.attributes);
    deliverAtMs = builder.deliverAtMs;
    sequence = builder.sequence;
  }

  /** A message that is a payload alone. */
  public static OutgoingMessage of(byte[] payload) {
    return builder(payload).build();
  }

  /** A message that is a text alone, in UTF-8. */
  public static OutgoingMessage of(String text) {
    return builder(text).build();
  }

  /** Begins a message. */
  public static Builder builder(byte[] payload) {
    return new Builder(Objects.requireNonNull(payload, "payload"));
  }

  /** Begins a message whose payload is a text in UTF-8. */
  public static Builder builder(String text) {
    return new Builder(text.getBytes(StandardCharsets.UTF_8));
  }

  /** The same with other attributes. */
  OutgoingMessage withAttributes(Map<String, String> others) {
    Builder builder = builder(payload).attributes(others);
    builder.key = key;
    builder.deliverAtMs = deliverAtMs;
    return builder.build();
  }

  byte[] payloadBytes() {
    return payload;
  }

  byte[] keyBytes() {
    return key;
  }

  byte[] packedAttributes() {
    return attributes;
  }

  long deliverAtMs() {
    return deliverAtMs;
  }

  OptionalLong sequence() {
    return sequence < 0 ? OptionalLong.empty() : OptionalLong.of(sequence);
  }

  /** What is said of a message. */
  public static final class Builder {
    private final byte[] payload;
    private byte[] key;
    private final Map<String, String> attributes = new LinkedHashMap<>();
    private long deliverAtMs;
    private long sequence = -1;

    private Builder(byte[] payload) {
      this.payload = payload;
    }

    /** Messages of a key keep their order in a key-shared subscription. */
    public Builder key(byte[] key) {
      this.key = key;
      return this;
    }

    /** The same for a text, in UTF-8. */
    public Builder key(String key) {
      return key(key.getBytes(StandardCharsets.UTF_8));
    }

    /** Adds an attribute. */
    public Builder attribute(String name, String value) {
      attributes.put(Objects.requireNonNull(name, "name"), Objects.requireNonNull(value, "value"));
      return this;
    }

    /** Adds attributes. */
    public Builder attributes(Map<String, String> more) {
      more.forEach(this::attribute);
      return this;
    }

    /** The message is not delivered before. */
    public Builder deliverAt(Instant when) {
      deliverAtMs = Math.max(0, when.toEpochMilli());
      return this;
    }

    /**
     * The message's number, for a producer with a name: one that was stored before is not stored
     * again. Without it numbers follow each other; they may be left out, at the price of a round
     * trip.
     */
    public Builder sequence(long number) {
      if (number < 0) {
        throw IsterException.invalid("a sequence is 0 or more, not " + number);
      }
      sequence = number;
      return this;
    }

    /** The message. */
    public OutgoingMessage build() {
      return new OutgoingMessage(this);
    }
  }
}

package example.ister;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalLong;
import java.util.Set;

/**
 * A message that a subscription gave up, as its producer sent it, with what happened to it: section
 * 10.6 of PROTOCOL.md.
 */
public final class DeadLetter {
  static final String MARK = "ister.";
  private static final Set<String> ADDED =
      Set.of(
          MARK + "topic",
          MARK + "subscription",
          MARK + "offset",
          MARK + "producer",
          MARK + "timestamp",
          MARK + "attempts",
          MARK + "reason",
          MARK + "dead_lettered_at");

  private final Message message;
  private final Map<String, String> told;

  DeadLetter(Message message) {
    this.message = message;
    told = message.attributes();
  }

  /** The attributes of a letter without those about its failure. */
  static Map<String, String> kept(Map<String, String> attributes) {
    Map<String, String> found = new LinkedHashMap<>(attributes);
    found.keySet().removeAll(ADDED);
    return found;
  }

  /** The message in the dead-letter topic. */
  public Message message() {
    return message;
  }

  /** Its offset in the dead-letter topic. */
  public long offset() {
    return message.offset();
  }

  /** The payload. */
  public byte[] payload() {
    return message.payload();
  }

  /** The payload as UTF-8. */
  public String text() {
    return message.text();
  }

  /** The key, if it has one. */
  public Optional<byte[]> key() {
    return message.key();
  }

  /** The attributes as they were sent. */
  public Map<String, String> attributes() {
    return Collections.unmodifiableMap(kept(told));
  }

  /** The topic that it was published to. */
  public String topic() {
    return told.getOrDefault(MARK + "topic", "");
  }

  /** The subscription that gave it up. */
  public String subscription() {
    return told.getOrDefault(MARK + "subscription", "");
  }

  /** Its offset in the topic that it was published to. */
  public OptionalLong originOffset() {
    return number("offset");
  }

  /** The id of its producer, in hexadecimal. */
  public String producer() {
    return told.getOrDefault(MARK + "producer", "");
  }

  /** When the broker took it, in unix milliseconds. */
  public OptionalLong timestampMs() {
    return number("timestamp");
  }

  /** How often it was delivered. */
  public int attempts() {
    return (int) Math.min(Integer.MAX_VALUE, number("attempts").orElse(0));
  }

  /** Why it failed last. */
  public String reason() {
    return told.getOrDefault(MARK + "reason", "");
  }

  /** When it became a dead letter, in unix milliseconds. */
  public OptionalLong deadLetteredAtMs() {
    return number("dead_lettered_at");
  }

  private OptionalLong number(String name) {
    String text = told.getOrDefault(MARK + name, "");
    return text.matches("[0-9]{1,18}")
        ? OptionalLong.of(Long.parseLong(text))
        : OptionalLong.empty();
  }

  @Override
  public String toString() {
    return "DeadLetter[%s at %d: %s]".formatted(topic(), offset(), reason());
  }
}

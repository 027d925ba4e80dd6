package example.ister;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Pattern;

/**
 * Which topics the consumer of a pattern receives from: section 10.5 of PROTOCOL.md. It knows no
 * socket, no clock and no thread.
 *
 * <p>Invariants: dead-letter topics are left out, because what a consumer refuses would come to it
 * again as another topic's message; a topic that refused is not tried again until it is made again.
 */
final class Following {
  private static final String DEAD_LETTERS = ".dlq";
  private static final String PART = "[^/]+";

  /** What is to be done: topics to begin with, and topics to leave. */
  record Change(List<String> come, List<String> gone) {}

  private final Map<String, Long> refused = new HashMap<>();

  /** Whether a name stands for more than one topic. */
  static boolean isPattern(String topic) {
    return topic.indexOf('*') >= 0 || topic.indexOf('>') >= 0;
  }

  /** What the names of topics look like that a pattern stands for; throws where it is none. */
  static Pattern pattern(String text) {
    String[] parts = text.split("/", -1);
    StringBuilder made = new StringBuilder();
    for (int i = 0; i < parts.length; i++) {
      String part = parts[i];
      boolean rest = part.equals(">") && i == parts.length - 1;
      if (!rest && !part.equals("*") && !part.matches("[A-Za-z0-9._-]+")) {
        throw new IsterException.Refused(
            "invalid-name",
            Action.FIX,
            "%s is no pattern: * stands for one part between slashes, > at the end for one or more"
                .formatted(text));
      }
      made.append(i == 0 ? "" : "/");
      made.append(rest ? ".+" : part.equals("*") ? PART : Pattern.quote(part));
    }
    return Pattern.compile(made.toString());
  }

  /** Compares the topics that there are with those that are followed, by when each was made. */
  Change changes(Map<String, Long> listed, Map<String, Long> present) {
    Map<String, Long> there = new TreeMap<>(listed);
    there.keySet().removeIf(topic -> topic.endsWith(DEAD_LETTERS));
    refused.entrySet().removeIf(each -> !each.getValue().equals(there.get(each.getKey())));
    List<String> come = new ArrayList<>();
    there.forEach(
        (topic, made) -> {
          if (!refused.containsKey(topic) && !made.equals(present.get(topic))) {
            come.add(topic);
          }
        });
    List<String> gone = new ArrayList<>();
    new TreeMap<>(present)
        .forEach(
            (topic, made) -> {
              if (!made.equals(there.get(topic))) {
                gone.add(topic);
              }
            });
    return new Change(come, gone);
  }

  /** A topic cannot be consumed, until it is made again. */
  void refuse(String topic, long made) {
    refused.put(topic, made);
  }

  /** The part of a credit that each of so many topics has: at least so much. */
  static long share(long credit, int topics, long least) {
    return Math.max(Math.min(least, credit), credit / Math.max(1, topics));
  }
}

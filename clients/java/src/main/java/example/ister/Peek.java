package example.ister;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Predicate;

/**
 * Looks at messages of a subscription by reading its topic, without touching the subscription.
 *
 * @param ranges what it has not acknowledged, half-open, as far as the broker tells
 * @param count how many it has not acknowledged in all
 * @param end where the topic ends
 */
record Peek(List<long[]> ranges, long count, long end) {
  private static final long GAP = 1000; // read over, instead of by another reader
  private static final int CREDIT = 100;

  /** By the answer of {@code subscription.show}. */
  static Peek of(Info told) {
    List<long[]> ranges = new ArrayList<>();
    if (told.members().get("pending") instanceof List<?> pairs) {
      for (Object pair : pairs) {
        if (pair instanceof List<?> range
            && range.size() == 2
            && range.get(0) instanceof Long first
            && range.get(1) instanceof Long end) {
          ranges.add(new long[] {first, end});
        }
      }
    }
    return new Peek(ranges, told.number("unacknowledged"), told.number("durable_end"));
  }

  /** How many of the messages are not in the ranges. */
  long untold() {
    return count - ranges.stream().mapToLong(range -> range[1] - range[0]).sum();
  }

  /** Reads messages from an offset on, at most so many of those that are wanted. */
  List<Message> read(
      IsterClient client,
      String topic,
      long from,
      int most,
      Predicate<Message> wanted,
      Duration timeout)
      throws InterruptedException {
    List<Message> found = new ArrayList<>();
    long end = client.now() + IsterClient.nanos(timeout);
    int at = 0;
    while (at < ranges.size() && found.size() < most) {
      int last = at;
      while (last + 1 < ranges.size() && ranges.get(last + 1)[0] - ranges.get(last)[1] <= GAP) {
        last++;
      }
      List<long[]> part = ranges.subList(at, last + 1);
      long first = Math.max(from, part.get(0)[0]);
      if (first < part.get(part.size() - 1)[1]) {
        readPart(client, topic, first, part, most, wanted, found, end);
      }
      at = last + 1;
    }
    return found;
  }

  private static void readPart(
      IsterClient client,
      String topic,
      long first,
      List<long[]> part,
      int most,
      Predicate<Message> wanted,
      List<Message> found,
      long until)
      throws InterruptedException {
    long end = part.get(part.size() - 1)[1];
    ReaderOptions options =
        ReaderOptions.defaults()
            .start(Start.at(first))
            .creditMessages((int) Math.min(CREDIT, end - first));
    try (Reader reader = client.reader(topic, options)) {
      for (long at = first; at < end && found.size() < most; ) {
        Duration left = Duration.ofNanos(Math.max(0, until - client.now()));
        Message message =
            reader
                .receive(left)
                .orElseThrow(
                    () ->
                        new IsterException.Timeout(
                            "messages of topic %s did not come".formatted(topic), null));
        long offset = message.offset();
        at = offset + 1;
        if (part.stream().anyMatch(range -> range[0] <= offset && offset < range[1])
            && wanted.test(message)) {
          found.add(message);
        }
      }
    }
  }
}

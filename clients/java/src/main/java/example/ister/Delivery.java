package example.ister;

import java.util.Map;

/**
 * The body of one DELIVER. Lengths are checked when it comes; messages are cut out when the program
 * takes them, and their attributes are decoded when it asks for them.
 */
final class Delivery {
  private final byte[] payloads;
  private final int[] payloadEnds;
  private final byte[] keys;
  private final int[] keyEnds;
  private final byte[] attributes;
  private final int[] attributeEnds;
  private final byte[] times;
  private final long first;
  private final long[] ranges;
  private final long[] timestamps;
  private final int count;
  private final long bytes;
  private final int attempt;

  // where the next message is
  private int next;
  private int range;
  private long inRange;
  private int run;
  private long inRun;

  private Delivery(
      int count,
      long columns,
      byte[][] body,
      long first,
      long[] ranges,
      long[] timestamps,
      int attempt) {
    int wanted = 2 + Long.bitCount(columns & 7);
    if (columns < 0 || columns > 7 || body.length != wanted) {
      throw IsterException.malformed(
          "a batch with columns %d has %d body frames".formatted(columns, body.length));
    }
    this.count = count;
    this.first = first;
    this.ranges = ranges;
    this.timestamps = timestamps;
    this.attempt = attempt;
    bytes = Batch.sizeOf(body);
    payloads = body[1];
    payloadEnds = ends(body[0], 0, count, body[1].length, "a batch");
    if (body[0].length != 4L * count) {
      throw mismatch("a batch");
    }
    int at = 2;
    boolean keyed = (columns & Wire.KEY_COLUMN) != 0;
    keys = keyed ? body[at++] : null;
    keyEnds = keyed ? columnEnds(keys, count, "a column of keys") : null;
    boolean attributed = (columns & Wire.ATTRIBUTE_COLUMN) != 0;
    attributes = attributed ? body[at++] : null;
    attributeEnds = attributed ? columnEnds(attributes, count, "a column of attributes") : null;
    times = (columns & Wire.TIME_COLUMN) != 0 ? body[at] : null;
    if (times != null && times.length != 8L * count) {
      throw mismatch("a column of times");
    }
  }

  /**
   * A DELIVER; throws {@code malformed} or {@code lengths-mismatch} where it does not hold what it
   * says.
   */
  static Delivery of(Header header, byte[][] body) {
    long count = header.uint(Wire.COUNT);
    if (count <= 0 || body.length < 2 || body[0].length != 4 * count) {
      throw IsterException.malformed(
          "a delivery does not hold the %s messages it says"
              .formatted(Long.toUnsignedString(count)));
    }
    long first = header.uint(Wire.OFFSET);
    long[] ranges =
        header.has(Wire.RANGES) ? header.uints(Wire.RANGES) : new long[] {first, first + count};
    long total = 0;
    for (int i = 0; i < ranges.length; i += 2) {
      boolean ascends = i == 0 || Long.compareUnsigned(ranges[i], ranges[i - 1]) > 0;
      long length = ranges[i + 1] - ranges[i];
      if (!ascends
          || Long.compareUnsigned(ranges[i + 1], ranges[i]) <= 0
          || length < 0
          || length > count - total) {
        throw IsterException.malformed(
            "the ranges of a delivery do not hold the %d messages it says".formatted(count));
      }
      total += length;
    }
    if (total != count || ranges[0] != first) {
      throw IsterException.malformed(
          "the ranges of a delivery do not hold the %d messages it says".formatted(count));
    }
    long[] timestamps = header.uints(Wire.TIMESTAMPS);
    long timed = 0;
    for (int i = 0; i < timestamps.length; i += 2) {
      if (timestamps[i] < 0 || timestamps[i] > count - timed) {
        throw IsterException.malformed(
            "a delivery has times for more than its %d messages".formatted(count));
      }
      timed += timestamps[i];
    }
    if (timed != count) {
      throw IsterException.malformed(
          "a delivery has times for %d of its %d messages".formatted(timed, count));
    }
    int attempt =
        header.has(Wire.ATTEMPT) ? (int) Math.min(Integer.MAX_VALUE, header.uint(Wire.ATTEMPT)) : 1;
    return new Delivery(
        (int) count, header.uint(Wire.COLUMNS), body, first, ranges, timestamps, attempt);
  }

  /** A body alone, as the test vectors have it. */
  static Delivery of(long columns, byte[][] body) {
    if (body.length == 0 || body[0].length == 0) {
      throw IsterException.malformed("a batch holds at least one message");
    } else if (body[0].length % 4 != 0) {
      throw mismatch("a batch");
    }
    int count = body[0].length / 4;
    return new Delivery(count, columns, body, 0, new long[] {0, count}, new long[] {count, 0}, 1);
  }

  private static IsterException mismatch(String what) {
    return new IsterException(
        "lengths-mismatch", Action.STOP, "the lengths of " + what + " do not add up");
  }

  private static int[] columnEnds(byte[] column, int count, String what) {
    if (column.length < 4L * count) {
      throw mismatch(what);
    }
    return ends(column, 4 * count, count, column.length, what);
  }

  /** Where items end that begin at a place, by the lengths at the beginning of a table. */
  private static int[] ends(byte[] table, int begin, int count, int size, String what) {
    if (table.length < 4L * count) {
      throw mismatch(what);
    }
    int[] found = new int[count];
    long at = begin;
    for (int i = 0; i < count; i++) {
      int t = 4 * i;
      at +=
          (table[t] & 0xffL)
              | (table[t + 1] & 0xffL) << 8
              | (table[t + 2] & 0xffL) << 16
              | (table[t + 3] & 0xffL) << 24;
      if (at > size) {
        throw mismatch(what);
      }
      found[i] = (int) at;
    }
    if (at != size) {
      throw mismatch(what);
    }
    return found;
  }

  int count() {
    return count;
  }

  int left() {
    return count - next;
  }

  long bytes() {
    return bytes;
  }

  /** Cuts the next message out. */
  Message take(Attachment owner, String topic, int epoch) {
    if (inRange == ranges[range + 1] - ranges[range]) {
      range += 2;
      inRange = 0;
    }
    while (inRun == timestamps[run]) {
      run += 2;
      inRun = 0;
    }
    long offset = ranges[range] + inRange++;
    inRun++;
    return new Message(owner, epoch, topic, this, next++, offset, timestamps[run + 1], attempt);
  }

  /** Where the first message is that was not taken. */
  long reach() {
    return first + (ranges[range] - first) + inRange;
  }

  byte[] payloads() {
    return payloads;
  }

  int payloadBegin(int index) {
    return index == 0 ? 0 : payloadEnds[index - 1];
  }

  int payloadEnd(int index) {
    return payloadEnds[index];
  }

  byte[] key(int index) {
    if (keys == null) {
      return null;
    }
    int begin = index == 0 ? 4 * count : keyEnds[index - 1];
    return begin == keyEnds[index]
        ? null
        : java.util.Arrays.copyOfRange(keys, begin, keyEnds[index]);
  }

  Map<String, String> attributes(int index) {
    if (attributes == null) {
      return Map.of();
    }
    int begin = index == 0 ? 4 * count : attributeEnds[index - 1];
    int end = attributeEnds[index];
    if (begin == end) {
      return Map.of();
    }
    byte[] packed = java.util.Arrays.copyOfRange(attributes, begin, end);
    return java.util.Collections.unmodifiableMap(Cbor.texts(Cbor.decode(packed, Cbor.BODY_DEPTH)));
  }

  long deliverAtMs(int index) {
    if (times == null) {
      return 0;
    }
    return java.nio.ByteBuffer.wrap(times)
        .order(java.nio.ByteOrder.LITTLE_ENDIAN)
        .getLong(8 * index);
  }
}

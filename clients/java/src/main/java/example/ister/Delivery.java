package example.ister;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Collections;
import java.util.Map;

/**
 * The body of one DELIVER. Lengths are checked when it comes; messages are cut out when the program
 * takes them, and their attributes are decoded when it asks for them. Immutable.
 */
final class Delivery {
  private final byte[] payloads;
  private final int[] payloadEnds;
  private final byte[] keys;
  private final int[] keyEnds;
  private final byte[] attributes;
  private final int[] attributeEnds;
  private final byte[] times;
  private final Attachment owner;
  private final String topic;
  private final int epoch;
  private final long came;
  private final long[] ranges;
  private final int[] rangeEnds; // how many messages there are up to the end of each; null for one
  private final long[] timestamps;
  private final int count;
  private final long bytes;
  private final int attempt;
  private final boolean singly;

  private Delivery(
      Attachment owner,
      int epoch,
      long came,
      Header header,
      int count,
      long columns,
      byte[][] body,
      long[] ranges,
      long[] timestamps) {
    this.owner = owner;
    topic = owner == null ? "" : owner.wanted().topic();
    this.epoch = epoch;
    this.came = came;
    int wanted = 2 + Long.bitCount(columns & 7);
    if (columns < 0 || columns > 7 || body.length != wanted) {
      throw IsterException.malformed(
          "a batch with columns %d has %d body frames".formatted(columns, body.length));
    }
    this.count = count;
    this.ranges = ranges;
    rangeEnds = ranges.length > 2 ? rangeEnds(ranges) : null;
    this.timestamps = timestamps;
    long attempts = header != null && header.has(Wire.ATTEMPT) ? header.uint(Wire.ATTEMPT) : 1;
    attempt = attempts < 0 ? Integer.MAX_VALUE : (int) Math.min(Integer.MAX_VALUE, attempts);
    singly = header != null && header.flag(Wire.SINGLY);
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
  static Delivery of(Attachment owner, int epoch, long came, Header header, byte[][] body) {
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
    return new Delivery(
        owner,
        epoch,
        came,
        header,
        (int) count,
        header.uint(Wire.COLUMNS),
        body,
        ranges,
        timestamps);
  }

  /** A body alone, as the test vectors have it. */
  static Delivery of(long columns, byte[][] body) {
    if (body.length == 0 || body[0].length == 0) {
      throw IsterException.malformed("a batch holds at least one message");
    } else if (body[0].length % 4 != 0) {
      throw mismatch("a batch");
    }
    int count = body[0].length / 4;
    return new Delivery(
        null, 0, 0, null, count, columns, body, new long[] {0, count}, new long[] {count, 0});
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
    ByteBuffer.wrap(table, 0, 4 * count).order(ByteOrder.LITTLE_ENDIAN).asIntBuffer().get(found);
    long at = begin;
    for (int i = 0; i < count; i++) {
      at += found[i] & 0xffff_ffffL;
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

  private static int[] rangeEnds(long[] ranges) {
    int[] found = new int[ranges.length / 2];
    int at = 0;
    for (int i = 0; i < found.length; i++) {
      at += (int) (ranges[2 * i + 1] - ranges[2 * i]);
      found[i] = at;
    }
    return found;
  }

  int count() {
    return count;
  }

  long bytes() {
    return bytes;
  }

  /** Whose it is; null for a body alone. */
  Attachment owner() {
    return owner;
  }

  String topic() {
    return topic;
  }

  /** Of which of its owner's epochs it is. */
  int epoch() {
    return epoch;
  }

  /** When it came. */
  long came() {
    return came;
  }

  int attempt() {
    return attempt;
  }

  /** Whether its messages are handed out one by one. */
  boolean singly() {
    return singly;
  }

  /** The offset behind its last message. */
  long end() {
    return ranges[ranges.length - 1];
  }

  Message message(int index) {
    return new Message(this, index, offset(index));
  }

  private long offset(int index) {
    if (rangeEnds == null) {
      return ranges[0] + index;
    }
    int range = Arrays.binarySearch(rangeEnds, index + 1);
    range = range < 0 ? -range - 1 : range;
    return ranges[2 * range + 1] - (rangeEnds[range] - index);
  }

  long timestampMs(int index) {
    int run = 0;
    for (long end = timestamps[0]; end <= index; end += timestamps[run]) {
      run += 2;
    }
    return timestamps[run + 1];
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
    return begin == keyEnds[index] ? null : Arrays.copyOfRange(keys, begin, keyEnds[index]);
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
    byte[] packed = Arrays.copyOfRange(attributes, begin, end);
    return Collections.unmodifiableMap(Cbor.texts(Cbor.decode(packed, Cbor.BODY_DEPTH)));
  }

  long deliverAtMs(int index) {
    if (times == null) {
      return 0;
    }
    return ByteBuffer.wrap(times).order(ByteOrder.LITTLE_ENDIAN).getLong(8 * index);
  }
}

package example.ister;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Map;

/**
 * Messages that gather end to end, and become the body of a PUBLISH: PROTOCOL.md, section 5.
 * Payloads are copied, so a program may use its arrays again. So is a body from what gathered, and
 * a batch may be cleared and used again.
 */
final class Batch {
  private static final int LENGTH_BYTES = 4;
  private static final int FIRST_COUNT = 16;
  private static final int FIRST_CAPACITY = 1024;

  /** More than this is not kept for the next messages. */
  private static final int KEPT_BYTES = 1 << 20;

  /** One column of items end to end, and their lengths; those of later messages are 0. */
  private static final class Column {
    private int[] lengths;
    private byte[] items;
    private int used;
    private int end; // of the lengths that were set

    Column(int count, int bytes) {
      lengths = new int[count];
      items = new byte[bytes];
    }

    void add(int index, byte[] item) {
      int after = used + item.length;
      if (index >= lengths.length) {
        lengths = Arrays.copyOf(lengths, Math.max(2 * lengths.length, index + 1));
      }
      if (after > items.length) {
        items = Arrays.copyOf(items, (int) Math.max(Math.min(2L * items.length, 1 << 30), after));
      }
      lengths[index] = item.length;
      end = index + 1;
      System.arraycopy(item, 0, items, used, item.length);
      used = after;
    }

    void clear() {
      if (items.length > KEPT_BYTES) {
        items = new byte[FIRST_CAPACITY];
        lengths = new int[FIRST_COUNT];
      } else {
        Arrays.fill(lengths, 0, end, 0);
      }
      used = 0;
      end = 0;
    }

    byte[] items() {
      return Arrays.copyOf(items, used);
    }

    byte[] table(int count, int behind) {
      byte[] table = new byte[LENGTH_BYTES * count + behind];
      ByteBuffer.wrap(table)
          .order(ByteOrder.LITTLE_ENDIAN)
          .asIntBuffer()
          .put(lengths, 0, Math.min(count, end));
      return table;
    }

    byte[] joined(int count) {
      byte[] whole = table(count, used);
      System.arraycopy(items, 0, whole, LENGTH_BYTES * count, used);
      return whole;
    }
  }

  private final Column payloads;
  private Column keys;
  private Column attributes;
  private long[] times;
  private int count;

  Batch() {
    this(FIRST_COUNT, FIRST_CAPACITY);
  }

  /** With room for so many messages, and bytes of payloads. */
  Batch(int count, int bytes) {
    payloads = new Column(count, bytes);
  }

  int count() {
    return count;
  }

  /** Adds a message; keys and attributes may be null or empty, a time of 0 is at once. */
  void add(byte[] payload, byte[] key, byte[] packedAttributes, long deliverAtMs) {
    payloads.add(count, payload);
    if (key != null && key.length > 0) {
      if (keys == null) {
        keys = new Column(FIRST_COUNT, FIRST_CAPACITY);
      }
      keys.add(count, key);
    }
    if (packedAttributes != null && packedAttributes.length > 0) {
      if (attributes == null) {
        attributes = new Column(FIRST_COUNT, FIRST_CAPACITY);
      }
      attributes.add(count, packedAttributes);
    }
    if (deliverAtMs > 0 || times != null) {
      addTime(deliverAtMs);
    }
    count++;
  }

  private void addTime(long deliverAtMs) {
    if (times == null) {
      times = new long[Math.max(FIRST_COUNT, count + 1)];
    } else if (count >= times.length) {
      times = Arrays.copyOf(times, 2 * times.length);
    }
    times[count] = deliverAtMs;
  }

  /** How many bytes the body would have with one more message. */
  long sizeWith(int payload, int key, int packedAttributes, long deliverAtMs) {
    long size = payloads.used + payload;
    long each = LENGTH_BYTES;
    if (keys != null || key > 0) {
      size += key + (keys == null ? 0 : keys.used);
      each += LENGTH_BYTES;
    }
    if (attributes != null || packedAttributes > 0) {
      size += packedAttributes + (attributes == null ? 0 : attributes.used);
      each += LENGTH_BYTES;
    }
    if (times != null || deliverAtMs > 0) {
      each += Long.BYTES;
    }
    return size + each * (count + 1);
  }

  void add(OutgoingMessage message) {
    add(
        message.payloadBytes(),
        message.keyBytes(),
        message.packedAttributes(),
        message.deliverAtMs());
  }

  /** Forgets its messages; bodies that were made of it stay as they are. */
  void clear() {
    payloads.clear();
    keys = null;
    attributes = null;
    times = null;
    count = 0;
  }

  int columns() {
    return (keys == null ? 0 : Wire.KEY_COLUMN)
        | (attributes == null ? 0 : Wire.ATTRIBUTE_COLUMN)
        | (times == null ? 0 : Wire.TIME_COLUMN);
  }

  /** The body frames. Of one message without columns the lengths may be left out. */
  byte[][] body(boolean brief) {
    if (brief && count == 1 && columns() == 0) {
      return new byte[][] {payloads.items()};
    }
    byte[][] frames = new byte[2 + Integer.bitCount(columns())][];
    frames[0] = payloads.table(count, 0);
    frames[1] = payloads.items();
    int at = 2;
    if (keys != null) {
      frames[at++] = keys.joined(count);
    }
    if (attributes != null) {
      frames[at++] = attributes.joined(count);
    }
    if (times != null) {
      ByteBuffer column = ByteBuffer.allocate(Long.BYTES * count).order(ByteOrder.LITTLE_ENDIAN);
      column.asLongBuffer().put(times, 0, count);
      frames[at] = column.array();
    }
    return frames;
  }

  /** The body frames of payloads alone, each copied once. */
  static byte[][] body(Iterable<byte[]> payloads, int count, int bytes) {
    byte[] table = new byte[LENGTH_BYTES * count];
    byte[] items = new byte[bytes];
    var lengths = ByteBuffer.wrap(table).order(ByteOrder.LITTLE_ENDIAN).asIntBuffer();
    int at = 0;
    for (byte[] payload : payloads) {
      lengths.put(payload.length);
      System.arraycopy(payload, 0, items, at, payload.length);
      at += payload.length;
    }
    return new byte[][] {table, items};
  }

  /** What a message adds to a body that has only the columns it needs. */
  static long sizeOf(int payload, int key, int packedAttributes, long deliverAtMs) {
    long size = (long) payload + LENGTH_BYTES;
    size += key > 0 ? key + LENGTH_BYTES : 0;
    size += packedAttributes > 0 ? packedAttributes + LENGTH_BYTES : 0;
    return size + (deliverAtMs > 0 ? Long.BYTES : 0);
  }

  static byte[] pack(Map<String, String> attributes) {
    return attributes.isEmpty() ? null : Cbor.encode(Cbor.of(attributes));
  }

  static long sizeOf(byte[][] body) {
    long size = 0;
    for (byte[] frame : body) {
      size += frame.length;
    }
    return size;
  }
}

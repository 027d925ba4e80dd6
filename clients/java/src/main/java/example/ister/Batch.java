package example.ister;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Map;

/**
 * Messages that gather end to end, and become the body of a PUBLISH: PROTOCOL.md, section 5.
 * Payloads are copied, so a program may use its arrays again.
 */
final class Batch {
  private static final int LENGTH_BYTES = 4;
  private static final int FIRST_CAPACITY = 1024;

  /** What columns cost a message that has nothing in them. */
  static final int COLUMNS_MAX = 2 * LENGTH_BYTES + Long.BYTES;

  /** One column of items end to end, with their lengths before them. */
  private static final class Column {
    private byte[] lengths = new byte[64];
    private byte[] items = new byte[FIRST_CAPACITY];
    private int used;

    void add(int index, byte[] item) {
      setLength(index, item.length);
      if (used + item.length > items.length) {
        items = Arrays.copyOf(items, Math.max(2 * items.length, used + item.length));
      }
      System.arraycopy(item, 0, items, used, item.length);
      used += item.length;
    }

    private void setLength(int index, int length) {
      int at = LENGTH_BYTES * index;
      if (at + LENGTH_BYTES > lengths.length) {
        lengths = Arrays.copyOf(lengths, Math.max(2 * lengths.length, at + LENGTH_BYTES));
      }
      lengths[at] = (byte) length;
      lengths[at + 1] = (byte) (length >> 8);
      lengths[at + 2] = (byte) (length >> 16);
      lengths[at + 3] = (byte) (length >> 24);
    }

    byte[] joined(int count) {
      int table = LENGTH_BYTES * count;
      byte[] whole =
          Arrays.copyOf(
              lengths.length < table ? Arrays.copyOf(lengths, table) : lengths, table + used);
      Arrays.fill(whole, Math.min(table, lengths.length), table, (byte) 0);
      System.arraycopy(items, 0, whole, table, used);
      return whole;
    }
  }

  private final Column payloads = new Column();
  private Column keys;
  private Column attributes;
  private long[] times;
  private int count;

  int count() {
    return count;
  }

  /** Adds a message; keys and attributes may be null or empty, a time of 0 is at once. */
  void add(byte[] payload, byte[] key, byte[] packedAttributes, long deliverAtMs) {
    payloads.add(count, payload);
    if (key != null && key.length > 0) {
      if (keys == null) {
        keys = new Column();
      }
      keys.add(count, key);
    }
    if (packedAttributes != null && packedAttributes.length > 0) {
      if (attributes == null) {
        attributes = new Column();
      }
      attributes.add(count, packedAttributes);
    }
    if (deliverAtMs > 0 || times != null) {
      if (times == null) {
        times = new long[Math.max(16, count + 1)];
      } else if (count >= times.length) {
        times = Arrays.copyOf(times, 2 * times.length);
      }
      times[count] = deliverAtMs;
    }
    count++;
  }

  void add(OutgoingMessage message) {
    add(
        message.payloadBytes(),
        message.keyBytes(),
        message.packedAttributes(),
        message.deliverAtMs());
  }

  int columns() {
    return (keys == null ? 0 : Wire.KEY_COLUMN)
        | (attributes == null ? 0 : Wire.ATTRIBUTE_COLUMN)
        | (times == null ? 0 : Wire.TIME_COLUMN);
  }

  /** The body frames. Of one message without columns the lengths may be left out. */
  byte[][] body(boolean brief) {
    byte[] joined = Arrays.copyOf(payloads.items, payloads.used);
    if (brief && count == 1 && columns() == 0) {
      return new byte[][] {joined};
    }
    byte[][] frames = new byte[2 + Integer.bitCount(columns())][];
    frames[0] = Arrays.copyOf(payloads.lengths, LENGTH_BYTES * count);
    frames[1] = joined;
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

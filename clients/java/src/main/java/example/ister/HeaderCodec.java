package example.ister;

import com.upokecenter.cbor.CBORObject;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;

/**
 * The bytes of a header, section 2.2 of PROTOCOL.md: one map from small numbers to plain values. It
 * is written and read here, and not with the CBOR library, because every frame has one; what is
 * nested deeper is left to the library.
 */
final class HeaderCodec {
  private static final int UINT = 0;
  private static final int BYTES = 2;
  private static final int TEXT = 3;
  private static final int LIST = 4;
  private static final int MAP = 5;
  private static final int FALSE = 0xf4;
  private static final int TRUE = 0xf5;

  /** What stands for itself. */
  private static final int SMALL = 24;

  private static final int INSIDE = Cbor.HEADER_DEPTH - 1;

  private HeaderCodec() {}

  // ---- writing

  private static final class Writer {
    private byte[] data = new byte[96];
    private int used;

    private void room(int more) {
      if (used + more > data.length) {
        data = Arrays.copyOf(data, Math.max(2 * data.length, used + more));
      }
    }

    void head(int major, long number) {
      room(9);
      int kind = major << 5;
      if (number >= 0 && number < SMALL) {
        data[used++] = (byte) (kind | (int) number);
        return;
      }
      int wide = 0; // log2 of the bytes that follow
      if (number < 0 || number > 0xffff_ffffL) {
        wide = 3;
      } else if (number > 0xffff) {
        wide = 2;
      } else if (number > 0xff) {
        wide = 1;
      }
      data[used++] = (byte) (kind | SMALL + wide);
      for (int shift = (8 << wide) - 8; shift >= 0; shift -= 8) {
        data[used++] = (byte) (number >>> shift);
      }
    }

    void raw(byte[] bytes) {
      room(bytes.length);
      System.arraycopy(bytes, 0, data, used, bytes.length);
      used += bytes.length;
    }

    void value(Object value) {
      if (value instanceof Long number) {
        head(UINT, number);
      } else if (value instanceof String text) {
        Cbor.checkText(text);
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        head(TEXT, bytes.length);
        raw(bytes);
      } else if (value instanceof Boolean flag) {
        room(1);
        data[used++] = (byte) (flag ? TRUE : FALSE);
      } else if (value instanceof long[] numbers) {
        head(LIST, numbers.length);
        for (long number : numbers) {
          head(UINT, number);
        }
      } else if (value instanceof byte[] bytes) {
        head(BYTES, bytes.length);
        raw(bytes);
      } else if (value instanceof CBORObject ready) {
        raw(Cbor.encode(ready));
      } else {
        raw(Cbor.encode(Cbor.of(value)));
      }
    }
  }

  /** Writes the values that are there; their places are their keys. */
  static byte[] encode(Object[] values) {
    int count = 0;
    for (Object value : values) {
      count += value == null ? 0 : 1;
    }
    Writer writer = new Writer();
    writer.head(MAP, count);
    for (int key = 0; key < values.length; key++) {
      if (values[key] != null) {
        writer.head(UINT, key);
        writer.value(values[key]);
      }
    }
    return Arrays.copyOf(writer.data, writer.used);
  }

  // ---- reading

  private static final class Reader {
    private final byte[] data;
    private int at;

    Reader(byte[] data) {
      this.data = data;
    }

    int major() {
      if (at >= data.length) {
        throw early();
      }
      return (data[at] & 0xff) >> 5;
    }

    /** The number in the head of an item, of any width. */
    long head() {
      int small = data[at++] & 0x1f;
      if (small < SMALL) {
        return small;
      } else if (small > SMALL + 3) {
        throw IsterException.malformed("a CBOR value has an indefinite or unknown length");
      }
      int wide = 1 << small - SMALL;
      if (wide > data.length - at) {
        throw early();
      }
      long number = 0;
      for (int i = 0; i < wide; i++) {
        number = number << 8 | data[at++] & 0xff;
      }
      return number;
    }

    long uint(int key) {
      if (major() != UINT) {
        throw wrongKind(key);
      }
      return head();
    }

    /** The length of an item that has at least so many bytes for each. */
    int length(int key, int major) {
      if (major() != major) {
        throw wrongKind(key);
      }
      long length = head();
      if (length < 0 || length > data.length - at) {
        throw IsterException.malformed("a CBOR value is longer than what holds it");
      }
      return (int) length;
    }

    byte[] bytes(int key) {
      int length = length(key, BYTES);
      at += length;
      return Arrays.copyOfRange(data, at - length, at);
    }

    String text(int key) {
      int length = length(key, TEXT);
      at += length;
      int seen = 0;
      for (int i = at - length; i < at; i++) {
        seen |= data[i];
      }
      if (seen >= 0) {
        return new String(data, at - length, length, StandardCharsets.ISO_8859_1);
      }
      try {
        ByteBuffer letters = ByteBuffer.wrap(data, at - length, length);
        return StandardCharsets.UTF_8.newDecoder().decode(letters).toString();
      } catch (CharacterCodingException wrong) {
        throw IsterException.malformed("a text is not UTF-8");
      }
    }

    long[] uints(int key) {
      long[] numbers = new long[length(key, LIST)];
      for (int i = 0; i < numbers.length; i++) {
        numbers[i] = uint(key);
      }
      return numbers;
    }

    boolean flag(int key) {
      major();
      int said = data[at++] & 0xff;
      if (said != TRUE && said != FALSE) {
        throw wrongKind(key);
      }
      return said == TRUE;
    }

    /** What is nested, or unknown: read by the library. */
    CBORObject other() {
      int end = Cbor.over(data, at, INSIDE);
      CBORObject value = Cbor.decode(Arrays.copyOfRange(data, at, end), INSIDE);
      at = end;
      return value;
    }

    Object known(int key, Header.Kind kind) {
      int major = major();
      switch (kind) {
        case UINT:
          return uint(key);
        case TEXT:
          return text(key);
        case SECRET:
          byte[] bytes = bytes(key);
          if (bytes.length != Wire.SECRET_BYTES) {
            throw wrongKind(key);
          }
          return bytes;
        case BOOL:
          return flag(key);
        case PAIRS:
          long[] pairs = uints(key);
          if (pairs.length % 2 != 0) {
            throw wrongKind(key);
          }
          return pairs;
        case UINT_OR_UINTS:
          return major == LIST ? uints(key) : (Object) uint(key);
        case UINT_OR_TEXT:
          return major == TEXT ? text(key) : (Object) uint(key);
        default:
          if (major != MAP) {
            throw wrongKind(key);
          }
          return other();
      }
    }
  }

  private static IsterException early() {
    return IsterException.malformed("a CBOR value ends early");
  }

  static IsterException wrongKind(int key) {
    return IsterException.malformed("key %d of a frame has a value of another kind".formatted(key));
  }

  /** Reads the values of the keys that are known; throws {@code malformed}. */
  static Object[] decode(byte[] frame) {
    if (frame.length == 0 || frame.length > Wire.HEADER_BYTES_MAX) {
      throw IsterException.malformed(
          "a header has 1 to %d bytes, not %d".formatted(Wire.HEADER_BYTES_MAX, frame.length));
    }
    Reader reader = new Reader(frame);
    if (reader.major() != MAP) {
      throw IsterException.malformed("a header is a map");
    }
    Object[] values = new Object[Wire.KEYS];
    Set<Long> unknown = null;
    for (int left = reader.length(Wire.TYPE, MAP); left > 0; left--) {
      if (reader.major() != UINT) {
        throw IsterException.malformed("the keys of a header are unsigned integers");
      }
      long key = reader.head();
      boolean twice;
      if (key >= 0 && key < Wire.KEYS) {
        twice = values[(int) key] != null;
        values[(int) key] = reader.known((int) key, Header.kindOf((int) key));
      } else {
        unknown = unknown == null ? new HashSet<>() : unknown;
        twice = !unknown.add(key);
        reader.other();
      }
      if (twice) {
        throw IsterException.malformed("a key of a header comes twice");
      }
    }
    if (reader.at != frame.length) {
      throw IsterException.malformed("something lies behind a CBOR value");
    }
    return values;
  }
}

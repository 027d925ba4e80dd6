package example.ister;

import com.upokecenter.cbor.CBORObject;
import com.upokecenter.cbor.CBORType;
import java.util.Map;

/**
 * A frame's header: numbers as longs without a sign, text, bytes, flags, lists of numbers, maps.
 */
final class Header {
  private enum Kind {
    UINT,
    TEXT,
    BYTES,
    BOOL,
    PAIRS,
    MAP,
    UINT_OR_UINTS,
    UINT_OR_TEXT,
    TEXT_MAP
  }

  private static final Kind[] KINDS = new Kind[Wire.KEYS];
  private static final int[][] REQUIRED = new int[Wire.EVENT + 1][];
  private static final CBORObject[] NAMES = new CBORObject[Wire.KEYS];

  static {
    for (int key = 0; key < Wire.KEYS; key++) {
      KINDS[key] = Kind.UINT;
      NAMES[key] = CBORObject.FromObject(key);
    }
    for (int key :
        new int[] {
          Wire.TOPIC,
          Wire.SUBSCRIPTION,
          Wire.REASON,
          Wire.CODE,
          Wire.TEXT,
          Wire.ACTION,
          Wire.ENDPOINT,
          Wire.SUBSCRIPTION_TYPE,
          Wire.OPERATION,
          Wire.CLIENT,
          Wire.STRATEGY,
          Wire.INSTANCE
        }) {
      KINDS[key] = Kind.TEXT;
    }
    for (int key : new int[] {Wire.RESUMED, Wire.CLOSED, Wire.SPARSE, Wire.FORCE, Wire.SINGLY}) {
      KINDS[key] = Kind.BOOL;
    }
    for (int key : new int[] {Wire.TIMESTAMPS, Wire.RANGES, Wire.RECEIPTS}) {
      KINDS[key] = Kind.PAIRS;
    }
    KINDS[Wire.SESSION] = Kind.BYTES;
    KINDS[Wire.LIMITS] = Kind.MAP;
    KINDS[Wire.ARGUMENTS] = Kind.TEXT_MAP;
    KINDS[Wire.VERSION] = Kind.UINT_OR_UINTS;
    KINDS[Wire.START] = Kind.UINT_OR_TEXT;

    require(Wire.WELCOME, Wire.VERSION, Wire.SESSION, Wire.BOOT, Wire.LIMITS, Wire.HEARTBEAT);
    require(Wire.OPENED, Wire.REF, Wire.HANDLE);
    require(Wire.RECEIPT, Wire.HANDLE, Wire.RECEIPTS);
    require(Wire.DELIVER, Wire.HANDLE, Wire.OFFSET, Wire.COUNT, Wire.TIMESTAMPS);
    require(Wire.ERROR, Wire.CODE, Wire.TEXT, Wire.ACTION);
    require(Wire.MOVED, Wire.REF, Wire.HANDLE, Wire.ENDPOINT);
    require(Wire.RESULT, Wire.REF);
    require(Wire.DONE, Wire.REF);
    require(Wire.PONG);
    require(Wire.EVENT, Wire.HANDLE, Wire.CODE);
    // what clients say, so that tests can read it
    require(Wire.HELLO, Wire.VERSION);
    require(Wire.BYE);
    require(Wire.PING);
    require(Wire.OPEN_PRODUCER, Wire.REF, Wire.HANDLE, Wire.TOPIC, Wire.PRODUCER);
    require(Wire.PUBLISH, Wire.HANDLE, Wire.SEQUENCE);
    require(Wire.CLOSE, Wire.REF, Wire.HANDLE);
    require(
        Wire.OPEN_CONSUMER,
        Wire.REF,
        Wire.HANDLE,
        Wire.TOPIC,
        Wire.SUBSCRIPTION,
        Wire.SUBSCRIPTION_TYPE,
        Wire.MESSAGES,
        Wire.BYTES);
    require(Wire.CREDIT, Wire.HANDLE, Wire.MESSAGES, Wire.BYTES);
    require(Wire.ACK, Wire.HANDLE, Wire.RANGES);
    require(Wire.NACK, Wire.HANDLE, Wire.RANGES);
    require(Wire.EXTEND, Wire.HANDLE, Wire.RANGES);
    require(Wire.ACK_UNTIL, Wire.HANDLE, Wire.OFFSET);
    require(Wire.REQUEST, Wire.REF, Wire.OPERATION);
  }

  private static void require(int type, int... keys) {
    REQUIRED[type] = keys;
  }

  private final Object[] values = new Object[Wire.KEYS];

  Header(int type) {
    values[Wire.TYPE] = (long) type;
  }

  private Header() {}

  // ---- writing

  Header with(int key, long value) {
    values[key] = value;
    return this;
  }

  Header with(int key, Object value) {
    values[key] = value;
    return this;
  }

  byte[] encode() {
    CBORObject map = CBORObject.NewOrderedMap();
    for (int key = 0; key < Wire.KEYS; key++) {
      Object value = values[key];
      if (value != null) {
        map.set(NAMES[key], cbor(value));
      }
    }
    byte[] data = Cbor.encode(map);
    if (data.length > Wire.HEADER_BYTES_MAX) {
      throw IsterException.invalid(
          "a header of %d bytes is over the protocol's %d: shorten names or options"
              .formatted(data.length, Wire.HEADER_BYTES_MAX));
    }
    return data;
  }

  private static CBORObject cbor(Object value) {
    if (value instanceof Long number) {
      return Cbor.ofUint(number);
    } else if (value instanceof long[] numbers) {
      CBORObject list = CBORObject.NewArray();
      for (long number : numbers) {
        list.Add(Cbor.ofUint(number));
      }
      return list;
    } else if (value instanceof byte[] bytes) {
      return CBORObject.FromObject(bytes);
    } else if (value instanceof CBORObject ready) {
      return ready;
    }
    return Cbor.of(value);
  }

  // ---- reading

  /**
   * Reads a header strictly, as section 2 says; throws {@code malformed} or {@code
   * unknown-operation}.
   */
  static Header decode(byte[] frame) {
    if (frame.length == 0 || frame.length > Wire.HEADER_BYTES_MAX) {
      throw IsterException.malformed(
          "a header has 1 to %d bytes, not %d".formatted(Wire.HEADER_BYTES_MAX, frame.length));
    }
    if ((frame[0] & 0xff) >> 5 != 5) {
      throw IsterException.malformed("a header is a map");
    }
    CBORObject map = Cbor.decode(frame, Cbor.HEADER_DEPTH);
    Header header = new Header();
    for (Map.Entry<CBORObject, CBORObject> entry : map.getEntries()) {
      if (!Cbor.isUint(entry.getKey())) {
        throw IsterException.malformed("the keys of a header are unsigned integers");
      }
      long key = Cbor.uint(entry.getKey());
      if (key >= 0 && key < Wire.KEYS) {
        header.values[(int) key] = known((int) key, entry.getValue());
      }
    }
    if (header.values[Wire.TYPE] == null) {
      throw IsterException.malformed("a header has no type");
    }
    long type = header.uint(Wire.TYPE);
    int[] required = type < 0 || type >= REQUIRED.length ? null : REQUIRED[(int) type];
    if (required == null) {
      throw new IsterException("unknown-operation", Action.STOP, "a frame of an unknown type");
    }
    for (int key : required) {
      if (header.values[key] == null) {
        throw IsterException.malformed("a frame of type %d lacks key %d".formatted(type, key));
      }
    }
    return header;
  }

  private static Object known(int key, CBORObject value) {
    Kind kind = KINDS[key];
    CBORType type = value.getType();
    switch (kind) {
      case UINT:
        if (Cbor.isUint(value)) {
          return Cbor.uint(value);
        }
        break;
      case TEXT:
        if (type == CBORType.TextString) {
          return value.AsString();
        }
        break;
      case BYTES:
        if (type == CBORType.ByteString && value.GetByteString().length == 16) {
          return value.GetByteString();
        }
        break;
      case BOOL:
        if (type == CBORType.Boolean) {
          return value.AsBoolean();
        }
        break;
      case PAIRS:
        if (type == CBORType.Array && value.size() % 2 == 0) {
          return numbers(key, value);
        }
        break;
      case MAP:
        if (type == CBORType.Map) {
          return value;
        }
        break;
      case TEXT_MAP:
        if (type == CBORType.Map
            && value.getKeys().stream().allMatch(k -> k.getType() == CBORType.TextString)) {
          return value;
        }
        break;
      case UINT_OR_UINTS:
        if (Cbor.isUint(value)) {
          return Cbor.uint(value);
        } else if (type == CBORType.Array) {
          return numbers(key, value);
        }
        break;
      case UINT_OR_TEXT:
        if (Cbor.isUint(value)) {
          return Cbor.uint(value);
        } else if (type == CBORType.TextString) {
          return value.AsString();
        }
        break;
    }
    throw wrongKind(key);
  }

  private static long[] numbers(int key, CBORObject list) {
    long[] found = new long[list.size()];
    int at = 0;
    for (CBORObject each : list.getValues()) {
      if (!Cbor.isUint(each)) {
        throw wrongKind(key);
      }
      found[at++] = Cbor.uint(each);
    }
    return found;
  }

  private static IsterException wrongKind(int key) {
    return IsterException.malformed("key %d of a frame has a value of another kind".formatted(key));
  }

  int type() {
    return (int) uint(Wire.TYPE);
  }

  boolean has(int key) {
    return values[key] != null;
  }

  /** The number of a key, without a sign; 0 where it is not there. */
  long uint(int key) {
    return values[key] instanceof Long number ? number : 0;
  }

  String text(int key) {
    return values[key] instanceof String text ? text : "";
  }

  boolean flag(int key) {
    return values[key] instanceof Boolean flag && flag;
  }

  byte[] bytes(int key) {
    return (byte[]) values[key];
  }

  long[] uints(int key) {
    return values[key] instanceof long[] numbers ? numbers : new long[0];
  }

  /** A limit of WELCOME, or what counts without it. */
  long limit(int number, long otherwise) {
    CBORObject said = ((CBORObject) values[Wire.LIMITS]).GetOrDefault(number, null);
    if (said == null || !Cbor.isUint(said)) {
      return otherwise;
    }
    long value = Cbor.uint(said);
    return value < 0 ? Long.MAX_VALUE : value;
  }

  /** What an ERROR says. */
  IsterException error() {
    return new IsterException.Refused(
        text(Wire.CODE), Action.of(text(Wire.ACTION)), text(Wire.TEXT));
  }

  Object value(int key) {
    return values[key];
  }
}

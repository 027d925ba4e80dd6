package example.ister;

import com.upokecenter.cbor.CBORObject;
import com.upokecenter.cbor.CBORType;

/**
 * A frame's header: numbers as longs without a sign, text, bytes, flags, lists of numbers, maps.
 */
final class Header {
  /** What the value of a key is. */
  enum Kind {
    UINT,
    TEXT,
    SECRET,
    BOOL,
    PAIRS,
    MAP,
    UINT_OR_UINTS,
    UINT_OR_TEXT
  }

  private static final Kind[] KINDS = new Kind[Wire.KEYS];
  private static final int[][] REQUIRED = new int[Wire.EVENT + 1][];

  static {
    for (int key = 0; key < Wire.KEYS; key++) {
      KINDS[key] = Kind.UINT;
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
    KINDS[Wire.SESSION] = Kind.SECRET;
    KINDS[Wire.LIMITS] = Kind.MAP;
    KINDS[Wire.ARGUMENTS] = Kind.MAP;
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

  static Kind kindOf(int key) {
    return KINDS[key];
  }

  private final Object[] values;

  Header(int type) {
    values = new Object[Wire.KEYS];
    values[Wire.TYPE] = (long) type;
  }

  private Header(Object[] values) {
    this.values = values;
  }

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
    byte[] data = HeaderCodec.encode(values);
    if (data.length > Wire.HEADER_BYTES_MAX) {
      throw IsterException.invalid(
          "a header of %d bytes is over the protocol's %d: shorten names or options"
              .formatted(data.length, Wire.HEADER_BYTES_MAX));
    }
    return data;
  }

  // ---- reading

  /**
   * Reads a header strictly, as section 2 says; throws {@code malformed} or {@code
   * unknown-operation}.
   */
  static Header decode(byte[] frame) {
    Header header = new Header(HeaderCodec.decode(frame));
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
    if (header.values[Wire.ARGUMENTS] instanceof CBORObject arguments
        && !arguments.getKeys().stream().allMatch(key -> key.getType() == CBORType.TextString)) {
      throw HeaderCodec.wrongKind(Wire.ARGUMENTS);
    }
    return header;
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

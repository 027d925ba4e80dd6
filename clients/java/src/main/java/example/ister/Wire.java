package example.ister;

import java.nio.charset.StandardCharsets;

/** The numbers of the protocol: PROTOCOL.md, sections 3, 4 and 12. */
final class Wire {
  private Wire() {}

  // frame types
  static final int HELLO = 1;
  static final int BYE = 2;
  static final int PING = 3;
  static final int OPEN_PRODUCER = 4;
  static final int PUBLISH = 5;
  static final int CLOSE = 6;
  static final int OPEN_CONSUMER = 7;
  static final int CREDIT = 8;
  static final int ACK = 9;
  static final int NACK = 10;
  static final int ACK_UNTIL = 11;
  static final int REQUEST = 12;
  static final int EXTEND = 13;
  static final int WELCOME = 33;
  static final int OPENED = 34;
  static final int RECEIPT = 35;
  static final int DELIVER = 36;
  static final int ERROR = 37;
  static final int MOVED = 38;
  static final int RESULT = 39;
  static final int DONE = 40;
  static final int PONG = 41;
  static final int EVENT = 42;

  // header keys
  static final int TYPE = 0;
  static final int REF = 1;
  static final int HANDLE = 2;
  static final int TOPIC = 3;
  static final int SUBSCRIPTION = 4;
  static final int SEQUENCE = 5;
  static final int OFFSET = 6;
  static final int COUNT = 7;
  static final int COLUMNS = 8;
  static final int TIMESTAMPS = 9;
  static final int ATTEMPT = 10;
  static final int MESSAGES = 11;
  static final int BYTES = 12;
  static final int RANGES = 13;
  static final int DELAY = 14;
  static final int REASON = 15;
  static final int CODE = 16;
  static final int TEXT = 17;
  static final int ACTION = 18;
  static final int ENDPOINT = 19;
  static final int SESSION = 20;
  static final int BOOT = 21;
  static final int VERSION = 22;
  static final int LIMITS = 23;
  static final int ARGUMENTS = 24;
  static final int PRODUCER = 25;
  static final int START = 26;
  static final int RECEIPTS = 27;
  static final int SUBSCRIPTION_TYPE = 28;
  static final int PRIORITY = 29;
  static final int OPERATION = 30;
  static final int CLIENT = 31;
  static final int RESUMED = 32;
  static final int HEARTBEAT = 33;
  static final int CLOSED = 34;
  static final int STRATEGY = 35;
  static final int SPARSE = 36;
  static final int FORCE = 37;
  static final int TAKEN = 38;
  static final int SINGLY = 39;
  static final int INSTANCE = 40;
  static final int SOUGHT = 41;
  static final int KEYS = 42; // how many there are

  // columns
  static final int KEY_COLUMN = 1;
  static final int ATTRIBUTE_COLUMN = 2;
  static final int TIME_COLUMN = 4;

  static final int HEADER_BYTES_MAX = 8192;
  static final int SECRET_BYTES = 16;
  static final int RANGES_MAX = 400;
  static final int REASON_CHARACTERS_MAX = 200;
  static final int PROTOCOL_VERSION = 1;
  static final long OFFSET_UNKNOWN =
      -1L; // 2^64-1: numbers of 64 bits are longs without a sign here

  /** The id of a named producer: the same in every language. */
  static long producerId(String topic, String name) {
    long id = Blake2b.digest((topic + "\0" + name).getBytes(StandardCharsets.UTF_8)) >>> 1;
    return id == 0 ? 1 : id;
  }
}

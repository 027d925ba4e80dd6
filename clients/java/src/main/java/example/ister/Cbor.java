package example.ister;

import com.upokecenter.cbor.CBOREncodeOptions;
import com.upokecenter.cbor.CBORException;
import com.upokecenter.cbor.CBORObject;
import com.upokecenter.cbor.CBORType;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * CBOR as the protocol allows it. The library reads more than that (indefinite lengths, tags, any
 * depth), so what comes is looked over before it is decoded.
 */
final class Cbor {
  static final int HEADER_DEPTH = 4;
  static final int BODY_DEPTH = 8;
  private static final CBOREncodeOptions STRICT =
      new CBOREncodeOptions(
          "allowduplicatekeys=false;resolvereferences=false;useindeflengthstrings=false");

  private Cbor() {}

  /** Decodes one item with nothing behind it; throws {@code malformed}. */
  static CBORObject decode(byte[] data, int depth) {
    if (over(data, 0, depth) != data.length) {
      throw IsterException.malformed("something lies behind a CBOR value");
    }
    try {
      return CBORObject.DecodeFromBytes(data, STRICT);
    } catch (CBORException refused) {
      throw IsterException.malformed("this is no CBOR: " + refused.getMessage());
    }
  }

  static byte[] encode(CBORObject value) {
    return value.EncodeToBytes(STRICT);
  }

  /** Returns where the item at a place ends. */
  static int over(byte[] data, int at, int depth) {
    if (at >= data.length) {
      throw IsterException.malformed("a CBOR value ends early");
    }
    int major = (data[at] & 0xff) >> 5;
    int small = data[at] & 0x1f;
    if (small > 27) {
      throw IsterException.malformed("a CBOR value has an indefinite or unknown length");
    }
    if (major == 6) {
      throw IsterException.malformed("a CBOR value has a tag");
    }
    int wide = small < 24 ? 0 : 1 << (small - 24);
    if (at + 1 + wide > data.length) {
      throw IsterException.malformed("a CBOR value ends early");
    }
    long argument = small;
    if (wide > 0) {
      argument = 0;
      for (int i = 1; i <= wide; i++) {
        argument = argument << 8 | data[at + i] & 0xff;
      }
    }
    int next = at + 1 + wide;
    if (major < 2 || major == 7) {
      return next;
    }
    if (argument < 0 || argument > data.length - next) {
      throw IsterException.malformed("a CBOR value is longer than what holds it");
    }
    if (major < 4) {
      return next + (int) argument;
    }
    if (depth == 0) {
      throw IsterException.malformed("CBOR is nested too deep");
    }
    for (long left = major == 5 ? 2 * argument : argument; left > 0; left--) {
      next = over(data, next, depth - 1);
    }
    return next;
  }

  static boolean isUint(CBORObject value) {
    if (value.getType() != CBORType.Integer) {
      return false;
    }
    return value.CanValueFitInInt64()
        ? value.AsInt64Value() >= 0
        : value.AsEIntegerValue().signum() > 0;
  }

  /** A number of 64 bits, as a long without a sign. */
  static long uint(CBORObject value) {
    return value.CanValueFitInInt64()
        ? value.AsInt64Value()
        : value.AsEIntegerValue().ToInt64Unchecked();
  }

  /** A value as Java has it: numbers are Long, or Double, or BigInteger where they do not fit. */
  static Object plain(CBORObject value) {
    if (value == null || value.isNull() || value.isUndefined()) {
      return null;
    }
    switch (value.getType()) {
      case Boolean:
        return value.AsBoolean();
      case Integer:
        return value.CanValueFitInInt64()
            ? (Object) value.AsInt64Value()
            : new java.math.BigInteger(value.AsEIntegerValue().toString());
      case FloatingPoint:
        return value.AsDoubleValue();
      case TextString:
        return value.AsString();
      case ByteString:
        return value.GetByteString();
      case Array:
        List<Object> list = new ArrayList<>(value.size());
        for (CBORObject each : value.getValues()) {
          list.add(plain(each));
        }
        return list;
      case Map:
        Map<String, Object> map = new LinkedHashMap<>();
        for (Map.Entry<CBORObject, CBORObject> each : value.getEntries()) {
          CBORObject key = each.getKey();
          map.put(
              key.getType() == CBORType.TextString ? key.AsString() : key.toString(),
              plain(each.getValue()));
        }
        return map;
      default:
        throw IsterException.malformed("a CBOR value is of a kind that the protocol has not");
    }
  }

  /** The CBOR of what a program may give as an argument. */
  static CBORObject of(Object value) {
    if (value instanceof String text) {
      return text(text);
    } else if (value instanceof Boolean flag) {
      return CBORObject.FromObject((boolean) flag);
    } else if (value instanceof Long
        || value instanceof Integer
        || value instanceof Short
        || value instanceof Byte) {
      return CBORObject.FromObject(((Number) value).longValue());
    } else if (value instanceof List<?> list) {
      CBORObject made = CBORObject.NewArray();
      list.forEach(each -> made.Add(of(each)));
      return made;
    } else if (value instanceof Map<?, ?> map) {
      CBORObject made = CBORObject.NewOrderedMap();
      map.forEach((key, each) -> made.set(text(key.toString()), of(each)));
      return made;
    }
    throw IsterException.invalid(
        "an argument may be text, a whole number, a flag, a list or a map, not " + value);
  }

  static CBORObject text(String text) {
    checkText(text);
    return CBORObject.FromObject(text);
  }

  /** Refuses what no UTF-8 can say, and Java's encoder replaces in silence. */
  static void checkText(String text) {
    for (int i = 0; i < text.length(); i++) {
      if (Character.isSurrogate(text.charAt(i))) {
        boolean pair =
            Character.isHighSurrogate(text.charAt(i))
                && i + 1 < text.length()
                && Character.isLowSurrogate(text.charAt(i + 1));
        if (!pair) {
          throw IsterException.invalid("this text is not valid Unicode (a lone surrogate)");
        }
        i++;
      }
    }
  }

  static Map<String, String> texts(CBORObject value) {
    if (value.getType() != CBORType.Map) {
      throw IsterException.malformed("attributes are a map of text to text");
    }
    Map<String, String> found = new LinkedHashMap<>();
    for (Map.Entry<CBORObject, CBORObject> each : value.getEntries()) {
      if (each.getKey().getType() != CBORType.TextString
          || each.getValue().getType() != CBORType.TextString) {
        throw IsterException.malformed("attributes are a map of text to text");
      }
      found.put(each.getKey().AsString(), each.getValue().AsString());
    }
    return found;
  }
}

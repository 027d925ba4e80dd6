package example.ister;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;

/** What a broker knows of something; PROTOCOL.md, section 10, names the members. */
public final class Info {
  private final Map<String, Object> members;

  Info(Map<String, Object> members) {
    this.members = Collections.unmodifiableMap(members);
  }

  static Info of(byte[] body) {
    if (Cbor.plain(Cbor.decode(body, Cbor.BODY_DEPTH)) instanceof Map<?, ?> map) {
      return of(map);
    }
    throw IsterException.malformed("a result is a map");
  }

  private static Info of(Map<?, ?> map) {
    Map<String, Object> named = new java.util.LinkedHashMap<>();
    map.forEach((name, value) -> named.put((String) name, value));
    return new Info(named);
  }

  /** Every member: text, Long, BigInteger, Double, Boolean, byte[], List, Map or null. */
  public Map<String, Object> members() {
    return members;
  }

  /** A member that is text; "" where it is not there. */
  public String text(String name) {
    return members.get(name) instanceof String text ? text : "";
  }

  /** A member that is a number; 0 where it is not there. */
  public long number(String name) {
    return members.get(name) instanceof Number number ? number.longValue() : 0;
  }

  /** A member that is a flag, or 1. */
  public boolean flag(String name) {
    return Boolean.TRUE.equals(members.get(name)) || number(name) == 1;
  }

  /** A member that is a map; an empty one where it is not there. */
  public Info map(String name) {
    return members.get(name) instanceof Map<?, ?> map ? of(map) : new Info(Map.of());
  }

  /** A member that is a list of maps; empty where it is not there. */
  public List<Info> list(String name) {
    List<Info> found = new ArrayList<>();
    if (members.get(name) instanceof List<?> list) {
      for (Object each : list) {
        if (each instanceof Map<?, ?> map) {
          found.add(of(map));
        }
      }
    }
    return found;
  }

  @Override
  public String toString() {
    return members.toString();
  }
}

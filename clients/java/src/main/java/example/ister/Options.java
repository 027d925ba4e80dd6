package example.ister;

import java.time.Duration;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;

/** Named values that are sent to a broker; immutable. */
abstract sealed class Options<O extends Options<O>> permits TopicOptions, SubscriptionOptions {
  private final Map<String, Object> arguments;

  Options(Map<String, Object> arguments) {
    this.arguments = Collections.unmodifiableMap(arguments);
  }

  abstract O made(Map<String, Object> all);

  /** Any option, by its name in PROTOCOL.md: a text, a whole number or a flag. */
  public O set(String name, Object value) {
    Map<String, Object> all = new LinkedHashMap<>(arguments);
    all.put(name, value);
    return made(all);
  }

  O set(String name, Duration value) {
    return set(name, (Object) value.toMillis());
  }

  Map<String, Object> arguments() {
    return arguments;
  }
}

package example.ister;

import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.BiConsumer;

/** Asks a broker about topics and subscriptions: PROTOCOL.md, section 10. */
public final class Admin {
  private static final long VERIFY_POLL_MS = 200;

  private final IsterClient client;
  private final Duration timeout;

  Admin(IsterClient client, Duration timeout) {
    this.client = client;
    this.timeout = timeout;
  }

  private Info ask(String operation, Map<String, Object> arguments) throws InterruptedException {
    return Info.of(client.await(client.ask(operation, arguments), timeout));
  }

  /** Makes something; a request that was sent twice may have made it the first time. */
  private Info create(
      String operation,
      String exists,
      String show,
      Map<String, Object> about,
      Map<String, Object> arguments)
      throws InterruptedException {
    Session.Request request = client.ask(operation, arguments);
    try {
      return Info.of(client.await(request, timeout));
    } catch (IsterException refused) {
      if (request.resent() && refused.code().equals(exists)) {
        return ask(show, about);
      }
      throw refused;
    }
  }

  private void remove(String operation, Map<String, Object> about, Set<String> gone)
      throws InterruptedException {
    Session.Request request = client.ask(operation, about);
    try {
      client.await(request, timeout);
    } catch (IsterException refused) {
      if (!request.resent() || !gone.contains(refused.code())) {
        throw refused;
      }
    }
  }

  private static Map<String, Object> about(String topic) {
    return Map.of("topic", topic);
  }

  private static Map<String, Object> about(String topic, String subscription) {
    return Map.of("topic", topic, "subscription", subscription);
  }

  private static Map<String, Object> with(Map<String, Object> some, Map<String, Object> more) {
    Map<String, Object> all = new LinkedHashMap<>(some);
    all.putAll(more);
    return all;
  }

  /** Creates a reliable topic with the broker's defaults. */
  public Info createTopic(String topic) throws InterruptedException {
    return createTopic(topic, TopicOptions.none());
  }

  /** Creates a topic. */
  public Info createTopic(String topic, TopicOptions options) throws InterruptedException {
    Map<String, Object> arguments = with(Map.of("dispatch", "reliable"), options.arguments());
    return create(
        "topic.create", "topic-exists", "topic.show", about(topic), with(arguments, about(topic)));
  }

  /**
   * Creates a topic, or returns the one that is there, if it is of that dispatch and has the
   * options given here; else {@code topic-exists} or {@code topic-options}.
   */
  public Info ensureTopic(String topic, TopicOptions options) throws InterruptedException {
    Map<String, Object> wanted = with(Map.of("dispatch", "reliable"), options.arguments());
    try {
      return createTopic(topic, options);
    } catch (IsterException refused) {
      if (!refused.code().equals("topic-exists")) {
        throw refused;
      }
      Info there = topic(topic);
      same("topic " + topic, "topic", wanted, there, there.map("settings"));
      return there;
    }
  }

  /** The same of a reliable topic with the broker's defaults. */
  public Info ensureTopic(String topic) throws InterruptedException {
    return ensureTopic(topic, TopicOptions.none());
  }

  /**
   * Creates a subscription, or returns the one that is there, if it is of that type and has the
   * options given here; else {@code subscription-exists} or {@code subscription-options}.
   */
  public Info ensureSubscription(
      String topic,
      String subscription,
      SubscriptionType type,
      Start start,
      SubscriptionOptions options)
      throws InterruptedException {
    try {
      return createSubscription(topic, subscription, type, start, options);
    } catch (IsterException refused) {
      if (!refused.code().equals("subscription-exists")) {
        throw refused;
      }
      Info there = subscription(topic, subscription);
      Map<String, Object> wanted = with(options.arguments(), Map.of("type", type.word()));
      same("subscription " + subscription, "subscription", wanted, there, there.map("options"));
      return there;
    }
  }

  /** Compares what is there with what is wanted; what is not given may be as it is. */
  private static void same(
      String place, String what, Map<String, Object> wanted, Info there, Info settings) {
    Map<String, String> shown =
        Map.of("dispatch", "strategy", "durability", "durability", "type", "type");
    wanted.forEach(
        (name, value) -> {
          boolean fixed = shown.containsKey(name);
          boolean keptNowhere =
              name.equals("durability") && !there.text("strategy").equals("reliable");
          Object has =
              fixed ? there.text(shown.get(name)) : settings.members().getOrDefault(name, 0L);
          boolean equal =
              value instanceof Number number && has instanceof Number other
                  ? number.longValue() == other.longValue()
                  : value.equals(has);
          if (!equal && !keptNowhere) {
            throw new IsterException.Refused(
                what + (fixed ? "-exists" : "-options"),
                Action.FIX,
                "%s already exists with %s %s, not %s".formatted(place, name, has, value));
          }
        });
  }

  /**
   * Has the broker check every byte of a topic's log, for as long as it takes, and returns its
   * report: messages, bytes, segments, and damaged, a list of ranges.
   */
  public Info verifyTopic(String topic) throws InterruptedException {
    return verifyTopic(topic, (done, total) -> {});
  }

  /** The same, and tells from time to time how many bytes are done, and of how many. */
  public Info verifyTopic(String topic, BiConsumer<Long, Long> progress)
      throws InterruptedException {
    long verification = 0;
    while (true) {
      Info told = ask("topic.verify", with(about(topic), Map.of("verification", verification)));
      verification = told.number("verification");
      if (told.members().containsKey("bytes_total")) {
        progress.accept(told.number("bytes"), told.number("bytes_total"));
      }
      if (told.flag("done")) {
        return told.map("report");
      }
      Thread.sleep(VERIFY_POLL_MS);
    }
  }

  /**
   * Lets every subscription of a topic go on behind what is damaged; returns the ranges that are
   * left out now, as {@code skipped}, and how many messages they are.
   */
  public Info repairTopic(String topic) throws InterruptedException {
    return ask("topic.repair", with(about(topic), Map.of("skip_damaged", true)));
  }

  /**
   * Deletes this broker's part of a topic that another broker has taken over; the store is left
   * alone, and the topic does not come back by itself.
   */
  public void forgetTopic(String topic) throws InterruptedException {
    remove("topic.forget", about(topic), Set.of("unknown-topic"));
  }

  /**
   * Claims a topic of the store for this broker, and goes on where its history ends there. What
   * this broker has of it is forgotten first; a broker that has it now is fenced.
   */
  public Info takeoverTopic(String topic) throws InterruptedException {
    try {
      forgetTopic(topic);
    } catch (IsterException refused) {
      if (!refused.code().equals("unknown-topic")) {
        throw refused;
      }
    }
    Session.Request request = client.ask("topic.takeover", about(topic));
    try {
      return Info.of(client.await(request, timeout));
    } catch (IsterException refused) {
      if (refused.code().equals("topic-exists") && (request.resent() || request.retried())) {
        return topic(topic);
      }
      throw refused;
    }
  }

  /** Changes what a reliable topic keeps. */
  public Info updateTopic(String topic, TopicOptions options) throws InterruptedException {
    return ask("topic.update", with(options.arguments(), about(topic)));
  }

  /** What the broker knows of a topic. */
  public Info topic(String topic) throws InterruptedException {
    return ask("topic.show", about(topic));
  }

  /** Every topic, by name. */
  public List<Info> topics() throws InterruptedException {
    return list("topic.list", "topics", "topic", Map.of());
  }

  /** Deletes a topic, its messages and its subscriptions. */
  public void deleteTopic(String topic) throws InterruptedException {
    remove("topic.delete", about(topic), Set.of("unknown-topic"));
  }

  /** Creates a subscription without attaching to it; it begins at the latest message. */
  public Info createSubscription(String topic, String subscription, SubscriptionType type)
      throws InterruptedException {
    return createSubscription(
        topic, subscription, type, Start.latest(), SubscriptionOptions.none());
  }

  /** Creates a subscription without attaching to it. */
  public Info createSubscription(
      String topic,
      String subscription,
      SubscriptionType type,
      Start start,
      SubscriptionOptions options)
      throws InterruptedException {
    Map<String, Object> about = about(topic, subscription);
    Map<String, Object> arguments =
        with(options.arguments(), with(about, Map.of("type", type.word(), "start", start.value())));
    return create(
        "subscription.create", "subscription-exists", "subscription.show", about, arguments);
  }

  /** Changes options of a subscription, for its present consumers too. */
  public Info updateSubscription(String topic, String subscription, SubscriptionOptions options)
      throws InterruptedException {
    return ask("subscription.update", with(options.arguments(), about(topic, subscription)));
  }

  /** Stops delivery from a subscription; consumers stay. */
  public void pause(String topic, String subscription) throws InterruptedException {
    updateSubscription(topic, subscription, SubscriptionOptions.none().paused(true));
  }

  /** Goes on with delivery from a paused subscription. */
  public void resume(String topic, String subscription) throws InterruptedException {
    updateSubscription(topic, subscription, SubscriptionOptions.none().paused(false));
  }

  /** What the broker knows of a subscription. */
  public Info subscription(String topic, String subscription) throws InterruptedException {
    return ask("subscription.show", about(topic, subscription));
  }

  /** Every subscription of a topic, by name. */
  public List<Info> subscriptions(String topic) throws InterruptedException {
    return list("subscription.list", "subscriptions", "subscription", about(topic));
  }

  /** Why messages of a subscription flow, or why they do not. */
  public Info explain(String topic, String subscription) throws InterruptedException {
    return ask("subscription.explain", about(topic, subscription));
  }

  /**
   * Decides what becomes of messages that block a subscription ({@code retry}, {@code drop}, {@code
   * dead-letter}); returns how many they were.
   */
  public long unblock(String topic, String subscription, String action)
      throws InterruptedException {
    Map<String, Object> arguments = with(about(topic, subscription), Map.of("action", action));
    return ask("subscription.unblock", arguments).number("messages");
  }

  /** Moves a subscription; returns the offset of the next message. Its consumers are told. */
  public long seek(String topic, String subscription, Start to) throws InterruptedException {
    return ask("subscription.seek", with(about(topic, subscription), Map.of("to", to.value())))
        .number("position");
  }

  /** Deletes a subscription and its cursor. */
  public void deleteSubscription(String topic, String subscription) throws InterruptedException {
    remove(
        "subscription.delete",
        about(topic, subscription),
        Set.of("unknown-subscription", "unknown-topic"));
  }

  /** How the broker and its processes are doing. */
  public Info status() throws InterruptedException {
    return ask("status", Map.of());
  }

  private List<Info> list(String operation, String many, String one, Map<String, Object> arguments)
      throws InterruptedException {
    List<Info> found = new ArrayList<>();
    Map<String, Object> asked = arguments;
    while (true) {
      Info page = ask(operation, asked);
      List<Info> entries = page.list(many);
      found.addAll(entries);
      if (entries.isEmpty() || !page.flag("more")) {
        return found;
      }
      asked = with(arguments, Map.of("after", entries.get(entries.size() - 1).text(one)));
    }
  }
}

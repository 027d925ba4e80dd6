package example.ister;

import com.upokecenter.cbor.CBORObject;
import com.upokecenter.cbor.CBORType;
import java.io.BufferedInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.PrintStream;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalLong;
import java.util.Set;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** The driver of the Java client; tests/conformance_clients/DRIVER.md says how one works. */
final class Driver {
  private static final List<String> CAPABILITIES =
      List.of(
          "batch",
          "pipeline",
          "keys",
          "attributes",
          "delivery-time",
          "timestamps",
          "attempts",
          "named-producer",
          "batch-receive",
          "confirm",
          "nack",
          "ack-until",
          "extend",
          "reader",
          "seek",
          "priority",
          "force",
          "options",
          "credit",
          "window",
          "events",
          "admin",
          "request-reply",
          "moved",
          "reconnect",
          "heartbeat",
          "orderly-close",
          "cancel",
          "drop",
          "codec",
          "bench",
          "patterns",
          "dead-letters",
          "taken");
  private static final Set<String> NO_OPTIONS =
      Set.of("topic", "subscription", "type", "start", "to", "action");
  private static final HexFormat HEX = HexFormat.of();
  private static final long EXACT = (1L << 53) - 1;
  private static final Duration DEFAULT_TIMEOUT = Duration.ofSeconds(10);

  /** An answer that is no error of the client. */
  private static final class Unfit extends RuntimeException {
    private static final long serialVersionUID = 1L;
    private final String code;
    private final String action;

    Unfit(String code, String action, String text) {
      super(text);
      this.code = code;
      this.action = action;
    }

    static Unfit unknown() {
      return new Unfit("unsupported", "fix", "this driver does not know it");
    }

    static Unfit name(String name) {
      return new Unfit("driver-failed", "stop", "nothing has the name " + name);
    }
  }

  /** Of a message. */
  private record Place(String topic, long offset) {}

  /** A command and its arguments. */
  private record Command(Map<String, Object> all) {
    String text(String name) {
      return all.get(name) instanceof String text ? text : "";
    }

    boolean has(String name) {
      return all.get(name) != null;
    }

    long number(String name, long otherwise) {
      return all.get(name) instanceof Number number ? number.longValue() : otherwise;
    }

    boolean flag(String name) {
      return Boolean.TRUE.equals(all.get(name));
    }

    byte[] bytes(String name) {
      return HEX.parseHex(text(name));
    }

    Duration timeout() {
      return has("timeout_ms") ? Duration.ofMillis(number("timeout_ms", 0)) : DEFAULT_TIMEOUT;
    }

    List<?> list(String name) {
      return all.get(name) instanceof List<?> list ? list : List.of();
    }

    Command map(String name) {
      Map<String, Object> found = new LinkedHashMap<>();
      if (all.get(name) instanceof Map<?, ?> map) {
        map.forEach((key, value) -> found.put((String) key, value));
      }
      return new Command(found);
    }
  }

  private final Map<String, IsterClient> clients = new HashMap<>();
  private final Map<String, Producer> producers = new HashMap<>();
  private final Map<String, Receiver> consumers = new HashMap<>();
  private final Map<String, Receipt> receipts = new HashMap<>();
  private final Map<String, IsterClient> clientOf = new HashMap<>();
  private final Map<String, Map<Place, Message>> held = new HashMap<>();
  private final Map<String, IsterException> late = new HashMap<>();
  private final ScheduledExecutorService timer =
      Executors.newSingleThreadScheduledExecutor(
          task -> {
            Thread made = new Thread(task, "driver-timer");
            made.setDaemon(true);
            return made;
          });

  private Driver() {}

  public static void main(String[] arguments) throws IOException {
    Driver driver = new Driver();
    InputStream in = new BufferedInputStream(System.in, 1 << 16);
    PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    for (byte[] line = line(in); line != null; line = line(in)) {
      out.println(CBORObject.FromObject(json(driver.answer(line))).ToJSONString());
      out.flush();
    }
    driver.clients.values().forEach(IsterClient::close);
  }

  private static byte[] line(InputStream in) throws IOException {
    ByteArrayOutputStream line = new ByteArrayOutputStream();
    int next = in.read();
    while (next >= 0 && next != '\n') {
      line.write(next);
      next = in.read();
    }
    return next < 0 ? null : line.toByteArray();
  }

  private Map<String, Object> answer(byte[] line) {
    long id = 0;
    try {
      Command command = new Command(new LinkedHashMap<>());
      ((Map<?, ?>) Cbor.plain(CBORObject.FromJSONBytes(line)))
          .forEach((name, value) -> command.all().put((String) name, value));
      id = command.number("id", 0);
      ScheduledFuture<?> cancel = null;
      if (command.has("cancel_after_ms")) {
        Thread me = Thread.currentThread();
        cancel =
            timer.schedule(
                me::interrupt, command.number("cancel_after_ms", 0), TimeUnit.MILLISECONDS);
      }
      try {
        return Map.of("id", id, "ok", carryOut(command));
      } finally {
        if (cancel != null) {
          cancel.cancel(false);
        }
        Thread.interrupted();
      }
    } catch (IsterException told) {
      return failure(id, told.code(), told.action().word(), told.getMessage());
    } catch (InterruptedException stopped) {
      return failure(id, "cancelled", "retry", "the call was interrupted");
    } catch (Unfit unfit) {
      return failure(id, unfit.code, unfit.action, unfit.getMessage());
    } catch (RuntimeException failed) {
      failed.printStackTrace();
      return failure(id, "driver-failed", "stop", failed.toString());
    }
  }

  private static Map<String, Object> failure(long id, String code, String action, String text) {
    return Map.of(
        "id", id, "error", Map.of("code", code, "action", action, "text", String.valueOf(text)));
  }

  private static <T> T of(Map<String, T> table, String name) {
    T found = table.get(name);
    if (found == null) {
      throw Unfit.name(name);
    }
    return found;
  }

  private static <T> T gone(Map<String, T> table, String name) {
    T found = table.remove(name);
    if (found == null) {
      throw Unfit.name(name);
    }
    return found;
  }

  private Map<String, Object> carryOut(Command command) throws InterruptedException {
    String what = command.text("do");
    switch (what) {
      case "hello":
        return Map.of(
            "protocol",
            1,
            "language",
            "java",
            "client",
            IsterClient.NAME,
            "capabilities",
            CAPABILITIES);
      case "connect":
        clients.put(
            command.text("client"),
            IsterClient.builder()
                .endpoints(command.list("endpoints").toArray(new String[0]))
                .timeout(command.timeout())
                .connect());
        return Map.of();
      case "close":
        close(command);
        return Map.of();
      case "decode", "decode_batch", "encode_batch", "producer_id":
        return codec(what, command);
      case "publish", "publish_batch", "receipt":
        return publish(what, command);
      case "bench_publish", "bench_receive", "bench_round_trips":
        return bench(what, command);
      case "flush":
        if (command.has("consumer")) {
          ((Consumer) of(consumers, command.text("consumer"))).flush(command.timeout());
        } else {
          of(producers, command.text("producer")).flush(command.timeout());
        }
        return Map.of();
      default:
        if (command.has("client")) {
          return withClient(what, command, of(clients, command.text("client")));
        } else if (command.has("consumer")) {
          return withConsumer(what, command, of(consumers, command.text("consumer")));
        }
        throw Unfit.unknown();
    }
  }

  private void close(Command command) {
    if (command.has("client")) {
      gone(clients, command.text("client")).close(command.timeout());
    } else if (command.has("producer")) {
      gone(producers, command.text("producer")).close(command.timeout());
    } else {
      String name = command.text("consumer");
      held.remove(name);
      late.remove(name);
      gone(consumers, name).close(command.timeout());
    }
  }

  // ---- publishing

  private static OutgoingMessage outgoing(Command told) {
    OutgoingMessage.Builder made = OutgoingMessage.builder(told.bytes("payload"));
    if (told.has("key")) {
      made.key(told.bytes("key"));
    }
    told.map("attributes").all().forEach((name, value) -> made.attribute(name, (String) value));
    if (told.number("deliver_at_ms", 0) > 0) {
      made.deliverAt(Instant.ofEpochMilli(told.number("deliver_at_ms", 0)));
    }
    if (told.has("sequence")) {
      made.sequence(told.number("sequence", 0));
    }
    return made.build();
  }

  private static List<OutgoingMessage> outgoings(Command command) {
    List<OutgoingMessage> made = new ArrayList<>();
    for (Object each : command.list("messages")) {
      made.add(outgoing(new Command(Map.of("message", each)).map("message")));
    }
    return made;
  }

  private Map<String, Object> publish(String what, Command command) throws InterruptedException {
    String name = command.text("receipt");
    if (!what.equals("receipt")) {
      Producer producer = of(producers, command.text("producer"));
      receipts.put(
          name,
          what.equals("publish")
              ? producer.send(outgoing(command.map("message")), command.timeout())
              : producer.sendBatch(outgoings(command), command.timeout()));
      return Map.of();
    }
    Receipt receipt = of(receipts, name);
    try {
      Published published = receipt.get(command.timeout().toMillis(), TimeUnit.MILLISECONDS);
      receipts.remove(name);
      Map<String, Object> told = new HashMap<>();
      told.put("offset", published.offset() < 0 ? null : published.offset());
      told.put("count", published.count());
      told.put("duplicate", published.duplicate());
      return told;
    } catch (TimeoutException over) {
      throw new Unfit("timeout", "retry", "no receipt in time");
    } catch (ExecutionException refused) {
      receipts.remove(name);
      if (refused.getCause() instanceof IsterException told) {
        throw told;
      }
      throw new CompletionException(refused);
    }
  }

  // ---- a client

  private static Start start(Object place) {
    if (place instanceof Number offset) {
      return Start.at(offset.longValue());
    }
    String text = (String) place;
    return switch (text) {
      case "earliest" -> Start.earliest();
      case "latest" -> Start.latest();
      default -> Start.at(Instant.ofEpochMilli(Long.parseLong(text.substring("time:".length()))));
    };
  }

  private static SubscriptionOptions subscriptionOptions(Map<String, Object> told) {
    SubscriptionOptions options = SubscriptionOptions.none();
    for (Map.Entry<String, Object> each : told.entrySet()) {
      if (!NO_OPTIONS.contains(each.getKey())) {
        options = options.set(each.getKey(), each.getValue());
      }
    }
    return options;
  }

  private static TopicOptions topicOptions(Map<String, Object> told) {
    TopicOptions options = TopicOptions.none();
    for (Map.Entry<String, Object> each : told.entrySet()) {
      if (!NO_OPTIONS.contains(each.getKey())) {
        options = options.set(each.getKey(), each.getValue());
      }
    }
    return options;
  }

  private Map<String, Object> withClient(String what, Command command, IsterClient client)
      throws InterruptedException {
    switch (what) {
      case "drop":
        client.drop();
        return Map.of();
      case "events":
        return Map.of(
            "events", client.events().stream().map(event -> Map.of("code", event.code())).toList());
      case "admin":
        Map<String, Object> result = new HashMap<>();
        result.put(
            "result",
            admin(
                command.text("operation"),
                command.map("arguments"),
                client.admin(command.timeout())));
        return result;
      case "producer":
        ProducerOptions producing =
            ProducerOptions.defaults()
                .timeout(command.timeout())
                .windowBytes(command.number("window_bytes", 0));
        if (command.has("name")) {
          producing = producing.name(command.text("name"));
        }
        Producer producer = client.producer(command.text("topic"), producing);
        producers.put(command.text("producer"), producer);
        return Map.of("next_sequence", producer.nextSequence());
      case "consumer", "reader":
        Receiver opened =
            what.equals("reader") ? reader(command, client) : consumer(command, client);
        consumers.put(command.text("consumer"), opened);
        clientOf.put(command.text("consumer"), client);
        held.put(command.text("consumer"), new HashMap<>());
        Map<String, Object> where = new HashMap<>();
        where.put("position", Following.isPattern(opened.topic()) ? null : opened.position());
        return where;
      case "letters", "redrive", "purge":
        return letters(what, command, client);
      case "request":
        Message reply = client.request(command.text("topic"), outgoing(command), command.timeout());
        return Map.of("message", shown(reply));
      default:
        throw Unfit.unknown();
    }
  }

  private static Reader reader(Command command, IsterClient client) throws InterruptedException {
    ReaderOptions options =
        ReaderOptions.defaults()
            .timeout(command.timeout())
            .creditMessages((int) command.number("credit_messages", 0));
    if (command.has("start")) {
      options = options.start(start(command.all().get("start")));
    }
    return client.reader(command.text("topic"), options);
  }

  private static Consumer consumer(Command command, IsterClient client)
      throws InterruptedException {
    ConsumerOptions options =
        ConsumerOptions.defaults()
            .timeout(command.timeout())
            .creditMessages((int) command.number("credit_messages", 0))
            .priority((int) command.number("priority", 0))
            .subscription(subscriptionOptions(command.map("options").all()));
    if (command.has("type")) {
      options = options.type(SubscriptionType.of(command.text("type")));
    }
    if (command.has("start")) {
      options = options.start(start(command.all().get("start")));
    }
    if (command.flag("force")) {
      options = options.force();
    }
    if (command.has("timeout_ms")) {
      options = options.waitForPlace();
    }
    return client.consumer(command.text("topic"), command.text("subscription"), options);
  }

  private static Object admin(String operation, Command arguments, Admin admin)
      throws InterruptedException {
    String topic = arguments.text("topic");
    String subscription = arguments.text("subscription");
    Map<String, Object> all = arguments.all();
    switch (operation) {
      case "topic.create":
        return admin.createTopic(topic, topicOptions(all)).members();
      case "topic.update":
        return admin.updateTopic(topic, topicOptions(all)).members();
      case "topic.show":
        return admin.topic(topic).members();
      case "topic.list":
        return Map.of("topics", admin.topics().stream().map(Info::members).toList());
      case "topic.delete":
        admin.deleteTopic(topic);
        return Map.of();
      case "subscription.create":
        Start start = arguments.has("start") ? start(all.get("start")) : Start.latest();
        SubscriptionType type =
            arguments.has("type")
                ? SubscriptionType.of(arguments.text("type"))
                : SubscriptionType.SHARED;
        return admin
            .createSubscription(topic, subscription, type, start, subscriptionOptions(all))
            .members();
      case "subscription.update":
        return admin.updateSubscription(topic, subscription, subscriptionOptions(all)).members();
      case "subscription.show":
        return admin.subscription(topic, subscription).members();
      case "subscription.list":
        return Map.of(
            "subscriptions", admin.subscriptions(topic).stream().map(Info::members).toList());
      case "subscription.explain":
        return admin.explain(topic, subscription).members();
      case "subscription.unblock":
        return Map.of("messages", admin.unblock(topic, subscription, arguments.text("action")));
      case "subscription.seek":
        return Map.of("position", admin.seek(topic, subscription, start(all.get("to"))));
      case "subscription.delete":
        admin.deleteSubscription(topic, subscription);
        return Map.of();
      case "status":
        return admin.status().members();
      default:
        throw Unfit.unknown();
    }
  }

  private static Map<String, Object> letters(String what, Command command, IsterClient client)
      throws InterruptedException {
    String topic = command.text("topic");
    DeadLetters letters =
        client.deadLetters(topic, command.text("subscription"), command.timeout());
    int most = (int) command.number("max", what.equals("letters") ? 100 : Integer.MAX_VALUE);
    if (what.equals("purge")) {
      return Map.of("messages", letters.purge(most));
    } else if (what.equals("redrive")) {
      String to = command.has("to") ? command.text("to") : topic;
      List<Long> offsets =
          command.list("offsets").stream().map(each -> ((Number) each).longValue()).toList();
      return Map.of(
          "messages",
          command.has("offsets") ? letters.redrive(offsets, to) : letters.redrive(most, to));
    }
    List<Object> told = new ArrayList<>();
    for (DeadLetter letter : letters.list(most)) {
      Map<String, Object> each = new LinkedHashMap<>();
      each.put("offset", letter.offset());
      each.put("payload", HEX.formatHex(letter.payload()));
      each.put("key", letter.key().map(HEX::formatHex).orElse(null));
      each.put("attributes", letter.attributes());
      each.put("topic", letter.topic());
      each.put("subscription", letter.subscription());
      OptionalLong origin = letter.originOffset();
      each.put("origin_offset", origin.isPresent() ? origin.getAsLong() : null);
      each.put("attempts", letter.attempts());
      each.put("reason", letter.reason());
      told.add(each);
    }
    return Map.of("letters", told);
  }

  // ---- receiving

  private static Map<String, Object> shown(Message message) {
    Map<String, Object> told = new LinkedHashMap<>();
    told.put("topic", message.topic());
    told.put("offset", message.offset());
    told.put("payload", HEX.formatHex(message.payload()));
    told.put("key", message.key().map(HEX::formatHex).orElse(null));
    told.put("attributes", message.attributes());
    told.put("timestamp_ms", message.timestamp().toEpochMilli());
    told.put("deliver_at_ms", message.deliverAt().map(Instant::toEpochMilli).orElse(null));
    told.put("attempt", message.attempt());
    return told;
  }

  private Map<String, Object> withConsumer(String what, Command command, Receiver receiver)
      throws InterruptedException {
    String name = command.text("consumer");
    if (what.equals("receive")) {
      return receive(name, command, receiver);
    } else if (what.equals("events")) {
      List<Object> told = new ArrayList<>();
      for (Event event : receiver.events()) {
        Map<String, Object> each = new HashMap<>();
        each.put("code", event.code());
        each.put("count", event.count());
        each.put("offset", event.offset().isPresent() ? event.offset().getAsLong() : null);
        each.put("text", event.text());
        told.add(each);
      }
      return Map.of("events", told);
    }
    Consumer consumer = (Consumer) receiver;
    List<Message> messages = new ArrayList<>();
    Map<Place, Message> mine = held.get(name);
    String topic = command.has("topic") ? command.text("topic") : consumer.topic();
    List<?> offsets =
        what.equals("ack_until") || what.equals("reply")
            ? List.of(command.number("offset", 0))
            : command.list("offsets");
    for (Object offset : offsets) {
      Message message = mine.get(new Place(topic, ((Number) offset).longValue()));
      if (message == null) {
        throw Unfit.name("offset " + offset);
      }
      messages.add(message);
    }
    switch (what) {
      case "ack":
        messages.forEach(message -> mine.remove(placeOf(message)));
        consumer.ack(messages);
        return Map.of();
      case "nack":
        messages.forEach(message -> mine.remove(placeOf(message)));
        Duration delay =
            command.has("delay_ms") ? Duration.ofMillis(command.number("delay_ms", 0)) : null;
        consumer.nack(messages, delay, command.text("reason"));
        return Map.of();
      case "extend":
        consumer.extend(messages);
        return Map.of();
      case "ack_until":
        long last = command.number("offset", 0);
        mine.keySet().removeIf(each -> each.topic().equals(topic) && each.offset() <= last);
        consumer.ackUntil(messages.get(0));
        return Map.of();
      case "seek":
        return Map.of("position", consumer.seek(start(command.all().get("to")), command.timeout()));
      case "reply":
        clientOf.get(name).reply(messages.get(0), outgoing(command));
        return Map.of();
      default:
        throw Unfit.unknown();
    }
  }

  private static Place placeOf(Message message) {
    return new Place(message.topic(), message.offset());
  }

  private Map<String, Object> receive(String name, Command command, Receiver receiver)
      throws InterruptedException {
    IsterException before = late.remove(name);
    if (before != null) {
      throw before;
    }
    int most = (int) command.number("max", 1);
    long end = System.nanoTime() + command.timeout().toNanos();
    List<Object> taken = new ArrayList<>();
    try {
      boolean again = true;
      while (again && taken.size() < most) {
        Duration left = Duration.ofNanos(Math.max(0, end - System.nanoTime()));
        List<Message> came =
            command.flag("batch")
                ? receiver.receiveBatch(most, left)
                : receiver.receive(left).map(List::of).orElse(List.of());
        for (Message message : came) {
          held.get(name).put(placeOf(message), message);
          taken.add(shown(message));
        }
        again = !came.isEmpty() && !command.flag("batch");
      }
    } catch (IsterException failed) {
      if (taken.isEmpty()) {
        throw failed;
      }
      late.put(name, failed);
    } catch (InterruptedException stopped) {
      if (taken.isEmpty()) {
        throw stopped;
      }
    }
    return Map.of("messages", taken);
  }

  // ---- being measured

  private Map<String, Object> bench(String what, Command command) throws InterruptedException {
    int messages = (int) command.number("messages", 1);
    byte[] payload = new byte[(int) command.number("message_bytes", 0)];
    if (what.equals("bench_publish")) {
      Producer producer = of(producers, command.text("producer"));
      return benchPublish(
          producer, messages, payload, (int) command.number("batch", 0), command.timeout());
    }
    Consumer consumer = (Consumer) of(consumers, command.text("consumer"));
    if (what.equals("bench_receive")) {
      return benchReceive(consumer, messages, command.flag("batch"), command.timeout());
    }
    Producer producer = of(producers, command.text("producer"));
    long[] took = new long[messages];
    for (int i = 0; i < messages; i++) {
      long began = System.nanoTime();
      producer.send(payload);
      Message message = consumer.receive(command.timeout()).orElseThrow(() -> missing("a message"));
      took[i] = System.nanoTime() - began;
      consumer.ack(message);
    }
    Arrays.sort(took);
    return Map.of("p50_us", took[messages / 2] / 1e3, "p99_us", took[messages * 99 / 100] / 1e3);
  }

  private static Unfit missing(String what) {
    return new Unfit("timeout", "retry", what + " did not come in time");
  }

  private static Map<String, Object> benchPublish(
      Producer producer, int messages, byte[] payload, int batch, Duration timeout)
      throws InterruptedException {
    long began = System.nanoTime();
    if (batch > 0) {
      for (int first = 0; first < messages; first += batch) {
        producer.sendPayloads(
            Collections.nCopies(Math.min(batch, messages - first), payload), timeout);
      }
    } else {
      for (int i = 0; i < messages; i++) {
        producer.send(payload);
      }
    }
    producer.flush(timeout);
    return Map.of("seconds", (System.nanoTime() - began) / 1e9);
  }

  private static Map<String, Object> benchReceive(
      Consumer consumer, int messages, boolean batch, Duration timeout)
      throws InterruptedException {
    long bytes = 0;
    long began = -1;
    int count = 0;
    while (count < messages) {
      if (batch) {
        List<Message> came = consumer.receiveBatch(Integer.MAX_VALUE, timeout);
        began = began < 0 ? System.nanoTime() : began;
        if (came.isEmpty()) {
          throw missing("a batch");
        }
        for (Message message : came) {
          bytes += message.payload().length;
        }
        consumer.ack(came);
        count += came.size();
      } else {
        Message message = consumer.receive();
        began = began < 0 ? System.nanoTime() : began;
        bytes += message.payload().length;
        if (message.offset() < 0) {
          throw missing("an offset");
        }
        consumer.ack(message);
        count++;
      }
    }
    consumer.flush(timeout);
    return Map.of("seconds", (System.nanoTime() - began) / 1e9, "bytes", bytes);
  }

  // ---- the codec

  private static Map<String, Object> codec(String what, Command command) {
    switch (what) {
      case "decode":
        Header.decode(command.bytes("frame"));
        return Map.of("header", notation(Cbor.decode(command.bytes("frame"), Cbor.HEADER_DEPTH)));
      case "decode_batch":
        byte[][] frames =
            command.list("frames").stream()
                .map(frame -> HEX.parseHex((String) frame))
                .toArray(byte[][]::new);
        return Map.of("messages", cut(Delivery.of(command.number("columns", 0), frames)));
      case "encode_batch":
        Batch batch = new Batch();
        outgoings(command).forEach(batch::add);
        List<String> body = new ArrayList<>();
        for (byte[] frame : batch.body(false)) {
          body.add(HEX.formatHex(frame));
        }
        return Map.of("columns", batch.columns(), "frames", body);
      default:
        return Map.of(
            "id", Long.toString(Wire.producerId(command.text("topic"), command.text("name"))));
    }
  }

  private static List<Object> cut(Delivery delivery) {
    List<Object> told = new ArrayList<>();
    for (int i = 0; i < delivery.count(); i++) {
      Message message = delivery.message(i);
      Map<String, Object> each = new LinkedHashMap<>();
      each.put("payload", HEX.formatHex(message.payload()));
      message.key().ifPresent(key -> each.put("key", HEX.formatHex(key)));
      if (!message.attributes().isEmpty()) {
        each.put("attributes", message.attributes());
      }
      Optional<Instant> due = message.deliverAt();
      due.ifPresent(when -> each.put("deliver_at_ms", when.toEpochMilli()));
      told.add(each);
    }
    return told;
  }

  /** A decoded value as tests/vectors/README.md writes it. */
  private static Object notation(CBORObject value) {
    switch (value.getType()) {
      case Integer:
        BigInteger number = new BigInteger(value.AsEIntegerValue().toString());
        if (number.abs().compareTo(BigInteger.valueOf(EXACT)) <= 0) {
          return number.longValue();
        }
        return Map.of(number.signum() > 0 ? "uint" : "nint", number.toString());
      case ByteString:
        return Map.of("bytes", HEX.formatHex(value.GetByteString()));
      case FloatingPoint:
        return Map.of("float", value.toString());
      case Array:
        return value.getValues().stream().map(Driver::notation).toList();
      case Map:
        Map<String, Object> all = new LinkedHashMap<>();
        for (Map.Entry<CBORObject, CBORObject> each : value.getEntries()) {
          CBORObject key = each.getKey();
          all.put(
              key.getType() == CBORType.TextString ? key.AsString() : key.toString(),
              notation(each.getValue()));
        }
        return all;
      default:
        return Cbor.plain(value);
    }
  }

  /** What JSON can hold of a value. */
  private static Object json(Object value) {
    if (value == null) {
      return CBORObject.Null;
    } else if (value instanceof byte[] bytes) {
      return json(HEX.formatHex(bytes));
    } else if (value instanceof Map<?, ?> map) {
      CBORObject made = CBORObject.NewOrderedMap();
      map.forEach((name, each) -> made.set((String) name, (CBORObject) json(each)));
      return made;
    } else if (value instanceof List<?> list) {
      CBORObject made = CBORObject.NewArray();
      list.forEach(each -> made.Add((CBORObject) json(each)));
      return made;
    } else if (value instanceof Double number && (number.isNaN() || number.isInfinite())) {
      return CBORObject.Null;
    } else if (value instanceof BigInteger number) {
      return CBORObject.FromJSONString(number.toString());
    }
    return CBORObject.FromObject(value);
  }
}

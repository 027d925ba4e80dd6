package example.ister;

import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;

/**
 * Request and reply, section 10.6 of PROTOCOL.md: a convention between clients, over an ephemeral
 * inbox topic.
 */
final class Inbox {
  private static final String REPLY_TO = "ister.reply_to";
  private static final String CORRELATION = "ister.correlation_id";
  private static final int OUTLETS_MAX = 64;
  private static final int CREDIT = 1024;

  /** One inbox topic, as long as its session lasts. */
  private static final class Box {
    final String topic;
    final Reader reader;
    final Map<String, CompletableFuture<Message>> waiting = new ConcurrentHashMap<>();
    volatile boolean gone;

    Box(String topic, Reader reader) {
      this.topic = topic;
      this.reader = reader;
    }
  }

  private final IsterClient client;
  private final Map<String, Producer> outlets = new LinkedHashMap<>(16, 0.75f, true);
  private Box box;

  Inbox(IsterClient client) {
    this.client = client;
  }

  Message request(String topic, OutgoingMessage message, Duration most)
      throws InterruptedException {
    long end = client.now() + IsterClient.nanos(most);
    Box mine = open(most);
    String id = Long.toHexString(ThreadLocalRandom.current().nextLong());
    CompletableFuture<Message> reply = new CompletableFuture<>();
    mine.waiting.put(id, reply);
    try {
      if (mine.gone) {
        throw lost(topic);
      }
      Receipt receipt =
          send(topic, with(message, Map.of(REPLY_TO, mine.topic, CORRELATION, id)), left(end));
      receipt.whenComplete(
          (published, refused) -> {
            if (refused != null) {
              reply.completeExceptionally(refused);
            }
          });
      return client.await(
          reply, left(end), () -> "nobody has answered a request to topic " + topic);
    } finally {
      mine.waiting.remove(id);
    }
  }

  private static IsterException lost(String topic) {
    return new IsterException.ConnectionLost(
        "the session was lost, and with it the reply to a request to topic " + topic);
  }

  private Duration left(long end) {
    return Duration.ofNanos(Math.max(0, end - client.now()));
  }

  void reply(Message to, OutgoingMessage message, Duration most) throws InterruptedException {
    Map<String, String> asked = to.attributes();
    String topic = asked.get(REPLY_TO);
    if (topic == null) {
      throw IsterException.invalid("this message asks for no reply");
    }
    try {
      send(topic, with(message, Map.of(CORRELATION, asked.getOrDefault(CORRELATION, ""))), most);
    } catch (IsterException refused) {
      if (!refused.code().equals("unknown-topic") && !refused.code().equals("topic-deleted")) {
        throw refused;
      }
    }
  }

  private static OutgoingMessage with(OutgoingMessage message, Map<String, String> more) {
    Map<String, String> attributes = new HashMap<>(more);
    if (message.packedAttributes() != null) {
      attributes.putAll(Cbor.texts(Cbor.decode(message.packedAttributes(), Cbor.BODY_DEPTH)));
    }
    return message.withAttributes(attributes);
  }

  /** Sends with a producer that is kept for the next message to the topic. */
  private Receipt send(String topic, OutgoingMessage message, Duration most)
      throws InterruptedException {
    Producer producer;
    List<Producer> tooMany = new ArrayList<>();
    synchronized (this) {
      producer = outlets.get(topic);
    }
    if (producer == null) {
      producer = client.producer(topic, ProducerOptions.defaults().timeout(most));
      synchronized (this) {
        Producer other = outlets.put(topic, producer);
        if (other != null) {
          tooMany.add(other);
        }
        for (Iterator<Producer> each = outlets.values().iterator();
            outlets.size() > OUTLETS_MAX; ) {
          tooMany.add(each.next());
          each.remove();
        }
      }
      tooMany.forEach(this::closeLater);
    }
    try {
      return producer.send(message, most);
    } catch (IsterException failed) {
      if (!(failed instanceof IsterException.Timeout)) {
        synchronized (this) {
          outlets.remove(topic, producer);
        }
        producer.abandon();
      }
      throw failed;
    }
  }

  private void closeLater(Producer producer) {
    CompletableFuture.runAsync(() -> producer.close(Duration.ofSeconds(1)))
        .exceptionally(
            failed -> {
              IsterClient.LOG.log(
                  System.Logger.Level.DEBUG, "a reply may not have been sent", failed);
              return null;
            });
  }

  private synchronized Box open(Duration most) throws InterruptedException {
    if (box != null && !box.gone) {
      return box;
    }
    UUID random = UUID.randomUUID();
    String topic =
        "_inbox/%016x%016x"
            .formatted(random.getMostSignificantBits(), random.getLeastSignificantBits());
    client.admin(most).createTopic(topic, TopicOptions.none().nonReliable().set("ephemeral", 1));
    Reader reader =
        client.reader(
            topic,
            ReaderOptions.defaults().start(Start.latest()).creditMessages(CREDIT).timeout(most));
    Box made = new Box(topic, reader);
    Thread thread = new Thread(() -> read(made), "ister-inbox");
    thread.setDaemon(true);
    thread.start();
    box = made;
    return made;
  }

  private void read(Box mine) {
    IsterException why = null;
    try {
      for (Message message : mine.reader) {
        String id = correlation(message);
        CompletableFuture<Message> reply = id == null ? null : mine.waiting.remove(id);
        if (reply != null) {
          reply.complete(message);
        }
      }
    } catch (IsterException gone) {
      why = gone;
    }
    mine.gone = true;
    String text = why == null ? "the client is closed" : why.getMessage();
    mine.waiting
        .values()
        .forEach(
            reply ->
                reply.completeExceptionally(
                    new IsterException.ConnectionLost(
                        "the session was lost, and with it the reply: " + text)));
    mine.reader.abandon();
  }

  private static String correlation(Message message) {
    try {
      return message.attributes().get(CORRELATION);
    } catch (IsterException malformed) {
      return null;
    }
  }

  /** Sends the replies that were just given, and ends the inbox. */
  void close(Duration most) {
    Box mine;
    List<Producer> all;
    synchronized (this) {
      mine = box;
      box = null;
      all = List.copyOf(outlets.values());
      outlets.clear();
    }
    for (Producer each : all) {
      try {
        each.close(most);
      } catch (IsterException failed) {
        IsterClient.LOG.log(System.Logger.Level.DEBUG, "a reply may not have been sent", failed);
      }
    }
    if (mine != null) {
      mine.reader.abandon();
    }
  }
}

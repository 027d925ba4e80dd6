package example.ister;

import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CompletableFuture;

/**
 * Measures: publishes messages, one call each or in batches, consumes and acknowledges them. Run it
 * by hand: {@code java -cp 'build/classes:build/test-classes:build/libraries/*' example.ister.Bench
 * tcp://127.0.0.1:5555 200000 100 message}.
 */
final class Bench {
  private static final int BATCH = 1000;

  private Bench() {}

  public static void main(String[] arguments) throws Exception {
    String endpoint = arguments[0];
    int count = Integer.parseInt(arguments[1]);
    byte[] payload = new byte[Integer.parseInt(arguments[2])];
    Arrays.fill(payload, (byte) 'x');
    boolean batches = arguments[3].equals("batch");
    try (IsterClient client = IsterClient.connect(endpoint)) {
      for (int round = 0; round < 2; round++) { // the first one is not measured: it warms up
        run(client, "bench-" + System.nanoTime(), count, payload, batches, round > 0);
      }
      latency(client, "bench-" + System.nanoTime(), payload);
    }
  }

  private static void run(
      IsterClient client, String topic, int count, byte[] payload, boolean batches, boolean told)
      throws Exception {
    client.admin().createTopic(topic);
    ConsumerOptions options =
        ConsumerOptions.defaults().type(SubscriptionType.EXCLUSIVE).start(Start.earliest());
    try (Producer producer = client.producer(topic);
        Consumer consumer = client.consumer(topic, "all", options)) {
      long began = System.nanoTime();
      CompletableFuture<Void> consumed =
          CompletableFuture.runAsync(() -> consume(consumer, count, batches));
      if (batches) {
        OutgoingMessage[] batch = new OutgoingMessage[BATCH];
        Arrays.fill(batch, OutgoingMessage.of(payload));
        for (int sent = 0; sent < count; sent += BATCH) {
          producer.sendBatch(List.of(batch));
        }
      } else {
        for (int sent = 0; sent < count; sent++) {
          producer.send(payload);
        }
      }
      producer.flush(java.time.Duration.ofMinutes(2));
      double published = (System.nanoTime() - began) / 1e9;
      consumed.get();
      double all = (System.nanoTime() - began) / 1e9;
      if (told) {
        System.out.printf(
            "%s: %,.0f messages/s published, %,.0f received and acknowledged%n",
            batches ? "batch" : "message", count / published, count / all);
      }
    }
  }

  private static void consume(Consumer consumer, int count, boolean batches) {
    try {
      int seen = 0;
      while (seen < count) {
        if (batches) {
          List<Message> came = consumer.receiveBatch(BATCH, java.time.Duration.ofMinutes(1));
          consumer.ack(came);
          seen += came.size();
        } else {
          consumer.ack(consumer.receive());
          seen++;
        }
      }
    } catch (InterruptedException stopped) {
      throw new IllegalStateException(stopped);
    }
  }

  private static void latency(IsterClient client, String topic, byte[] payload) throws Exception {
    client.admin().createTopic(topic, TopicOptions.none().nonReliable());
    try (Producer producer = client.producer(topic);
        Consumer consumer = client.consumer(topic, "all")) {
      long[] took = new long[2000];
      for (int i = 0; i < took.length; i++) {
        long began = System.nanoTime();
        producer.send(payload);
        consumer.receive();
        took[i] = System.nanoTime() - began;
      }
      Arrays.sort(took);
      System.out.printf(
          "send to receive, non-reliable: p50 %.0f us%n", took[took.length / 2] / 1e3);
    }
  }
}

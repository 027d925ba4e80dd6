package example.ister;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What guards against the habits of JeroMQ, and of threads, over real sockets. */
@Timeout(60)
class ConnectionTest {
  /**
   * A thread that is interrupted in a call of JeroMQ breaks its socket, so none of the program's is
   * ever in one.
   */
  @Test
  void anInterruptEndsTheCallAndNothingElse() throws Exception {
    try (FakeBroker broker = new FakeBroker();
        IsterClient client = IsterClient.connect(broker.endpoint)) {
      Consumer consumer = client.consumer("orders", "all");
      Producer producer = client.producer("orders");
      for (int i = 0; i < 20; i++) {
        AtomicReference<Throwable> ended = new AtomicReference<>();
        Thread thread =
            new Thread(
                () -> {
                  try {
                    consumer.receive();
                  } catch (Throwable told) {
                    ended.set(told);
                  }
                });
        thread.start();
        thread.interrupt();
        thread.join();
        assertEquals(InterruptedException.class, ended.get().getClass());
        Thread.currentThread().interrupt();
        Receipt receipt = producer.send(new byte[1]);
        assertTrue(Thread.interrupted(), "a call that need not wait leaves the interrupt alone");
        receipt.get(20, TimeUnit.SECONDS);
      }
      client.admin().status();
      assertEquals(1, broker.count(Wire.HELLO), "a connection was lost");
    }
  }

  /** JeroMQ tries again by itself, at once and without end where the interval is -1. */
  @Test
  void aSocketThatLostItsPeerIsNotLeftToReconnect() throws Exception {
    AtomicInteger accepted = new AtomicInteger();
    try (ServerSocket server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress())) {
      Thread thread =
          new Thread(
              () -> {
                while (!server.isClosed()) {
                  try {
                    server.accept().close();
                    accepted.incrementAndGet();
                  } catch (IOException over) {
                    return;
                  }
                }
              });
      thread.start();
      IsterClient.Builder builder =
          IsterClient.builder()
              .endpoints("tcp://127.0.0.1:" + server.getLocalPort())
              .timeout(Duration.ofSeconds(2));
      assertThrows(IsterException.Timeout.class, builder::connect);
    }
    assertTrue(accepted.get() >= 2, "it tried " + accepted + " times");
    assertTrue(accepted.get() <= 20, "it tried " + accepted + " times in two seconds");
  }

  /**
   * A connection of JeroMQ may stand still before its first byte; it waits 30 s for that by itself.
   */
  @Test
  void aConnectionThatStandsStillIsGivenUpSoon() throws Exception {
    List<Socket> silent = new CopyOnWriteArrayList<>();
    try (ServerSocket server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress())) {
      Thread thread =
          new Thread(
              () -> {
                while (!server.isClosed()) {
                  try {
                    silent.add(server.accept());
                  } catch (IOException over) {
                    return;
                  }
                }
              });
      thread.start();
      IsterClient.Builder builder =
          IsterClient.builder()
              .endpoints("tcp://127.0.0.1:" + server.getLocalPort())
              .timeout(Duration.ofMillis(2500)); // an answer to a greeting is waited for longer
      assertThrows(IsterException.Timeout.class, builder::connect);
    }
    assertTrue(silent.size() >= 2, "it tried " + silent.size() + " times");
    for (Socket each : silent) {
      each.close();
    }
  }

  /** With the linger of 0 that JeroMQ's ZContext sets, what was said last is lost. */
  @Test
  void whatIsSaidLastArrives() throws Exception {
    try (FakeBroker broker = new FakeBroker()) {
      for (int i = 1; i <= 20; i++) {
        try (IsterClient client = IsterClient.connect(broker.endpoint)) {
          client.producer("orders").send("x");
        }
        broker.await(Wire.BYE, i);
      }
      assertEquals(20, broker.count(Wire.PUBLISH));
      assertEquals(20, broker.count(Wire.CLOSE));
    }
  }

  @Test
  void stagesOfAReceiptMayBlockAndCallTheClient() throws Exception {
    try (FakeBroker broker = new FakeBroker();
        IsterClient client = IsterClient.connect(broker.endpoint)) {
      Producer producer = client.producer("orders");
      CountDownLatch second = new CountDownLatch(1);
      CompletableFuture<Void> done =
          producer
              .send("one")
              .thenAccept(
                  published -> {
                    try {
                      producer.send("two");
                      producer.flush(Duration.ofSeconds(20));
                      second.countDown();
                    } catch (InterruptedException stopped) {
                      Thread.currentThread().interrupt();
                    }
                  });
      done.get(20, TimeUnit.SECONDS);
      assertEquals(0, second.getCount());
    }
  }

  @Test
  void aCloseInAnInterruptedThreadStillEndsTheThreads() throws Exception {
    try (FakeBroker broker = new FakeBroker()) {
      IsterClient client = IsterClient.connect(broker.endpoint);
      client.consumer("orders", "all");
      Thread.currentThread().interrupt();
      try {
        client.close();
      } catch (IsterException.Interrupted told) {
        assertEquals("cancelled", told.code());
      }
      assertTrue(Thread.interrupted());
      for (int i = 0; i < 500 && !mine(broker).isEmpty(); i++) {
        Thread.sleep(10);
      }
      assertEquals(List.of(), mine(broker));
    }
  }

  private static List<String> mine(FakeBroker broker) {
    return Thread.getAllStackTraces().keySet().stream()
        .map(Thread::getName)
        .filter(name -> name.equals("ister-" + broker.endpoint))
        .toList();
  }

  @Test
  void wrongCallsAreRefusedBeforeTheyAreSent() throws Exception {
    assertThrows(IsterException.Refused.class, () -> IsterClient.connect());
    assertThrows(IsterException.Refused.class, () -> IsterClient.connect("localhost:5555"));
    try (FakeBroker broker = new FakeBroker();
        IsterClient client = IsterClient.connect(broker.endpoint)) {
      Producer producer = client.producer("orders");
      IsterException large =
          assertThrows(IsterException.Refused.class, () -> producer.send(new byte[(1 << 20) + 1]));
      assertEquals("message-too-large", large.code());
      assertThrows(IsterException.Refused.class, () -> producer.sendBatch(List.of()));
      producer.close();
      assertEquals("closed", assertThrows(IsterException.class, () -> producer.send("x")).code());
      client.close(Duration.ofSeconds(20));
      assertThrows(IsterException.Closed.class, () -> client.producer("orders"));
      assertThrows(IsterException.Closed.class, () -> client.admin().status());
    }
  }
}

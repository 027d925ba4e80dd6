package example.ister;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.HexFormat;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Sessions, producers and consumers without a socket, a clock or a thread. */
class ProtocolTest {
  private final Talk talk = new Talk();

  @Test
  void whatHasNoReceiptIsSentAgainInOrder() {
    talk.welcome(false);
    Publication producer = talk.producer();
    talk.openedProducer(0, 1000);
    Receipt first = talk.send(producer, "one");
    talk.send(producer, "two");
    producer.seal();
    assertEquals(List.of(0L, 1L), talk.published());
    talk.hear(receipts(0, 40));
    assertEquals(40, first.join().offset());
    talk.session.lost(new IsterException.ConnectionLost("a test"));
    talk.welcome(true);
    assertEquals(1, talk.openedProducer(1, 1000).uint(Wire.SEQUENCE));
    assertEquals(List.of(1L), talk.published());
    talk.hear(receipts(1, 41, 0, 99));
    assertTrue(producer.answered());
    assertEquals(40, first.join().offset());
  }

  private static Header receipts(long... pairs) {
    return new Header(Wire.RECEIPT).with(Wire.HANDLE, 1L).with(Wire.RECEIPTS, pairs);
  }

  @Test
  void theForgottenOffsetIsADuplicateWithoutAPlace() {
    talk.welcome(false);
    Publication producer = talk.producer();
    talk.openedProducer(0, 1000);
    Receipt receipt = talk.send(producer, "one");
    talk.hear(receipts(0, Wire.OFFSET_UNKNOWN));
    assertEquals(new Published("orders", -1, 1, true), receipt.join());
  }

  @Test
  void theWindowIsKept() {
    talk.welcome(false);
    Publication producer = talk.producer();
    talk.openedProducer(0, 100);
    int taken = 0;
    while (taken < 100 && producer.hasRoomFor(new byte[30], null, null, 0)) {
      producer.take(new byte[30], null, null, 0, talk.now);
      producer.seal();
      taken++;
      assertTrue(producer.unanswered() <= 100 && producer.inFlight() <= 2);
    }
    assertTrue(taken < 100, "the window is never full");
  }

  @Test
  void aRefusedBatchIsLeftOutOnceItIsTheOldest() {
    talk.welcome(false);
    Publication producer = talk.producer();
    talk.openedProducer(0, 1000);
    Receipt bad = talk.send(producer, "bad");
    Receipt good = talk.send(producer, "good");
    producer.seal();
    talk.said();
    talk.refuse("invalid-argument", Action.FIX, 0);
    talk.refuse("sequence-gap", Action.RETRY, 1);
    assertTrue(bad.isCompletedExceptionally());
    assertFalse(good.isDone());
    assertEquals(1, talk.openedProducer(1, 1000).uint(Wire.SEQUENCE));
    assertEquals(List.of(1L), talk.published());
  }

  @ParameterizedTest
  @ValueSource(strings = {"disk-full", "unknown-handle"})
  void aRefusalToBeTriedAgainIsTriedAgainLater(String code) {
    talk.welcome(false);
    Publication producer = talk.producer();
    talk.openedProducer(0, 1000);
    talk.send(producer, "one");
    talk.said();
    talk.refuse(code, code.equals("disk-full") ? Action.RETRY : Action.FIX, 0);
    assertEquals(List.of(), talk.said());
    talk.now += Talk.SECOND;
    talk.session.tick(talk.now);
    talk.openedProducer(0, 1000);
    assertEquals(List.of(0L), talk.published());
  }

  @Test
  void aRefusalThatNobodyLookedAtIsToldOnce() {
    talk.welcome(false);
    Publication producer = talk.producer();
    talk.openedProducer(0, 1000);
    Receipt seen = talk.send(producer, "seen");
    talk.refuse("invalid-argument", Action.FIX, 0);
    seen.exceptionally(refused -> null);
    assertEquals(null, producer.unseenRefusal());
    talk.openedProducer(1, 1000);
    talk.send(producer, "unseen");
    talk.refuse("invalid-argument", Action.FIX, 1);
    assertEquals("invalid-argument", producer.unseenRefusal().code());
    assertEquals(null, producer.unseenRefusal());
  }

  @Test
  void whatIsToBeSentIsTakenOnce() {
    talk.welcome(false);
    Publication producer = talk.producer();
    talk.openedProducer(0, 1000);
    talk.said();
    var nothing = talk.session.drain(talk.now);
    talk.send(producer, "one");
    assertEquals(0, nothing.size());
    assertEquals(1, talk.session.drain(talk.now).size());
    assertEquals(0, talk.session.drain(talk.now).size());
  }

  @Test
  void creditComesBackAsTheProgramTakes() {
    talk.welcome(false);
    Attachment consumer = talk.consumer("shared", 4);
    talk.openedConsumer();
    talk.deliver(0, "a", "b", "c", "d");
    assertEquals(List.of(), talk.said(), "credit for nothing");
    long given = 0;
    for (int taken = 1; taken <= 4; taken++) {
      assertEquals(1, consumer.next(1, talk.now).size());
      for (Header credit : talk.said(Wire.CREDIT)) {
        given += credit.uint(Wire.MESSAGES);
      }
      assertTrue(given <= taken);
    }
    assertTrue(given >= 2, "no credit comes back");
  }

  @Test
  void creditFollowsTheProgram() {
    talk.welcome(false);
    Attachment consumer = talk.consumer("shared", 0);
    long window = talk.openedConsumer().uint(Wire.MESSAGES);
    long fast = windowAfter(consumer, window, 1_000_000L);
    assertTrue(fast > 4 * window, "a fast program is given no more: " + fast);
    long slow = windowAfter(consumer, fast, Talk.SECOND);
    assertTrue(slow < fast / 4, "a slow program keeps " + slow);
  }

  /** Delivers all credit again and again, to a program that takes so long for each message. */
  private long windowAfter(Attachment consumer, long credit, long nanosEach) {
    long out = credit;
    long offset = 0;
    for (int round = 0; round < 8; round++) {
      String[] payloads = new String[(int) out];
      java.util.Arrays.fill(payloads, "x");
      talk.deliver(offset, payloads);
      offset += out;
      out = 0;
      while (consumer.hasNext()) {
        talk.now += nanosEach;
        consumer.next(1, talk.now);
        for (Header given : talk.said(Wire.CREDIT)) {
          out += given.uint(Wire.MESSAGES);
        }
      }
    }
    return out;
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void acknowledgmentsAreRepeatedInAResumedSessionAndForgottenInANewOne(boolean resumed) {
    talk.welcome(false);
    Attachment consumer = talk.consumer("shared", 10);
    talk.openedConsumer();
    talk.deliver(0, "a", "b");
    consumer.next(2, talk.now).forEach(message -> consumer.ack(message, talk.now));
    consumer.flush(true);
    talk.session.lost(new IsterException.ConnectionLost("a test"));
    talk.welcome(resumed);
    assertEquals(resumed ? 1 : 0, talk.said(Wire.ACK).size());
    assertEquals(!resumed, consumer.takeForgotten());
  }

  @Test
  void anotherSubscriptionOfTheNameIsNotAcknowledged() {
    talk.welcome(false);
    Attachment consumer = talk.consumer("shared", 10);
    Header first =
        talk.opened(new Header(Wire.OPENED).with(Wire.OFFSET, 0L).with(Wire.INSTANCE, "one"));
    assertTrue(first.has(Wire.INSTANCE));
    talk.deliver(0, "a", "b");
    List<Message> old = consumer.next(2, talk.now);
    consumer.ack(old.get(0), talk.now);
    consumer.flush(false);
    talk.session.lost(new IsterException.ConnectionLost("a test"));
    talk.welcome(true);
    Header again =
        talk.opened(new Header(Wire.OPENED).with(Wire.OFFSET, 0L).with(Wire.INSTANCE, "two"));
    assertEquals("one", again.text(Wire.INSTANCE));
    consumer.ack(old.get(1), talk.now);
    consumer.flush(true);
    assertEquals(List.of(), talk.said(Wire.ACK));
    assertTrue(consumer.takeForgotten());
  }

  @Test
  void manyRangesAreSplit() {
    talk.welcome(false);
    Attachment consumer = talk.consumer("shared", 1000);
    talk.openedConsumer();
    for (int i = 0; i < 1001; i++) {
      talk.deliver(2L * i, "x");
      consumer.ack(consumer.next(1, talk.now).get(0), talk.now);
    }
    talk.said();
    consumer.flush(true);
    List<Header> acks = talk.said(Wire.ACK);
    assertEquals(List.of(false, false, true), acks.stream().map(ack -> ack.has(Wire.REF)).toList());
    for (Header ack : acks) {
      assertTrue(ack.uints(Wire.RANGES).length <= 2 * Wire.RANGES_MAX);
    }
  }

  @Test
  void whatWasClosedWithoutAConnectionIsClosedInTheResumedSession() {
    talk.welcome(false);
    Attachment consumer = talk.consumer("exclusive", 10);
    talk.openedConsumer();
    talk.session.lost(new IsterException.ConnectionLost("a test"));
    consumer.close();
    talk.session.leave(consumer);
    talk.welcome(true);
    assertEquals(
        List.of(2L), talk.said(Wire.CLOSE).stream().map(each -> each.uint(Wire.HANDLE)).toList());
  }

  @Test
  void aReaderGoesOnAtTheFirstMessageItHasNotHandedOut() {
    talk.welcome(false);
    Attachment reader = talk.consumer("reader", 10);
    talk.openedConsumer();
    talk.deliver(5, "a", "b", "c");
    reader.next(2, talk.now);
    talk.session.lost(new IsterException.ConnectionLost("a test"));
    talk.welcome(false);
    assertEquals(7L, talk.openedConsumer().value(Wire.START));
  }

  @Test
  void onePingAHeartbeatAndThenTheConnectionIsLost() {
    talk.welcome(false);
    int pings = 0;
    for (int i = 0; i < 60 && talk.session.phase() == Session.Phase.READY; i++) {
      talk.now += Talk.SECOND / 10;
      talk.session.tick(talk.now);
      pings += talk.said(Wire.PING).size();
    }
    assertEquals(1, pings);
    assertEquals(Session.Phase.IDLE, talk.session.phase());
  }

  @Test
  void anAnswerOfActionRetryIsAskedForAgain() {
    talk.welcome(false);
    Session.Request request = new Session.Request("status", java.util.Map.of());
    talk.session.ask(request, talk.now);
    long ref = talk.said(Wire.REQUEST).get(0).uint(Wire.REF);
    talk.hear(
        new Header(Wire.ERROR)
            .with(Wire.CODE, "unavailable")
            .with(Wire.TEXT, "later")
            .with(Wire.ACTION, "retry")
            .with(Wire.REF, ref));
    assertEquals(List.of(), talk.said());
    talk.now += Talk.SECOND;
    talk.session.tick(talk.now);
    long again = talk.said(Wire.REQUEST).get(0).uint(Wire.REF);
    assertTrue(again > ref);
    talk.hear(new Header(Wire.RESULT).with(Wire.REF, again), new byte[] {(byte) 0xa0});
    assertEquals(1, request.answer.join().length);
  }

  @Test
  void whatIsMovedGoesThere() {
    talk.welcome(false);
    talk.producer();
    talk.opened(new Header(Wire.MOVED).with(Wire.ENDPOINT, "tcp://elsewhere:1"));
    assertEquals(List.of("tcp://elsewhere:1"), talk.moves);
  }

  @ParameterizedTest
  @ValueSource(strings = {"", "ff", "a10001", "a100183f", "bf001829ff", "a100f94129", "a1c11829"})
  void garbageCostsTheConnection(String frame) {
    talk.welcome(false);
    talk.session.receive(new byte[][] {HexFormat.of().parseHex(frame)}, talk.now);
    assertEquals(Session.Phase.IDLE, talk.session.phase());
  }
}

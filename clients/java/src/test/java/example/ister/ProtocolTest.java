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

  /** ISTER-7.4-2, ISTER-8.1-3, ISTER-8.3-5 */
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

  /** ISTER-8.3-4, ISTER-2.2-16 */
  @Test
  void theForgottenOffsetIsADuplicateWithoutAPlace() {
    talk.welcome(false);
    Publication producer = talk.producer();
    talk.openedProducer(0, 1000);
    Receipt receipt = talk.send(producer, "one");
    talk.hear(receipts(0, Wire.OFFSET_UNKNOWN));
    assertEquals(new Published("orders", -1, 1, true), receipt.join());
  }

  /** ISTER-8.2-2, ISTER-8.2-3 */
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

  /** ISTER-8.4-2 */
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

  /** ISTER-8.4-1, ISTER-8.4-4 */
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

  /** ISTER-7.3-1, ISTER-7.3-2, ISTER-7.3-4 */
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

  /** ISTER-10.2-5, ISTER-4.1-1 */
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

  /** ISTER-7.6-1 */
  @Test
  void whatIsMovedGoesThere() {
    talk.welcome(false);
    talk.producer();
    talk.opened(new Header(Wire.MOVED).with(Wire.ENDPOINT, "tcp://elsewhere:1"));
    assertEquals(List.of("tcp://elsewhere:1"), talk.moves);
  }

  /** ISTER-2.2-15, ISTER-16-2 */
  @ParameterizedTest
  @ValueSource(strings = {"", "ff", "a10001", "a100183f", "bf001829ff", "a100f94129", "a1c11829"})
  void garbageCostsTheConnection(String frame) {
    talk.welcome(false);
    talk.session.receive(new byte[][] {HexFormat.of().parseHex(frame)}, talk.now);
    assertEquals(Session.Phase.IDLE, talk.session.phase());
  }
}

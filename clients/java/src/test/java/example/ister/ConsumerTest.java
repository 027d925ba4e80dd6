package example.ister;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Consumers and readers without a socket, a clock or a thread. */
class ConsumerTest {
  private static final IsterException LOST = new IsterException.ConnectionLost("a test");

  private final Talk talk = new Talk();

  private Attachment opened(String type, long credit) {
    talk.welcome(false);
    Attachment made = talk.consumer(type, credit);
    talk.openedConsumer();
    return made;
  }

  /** A consumer whose broker wants to hear what the program takes. */
  private Attachment telling(long credit) {
    talk.welcome(false);
    Attachment made = talk.consumer("shared", credit);
    assertEquals(0L, opened(Wire.TAKEN, 0L).uint(Wire.TAKEN));
    return made;
  }

  private Header opened(int key, Object value) {
    return talk.opened(new Header(Wire.OPENED).with(Wire.OFFSET, 0L).with(key, value));
  }

  private Message take(Attachment consumer) {
    consumer.handing.asked(talk.now);
    return consumer.handing.one();
  }

  private List<Message> take(Attachment consumer, int most) {
    consumer.handing.asked(talk.now);
    return consumer.handing.some(most);
  }

  private void event(String code, int key, Object value) {
    talk.hear(
        new Header(Wire.EVENT)
            .with(Wire.HANDLE, 2L)
            .with(Wire.CODE, code)
            .with(Wire.TEXT, "a test")
            .with(key, value));
  }

  private void done(long ref) {
    talk.hear(new Header(Wire.DONE).with(Wire.REF, ref));
  }

  private static List<Long> numbers(List<Header> frames, int key) {
    return frames.stream().map(frame -> frame.uint(key)).toList();
  }

  // ---- credit

  /** ISTER-9.4-4 */
  @Test
  void creditComesBackAsTheProgramTakes() {
    Attachment consumer = opened("shared", 4);
    talk.deliver(0, "a", "b", "c", "d");
    assertEquals(List.of(), talk.said(), "credit for nothing");
    long given = 0;
    for (int taken = 1; taken <= 4; taken++) {
      assertEquals(1, take(consumer, 1).size());
      for (Header credit : talk.said(Wire.CREDIT)) {
        given += credit.uint(Wire.MESSAGES);
      }
      assertTrue(given <= taken);
    }
    assertTrue(given >= 2, "no credit comes back");
  }

  /** ISTER-9.4-5 */
  @Test
  void creditFollowsTheProgram() {
    talk.welcome(false);
    Attachment consumer = talk.consumer("shared", 0);
    long window = talk.openedConsumer().uint(Wire.MESSAGES);
    assertTrue(window <= 16, "a consumer that shares begins with " + window);
    long fast = windowAfter(consumer, window, 1_000_000L);
    assertTrue(fast > 4 * window, "a fast program is given no more: " + fast);
    long slow = windowAfter(consumer, fast, Talk.SECOND);
    assertTrue(slow < fast / 4, "a slow program keeps " + slow);
  }

  /** Delivers all credit again and again, to a program that takes so long for each message. */
  private long windowAfter(Attachment consumer, long credit, long nanosEach) {
    long out = credit;
    long offset = 0;
    for (int round = 0; round < 10; round++) {
      String[] payloads = new String[(int) out];
      Arrays.fill(payloads, "x");
      if (out > 0) {
        talk.deliver(offset, payloads);
      }
      offset += out;
      out = 0;
      while (take(consumer) != null) {
        talk.now += nanosEach;
        for (Header given : talk.said(Wire.CREDIT)) {
          out += given.uint(Wire.MESSAGES);
        }
      }
    }
    return out;
  }

  // ---- what the program takes

  /** ISTER-9.6-2 */
  @Test
  void whatTheProgramTakesIsSaidBeforeItHasIt() {
    Attachment consumer = telling(100);
    talk.deliver(0, "a", "b", "c");
    assertEquals("a", take(consumer).text());
    assertEquals(List.of(1L), numbers(talk.said(Wire.CREDIT), Wire.TAKEN));
    long taken = 1;
    for (int i = 0; i < 2; i++) {
      talk.now += 1000;
      assertNotNull(take(consumer));
      for (long said : numbers(talk.said(Wire.CREDIT), Wire.TAKEN)) {
        assertTrue(said >= taken, "TAKEN decreased");
        taken = said;
      }
      assertTrue(taken >= i + 2);
    }
  }

  /** ISTER-9.6-2 */
  @Test
  void aProgramThatTakesLongerHasOneMessageInHand() {
    Attachment consumer = telling(100);
    talk.deliver(0, "a", "b", "c", "d");
    for (long taken = 1; taken <= 4; taken++) {
      assertNotNull(take(consumer));
      assertEquals(List.of(taken), numbers(talk.said(Wire.CREDIT), Wire.TAKEN));
      talk.now += Talk.SECOND;
    }
  }

  /** ISTER-9.6-1 */
  @Test
  void aBrokerThatDoesNotAskIsNotTold() {
    Attachment consumer = opened("shared", 2);
    talk.deliver(0, "a", "b");
    take(consumer, 2);
    List<Header> credit = talk.said(Wire.CREDIT);
    assertFalse(credit.isEmpty());
    assertTrue(credit.stream().noneMatch(each -> each.has(Wire.TAKEN)));
  }

  /** ISTER-9.6-5, ISTER-9.6-9 */
  @Test
  void whatComesSinglyWaitsUntilTheBrokerKnows() {
    Attachment consumer = telling(10);
    talk.deliver(0, true, "first", "second");
    talk.deliver(2, false, "third", "fourth");
    long taken = 0;
    for (String payload : List.of("first", "second", "third")) {
      assertNull(take(consumer), payload + " is handed out before the broker knew");
      assertNull(take(consumer), "asked twice");
      List<Header> asked = talk.said(Wire.CREDIT);
      assertEquals(List.of(++taken), numbers(asked, Wire.TAKEN));
      done(asked.get(0).uint(Wire.REF));
      assertEquals(payload, take(consumer).text());
      assertNull(consumer.handing.current().take(), "more than one was handed out");
      talk.said();
    }
    assertEquals("fourth", take(consumer).text());
  }

  /** ISTER-9.6-6 */
  @Test
  void whatWasRecalledIsNotHandedOutAndAllCreditIsGivenAnew() {
    Attachment consumer = telling(20);
    talk.deliver(0, "in hand", "b", "c", "d");
    Message held = take(consumer);
    talk.said();
    event("recalled", Wire.COUNT, 3L);
    assertEquals(List.of(), talk.said(), "credit before the program asks");
    assertNull(take(consumer));
    assertEquals(List.of(20L), numbers(talk.said(Wire.CREDIT), Wire.MESSAGES));
    talk.deliver(4, "after");
    assertEquals("after", take(consumer).text());
    List<Long> taken = numbers(talk.said(Wire.CREDIT), Wire.TAKEN);
    assertTrue(taken.get(taken.size() - 1) >= 5, "what was recalled does not count: " + taken);
    assertTrue(consumer.ack(held), "it is still this program's");
  }

  /** ISTER-9.6-7 */
  @Test
  void aProgramThatFailedSaysSoOfAllThatItHas() {
    Attachment consumer = telling(10);
    talk.deliver(0, "a", "b", "c");
    take(consumer, 2);
    talk.said();
    consumer.blame("broken");
    Header said = talk.said(Wire.NACK).get(0);
    assertEquals(0, said.uints(Wire.RANGES).length);
    assertEquals(2, said.uint(Wire.TAKEN));
    assertEquals("broken", said.text(Wire.REASON));
  }

  /** ISTER-7.4-3 */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void whatWasNotHandedOutIsDroppedWithTheConnection(boolean tells) {
    Attachment consumer = tells ? telling(10) : opened("shared", 10);
    talk.deliver(0, "a", "b", "c");
    talk.deliver(3, "d");
    assertEquals("a", take(consumer).text());
    Handful handful = consumer.handing.current();
    talk.session.lost(LOST);
    assertNull(handful.take(), "the rest of a delivery in hand");
    assertNull(take(consumer));
  }

  // ---- acknowledging

  /** ISTER-7.4-5, ISTER-7.4-6 */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void acknowledgmentsAreRepeatedInAResumedSessionAndForgottenInANewOne(boolean resumed) {
    Attachment consumer = opened("shared", 10);
    talk.deliver(0, "a", "b");
    take(consumer, 2).forEach(consumer::ack);
    consumer.acks.flush(true);
    talk.session.lost(LOST);
    talk.welcome(resumed);
    List<Header> before = talk.said();
    assertEquals(
        resumed ? List.of(Wire.ACK, Wire.OPEN_CONSUMER) : List.of(Wire.OPEN_CONSUMER),
        before.stream().map(Header::type).toList());
    talk.hear(
        new Header(Wire.OPENED)
            .with(Wire.REF, before.get(before.size() - 1).uint(Wire.REF))
            .with(Wire.HANDLE, 2L));
    assertEquals(resumed ? 1 : 0, talk.said(Wire.ACK).size());
    assertEquals(!resumed, consumer.acks.takeForgotten());
  }

  /** ISTER-9.3-1, ISTER-9.3-2 */
  @Test
  void anotherSubscriptionOfTheNameIsNotAcknowledged() {
    talk.welcome(false);
    Attachment consumer = talk.consumer("shared", 10);
    assertTrue(opened(Wire.INSTANCE, "one").has(Wire.INSTANCE));
    talk.deliver(0, "a", "b");
    List<Message> old = take(consumer, 2);
    consumer.ack(old.get(0));
    consumer.acks.flush(false);
    talk.session.lost(LOST);
    talk.welcome(true);
    assertEquals("one", opened(Wire.INSTANCE, "two").text(Wire.INSTANCE));
    talk.said();
    consumer.ack(old.get(1));
    consumer.acks.flush(true);
    assertEquals(List.of(), talk.said(Wire.ACK));
    assertTrue(consumer.acks.takeForgotten());
  }

  /** ISTER-9.5-11 */
  @Test
  void manyRangesGoOverSeveralFramesAndTheLastIsAnswered() {
    Attachment consumer = opened("shared", 1000);
    List<Message> taken = new ArrayList<>();
    for (int i = 0; i < 900; i++) {
      talk.deliver(2L * i, "x");
      taken.addAll(take(consumer, 1));
    }
    talk.said();
    consumer.nack(taken, null, "");
    assertEquals(
        List.of(800, 800, 200),
        talk.said(Wire.NACK).stream().map(nack -> nack.uints(Wire.RANGES).length).toList());
    taken.forEach(consumer::ack);
    consumer.acks.flush(true);
    List<Header> acks = talk.said(Wire.ACK);
    assertTrue(acks.get(acks.size() - 1).has(Wire.REF));
    assertEquals(1, acks.stream().filter(ack -> ack.has(Wire.REF)).count());
    assertTrue(acks.stream().allMatch(ack -> ack.uints(Wire.RANGES).length <= 800));
  }

  /** ISTER-9.10-1, ISTER-9.10-2, ISTER-9.7-3 */
  @Test
  void acknowledgmentsSayOfWhichMovesTheClientHasHeard() {
    talk.welcome(false);
    Attachment consumer = talk.consumer("shared", 10);
    assertEquals(0L, opened(Wire.SOUGHT, 3L).value(Wire.SOUGHT));
    talk.deliver(0, "a", "b");
    Message old = take(consumer);
    consumer.ack(old);
    consumer.acks.flush(false);
    assertEquals(List.of(3L), numbers(talk.said(Wire.ACK), Wire.SOUGHT));
    event("sought", Wire.SOUGHT, 4L);
    assertFalse(consumer.ack(old), "acknowledged from before the move");
    assertNull(take(consumer), "handed out from before the move");
    talk.deliver(0, "a");
    Message again = take(consumer);
    consumer.ack(again);
    consumer.acks.flush(true);
    consumer.nack(List.of(again), null, "");
    List<Header> said = talk.said();
    assertEquals(
        List.of(4L, 4L),
        numbers(said.stream().filter(each -> each.has(Wire.RANGES)).toList(), Wire.SOUGHT));
    assertFalse(consumer.acks.takeForgotten(), "the program asked for the move");
  }

  /** ISTER-9.10-2 */
  @Test
  void withoutMovesNothingIsSaidOfThem() {
    Attachment consumer = opened("shared", 10);
    talk.deliver(0, "a");
    consumer.ack(take(consumer));
    consumer.acks.flush(false);
    assertFalse(talk.said(Wire.ACK).get(0).has(Wire.SOUGHT));
  }

  /** ISTER-9.2-5 */
  @Test
  void anAcknowledgmentOfAStandbyEndsNothing() {
    Attachment consumer = opened("failover", 10);
    talk.deliver(0, "a");
    consumer.ack(take(consumer));
    consumer.acks.flush(false);
    talk.hear(
        new Header(Wire.ERROR)
            .with(Wire.CODE, "not-active")
            .with(Wire.TEXT, "a standby")
            .with(Wire.ACTION, "retry")
            .with(Wire.HANDLE, 2L));
    assertEquals(Attachment.Phase.OPEN, consumer.phase());
    assertNull(consumer.takeComplaint());
  }

  @Test
  void whatTheBrokerCouldNotConfirmIsSaidAgain() {
    Attachment consumer = opened("shared", 10);
    talk.deliver(0, "a");
    consumer.ack(take(consumer));
    consumer.acks.flush(true);
    long ref = talk.said(Wire.ACK).get(0).uint(Wire.REF);
    talk.hear(
        new Header(Wire.ERROR)
            .with(Wire.CODE, "unavailable")
            .with(Wire.TEXT, "later")
            .with(Wire.ACTION, "retry")
            .with(Wire.REF, ref));
    assertEquals("unavailable", consumer.takeComplaint().code());
    assertFalse(consumer.acks.settled());
    consumer.acks.flush(true);
    done(talk.said(Wire.ACK).get(0).uint(Wire.REF));
    assertTrue(consumer.acks.settled());
  }

  // ---- opening and closing

  /** ISTER-9.2-3 */
  @Test
  void forceIsNotSaidAgain() {
    talk.welcome(false);
    Attachment.Wanted wanted =
        new Attachment.Wanted(
            "orders", "all", "exclusive", null, 0, true, java.util.Map.of(), false, 0);
    talk.session.attach(new Attachment(2, wanted, () -> {}), talk.now);
    assertTrue(talk.openedConsumer().flag(Wire.FORCE));
    talk.session.lost(LOST);
    talk.welcome(true);
    assertFalse(talk.openedConsumer().has(Wire.FORCE));
  }

  /** ISTER-9.2-9 */
  @Test
  void aReaderGoesOnAtTheFirstMessageItHasNotHandedOut() {
    talk.welcome(false);
    Attachment reader = talk.consumer("reader", 10);
    talk.opened(new Header(Wire.OPENED).with(Wire.OFFSET, 5L).with(Wire.STRATEGY, "reliable"));
    talk.session.lost(LOST);
    talk.welcome(false);
    Header again =
        talk.opened(new Header(Wire.OPENED).with(Wire.OFFSET, 5L).with(Wire.STRATEGY, "reliable"));
    assertEquals(5L, again.value(Wire.START));
    talk.deliver(5, "a", "b");
    talk.deliver(7, "c");
    take(reader);
    talk.session.lost(LOST);
    talk.welcome(false);
    assertEquals("b", take(reader).text(), "what is in hand is handed out to its end");
    assertEquals(7L, talk.openedConsumer().value(Wire.START));
    assertNull(take(reader));
  }

  /** ISTER-7.4-7 */
  @Test
  void whatWasClosedWithoutAConnectionIsClosedInTheResumedSession() {
    Attachment consumer = opened("exclusive", 10);
    talk.session.lost(LOST);
    consumer.close();
    talk.session.leave(consumer);
    talk.welcome(true);
    assertEquals(List.of(2L), numbers(talk.said(Wire.CLOSE), Wire.HANDLE));
  }

  /** ISTER-7.4-7 */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aCloseThatWasLostIsSaidAgainThoughTheProgramHasNotHeard(boolean left) {
    Attachment consumer = opened("exclusive", 10);
    consumer.close();
    if (left) { // its time was over before the connection was lost
      talk.session.leave(consumer);
    }
    talk.session.lost(LOST);
    talk.welcome(true);
    assertEquals(List.of(2L), numbers(talk.said(Wire.CLOSE), Wire.HANDLE));
    talk.session.leave(consumer);
    talk.session.lost(LOST);
    talk.welcome(true);
    Header close = talk.said(Wire.CLOSE).get(0);
    done(close.uint(Wire.REF));
    talk.session.lost(LOST);
    talk.welcome(true);
    assertEquals(List.of(), talk.said(Wire.CLOSE), "closed again");
  }

  /** ISTER-7.4-7, ISTER-4.1-1: the endpoint did not come back, and another object resumes. */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void whatWentElsewhereIsClosedInTheSessionThatIsResumedLater(boolean back) {
    Attachment consumer = opened("exclusive", 10);
    talk.session.lost(LOST);
    talk.session.detach(consumer);
    talk.session.orphan(consumer);
    Session again = new Session("test", talk);
    again.secret(talk.session.secret());
    again.adopt(talk.session.orphans());
    Talk other = new Talk(again);
    if (back) {
      consumer.onLost(LOST);
      again.attach(consumer, talk.now);
    }
    other.welcome(true);
    List<Header> said = other.said();
    assertEquals(
        List.of(back ? Wire.OPEN_CONSUMER : Wire.CLOSE), said.stream().map(Header::type).toList());
    assertTrue(said.get(0).uint(Wire.REF) > 1, "a REF of the session before");
  }

  /** ISTER-7.4-9 */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void whatIsNotKnownToBeWrittenIsSaidBeforeTheCloseOfAResumedSession(boolean connected) {
    Attachment consumer = opened("exclusive", 10);
    talk.deliver(0, "a", "b");
    take(consumer, 2).forEach(consumer::ack);
    if (connected) {
      consumer.close();
      talk.session.lost(LOST);
    } else {
      talk.session.lost(LOST);
      consumer.close();
      talk.session.leave(consumer);
    }
    talk.welcome(true);
    List<Header> said = talk.said();
    assertEquals(List.of(Wire.ACK, Wire.CLOSE), said.stream().map(Header::type).toList());
    assertEquals(List.of(2L, 2L), numbers(said, Wire.HANDLE));
    talk.session.lost(LOST);
    talk.welcome(false);
    assertEquals(List.of(), talk.said(), "of a session that is gone");
  }

  /** ISTER-9.4-9 */
  @Test
  void noCreditComesBackForWhatWasDeliveredBeforeAnOpen() {
    talk.welcome(false);
    Attachment reader = talk.consumer("reader", 4);
    Header opened = new Header(Wire.OPENED).with(Wire.OFFSET, 0L);
    talk.opened(opened.with(Wire.STRATEGY, "reliable"));
    talk.deliver(0, "a", "b", "c", "d");
    take(reader, 1);
    talk.session.lost(LOST);
    talk.welcome(true);
    opened = new Header(Wire.OPENED).with(Wire.OFFSET, 4L);
    assertEquals(4, talk.opened(opened.with(Wire.STRATEGY, "reliable")).uint(Wire.MESSAGES));
    assertEquals(3, take(reader, 10).size());
    assertEquals(List.of(), talk.said(Wire.CREDIT));
    talk.deliver(4, "e", "f", "g", "h");
    take(reader, 10);
    assertEquals(List.of(4L), numbers(talk.said(Wire.CREDIT), Wire.MESSAGES));
  }

  /** ISTER-8.4-4 says it of producers; a consumer is opened again as well. */
  @Test
  void aConsumerThatTheWorkerDoesNotKnowIsOpenedAgain() {
    Attachment consumer = opened("shared", 10);
    talk.hear(
        new Header(Wire.ERROR)
            .with(Wire.CODE, "unknown-handle")
            .with(Wire.TEXT, "not open")
            .with(Wire.ACTION, "fix")
            .with(Wire.HANDLE, 2L));
    talk.now += Talk.SECOND;
    talk.session.tick(talk.now);
    talk.openedConsumer();
    assertEquals(Attachment.Phase.OPEN, consumer.phase());
  }

  /** Section 9.7: nothing more comes until an operator decides. */
  @Test
  void damageIsToldOnceWhatCameBeforeItIsTaken() {
    Attachment consumer = opened("shared", 10);
    talk.deliver(0, "a");
    event("log-damaged", Wire.OFFSET, 1L);
    assertNull(consumer.takeDamage());
    assertNotNull(take(consumer));
    assertEquals("log-damaged", consumer.takeDamage().code());
    assertNull(consumer.takeDamage());
  }

  /** ISTER-9.7-1 */
  @Test
  void anEventOfAnUnknownCodeIsToldAndChangesNothing() {
    Attachment consumer = opened("shared", 10);
    talk.deliver(0, "a");
    event("new-fashioned", Wire.COUNT, 1L);
    assertEquals("a", take(consumer).text());
    assertEquals("new-fashioned", consumer.takeEvents().get(0).code());
  }

  /** ISTER-5.3-3, ISTER-5.3-4 */
  @Test
  void offsetsAndTimesAreThoseOfTheRanges() {
    Attachment consumer = opened("shared", 10);
    Batch batch = new Batch();
    List.of("a", "b", "c", "d", "e").forEach(each -> batch.add(OutgoingMessage.of(each)));
    talk.hear(
        new Header(Wire.DELIVER)
            .with(Wire.HANDLE, 2L)
            .with(Wire.OFFSET, 3L)
            .with(Wire.COUNT, 5L)
            .with(Wire.RANGES, new long[] {3, 5, 7, 8, 20, 22})
            .with(Wire.TIMESTAMPS, new long[] {1, 100, 3, 200, 1, 300}),
        batch.body(false));
    List<Message> found = take(consumer, 10);
    assertEquals(List.of(3L, 4L, 7L, 20L, 21L), found.stream().map(Message::offset).toList());
    assertEquals(
        List.of(100L, 200L, 200L, 200L, 300L),
        found.stream().map(each -> each.timestamp().toEpochMilli()).toList());
  }
}

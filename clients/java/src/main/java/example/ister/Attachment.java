package example.ister;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;

/**
 * A consumer's or reader's side of the conversation, section 9 of PROTOCOL.md. It knows no socket,
 * no clock and no thread.
 *
 * <p>Invariants: the broker is never given more credit than the window: what was delivered and not
 * taken, and what may still come. What was delivered before the broker forgot about it, or moved
 * the subscription, is never acknowledged. Acknowledgments stay here until a DONE covers them, and
 * are sent again over a resumed session.
 */
final class Attachment implements Handle {
  static final String BUSY = "subscription-busy";
  private static final String OTHER_OPTIONS = "subscription-options";
  private static final String READER = "reader";
  private static final long ACK_DELAY = 3 * Session.MS;
  private static final int CONFIRM_RANGES =
      1000; // unconfirmed ranges, beyond which the broker is asked
  private static final long WINDOW_FIRST =
      16; // messages of credit for a program whose pace is not known yet
  private static final long WINDOW_MOST = 16_384;
  private static final long PACE_AIM =
      500 * Session.MS; // as much as a program works off in it is kept ready
  private static final long CREDIT_BYTES = 8 << 20;
  private static final long PLACE_RETRY = 500 * Session.MS;
  private static final int EVENTS_KEPT = 256;

  enum Phase {
    IDLE,
    OPENING,
    OPEN,
    WAITING,
    CLOSING,
    CLOSED
  }

  /** What is asked for. */
  record Wanted(
      String topic,
      String subscription,
      String type,
      Object start,
      long priority,
      boolean force,
      Map<String, Object> arguments,
      boolean patient,
      long credit) {}

  private final long number;
  private final Wanted wanted;
  private final Runnable changed;
  private Map<String, Object> arguments;

  private Phase phase = Phase.IDLE;
  private boolean opened;
  private Session session;
  private IsterException error;
  private IsterException complaint;
  private IsterException trouble;
  private boolean forgotten;
  private String instance = "";
  private long position;
  private boolean standby;
  private final ArrayDeque<Event> events = new ArrayDeque<>();

  private int epoch; // messages of an earlier one are not acknowledged any more
  private final ArrayDeque<Delivery> queue = new ArrayDeque<>();
  private long reached; // a reader's first offset that was not handed out
  private boolean moved; // reached counts
  private long window;
  private long used; // messages taken since credit was given back
  private long usedBytes;
  private long usedSince;

  private Spans pending = new Spans(); // acknowledgments that are not sent yet
  private Spans unconfirmed = new Spans();
  private OptionalLong until =
      OptionalLong.empty(); // everything up to here as well; not confirmed yet
  private int untils;
  private long ackDue = NEVER;
  private boolean confirming;

  private long due;
  private int failures;

  Attachment(long number, Wanted wanted, Runnable changed) {
    this.number = number;
    this.wanted = wanted;
    this.changed = changed;
    arguments = wanted.arguments();
  }

  @Override
  public long number() {
    return number;
  }

  Wanted wanted() {
    return wanted;
  }

  boolean isReader() {
    return wanted.type().equals(READER);
  }

  String what() {
    return isReader() ? "reader of " + wanted.topic() : "consumer " + wanted.subscription();
  }

  Phase phase() {
    return phase;
  }

  boolean opened() {
    return opened;
  }

  boolean standby() {
    return standby;
  }

  int epoch() {
    return epoch;
  }

  long position() {
    return position;
  }

  IsterException error() {
    return error;
  }

  IsterException trouble() {
    return trouble;
  }

  IsterException takeComplaint() {
    IsterException told = complaint;
    complaint = null;
    return told;
  }

  /** Whether acknowledgments were forgotten since it was asked last. */
  boolean takeForgotten() {
    boolean told = forgotten;
    forgotten = false;
    return told;
  }

  List<Event> takeEvents() {
    List<Event> told = new ArrayList<>(events);
    events.clear();
    return told;
  }

  // ---- opening

  @Override
  public void onReady(Session ready, boolean resumed, long now) {
    session = ready;
    if (!resumed) {
      forget();
    } else if (phase == Phase.IDLE && opened) {
      repeatAcks(); // so that what they are about is not delivered again
    }
    if (phase == Phase.IDLE || phase == Phase.WAITING && due <= now) {
      open();
    }
  }

  /** Drops acknowledgments: the broker knows no more what they are about. */
  private void forget() {
    forgotten |= !settled();
    dropAcks();
    changed.run();
  }

  private void dropAcks() {
    epoch++;
    pending = new Spans();
    unconfirmed = new Spans();
    until = OptionalLong.empty();
    confirming = false;
    ackDue = NEVER;
  }

  private void open() {
    if (window == 0) {
      window = wanted.credit() > 0 ? wanted.credit() : WINDOW_FIRST;
    }
    window = Math.max(1, Math.min(window, session.limits().creditMessagesMax()));
    phase = Phase.OPENING;
    queue.clear();
    used = 0;
    usedBytes = 0;
    Header header =
        new Header(Wire.OPEN_CONSUMER)
            .with(Wire.REF, session.expect((answer, body, now) -> onOpenAnswer(answer, now)))
            .with(Wire.HANDLE, number)
            .with(Wire.TOPIC, wanted.topic())
            .with(Wire.SUBSCRIPTION, wanted.subscription())
            .with(Wire.SUBSCRIPTION_TYPE, wanted.type())
            .with(Wire.MESSAGES, window)
            .with(Wire.BYTES, Math.min(CREDIT_BYTES, session.limits().creditBytesMax()))
            .with(Wire.SPARSE, true)
            .with(Wire.INSTANCE, instance);
    if (isReader() && moved) {
      header.with(Wire.START, reached);
    } else if (wanted.start() != null) {
      header.with(Wire.START, wanted.start());
    }
    if (wanted.type().equals("failover")) {
      header.with(Wire.PRIORITY, wanted.priority());
    }
    if (wanted.force() && !opened) {
      header.with(Wire.FORCE, true);
    }
    if (!arguments.isEmpty()) {
      header.with(Wire.ARGUMENTS, arguments);
    }
    session.emit(header);
  }

  private void onOpenAnswer(Header header, long now) {
    if (phase != Phase.OPENING) {
      return;
    }
    switch (header.type()) {
      case Wire.MOVED -> session.moved(this, header.text(Wire.ENDPOINT));
      case Wire.ERROR -> refused(header.error(), now);
      case Wire.OPENED -> {
        phase = Phase.OPEN;
        opened = true;
        failures = 0;
        trouble = null;
        position = header.uint(Wire.OFFSET);
        usedSince = now;
        confirming = false;
        if (isAnother(header.text(Wire.INSTANCE))) {
          if (isReader()) {
            fail(
                new IsterException.Refused(
                    "topic-deleted",
                    Action.STOP,
                    "topic %s was deleted and made again".formatted(wanted.topic())));
            return;
          }
          forget();
        } else {
          repeatAcks(); // a broker that had not finished an earlier open ignored them before
        }
        changed.run();
      }
      default ->
          throw IsterException.malformed(
              "a frame of type %d answered OPEN_CONSUMER".formatted(header.type()));
    }
  }

  /**
   * Whether OPENED names another subscription of this name than the one before, or one that was
   * moved meanwhile.
   */
  private boolean isAnother(String said) {
    boolean another = !said.isEmpty() && !instance.isEmpty() && !said.equals(instance);
    if (!said.isEmpty()) {
      instance = said;
    }
    return another;
  }

  private void refused(IsterException said, long now) {
    IsterException reason = said;
    if (said.code().equals(OTHER_OPTIONS) && opened && !arguments.isEmpty()) {
      arguments = Map.of(); // somebody changed them meanwhile
      reason = new IsterException.Refused(said.code(), Action.RETRY, said.getMessage());
    }
    boolean busy = reason.code().equals(BUSY);
    if (reason.action() != Action.RETRY || busy && !opened && !wanted.patient()) {
      fail(reason);
      return;
    }
    long wait =
        busy ? PLACE_RETRY : Session.backOff(failures, Session.BACK_OFF_MIN, Session.BACK_OFF_MAX);
    failures++;
    phase = Phase.WAITING;
    trouble = reason;
    due = now + wait;
    queue.clear();
    forget();
  }

  @Override
  public void fail(IsterException reason) {
    if (phase == Phase.CLOSED) {
      return;
    }
    phase = Phase.CLOSED;
    error = reason;
    queue.clear();
    changed.run();
  }

  @Override
  public void onLost(IsterException reason) {
    trouble = reason;
    switch (phase) {
      case OPENING, OPEN, WAITING -> {
        phase = Phase.IDLE;
        queue.clear();
        confirming = false;
      }
      case CLOSING -> fail(new IsterException.Closed("the " + what()));
      default -> {}
    }
    session = null;
  }

  @Override
  public void tick(long now) {
    if (phase == Phase.WAITING && due <= now && session != null) {
      open();
    }
    if (ackDue <= now) {
      flush(false);
    }
  }

  @Override
  public long deadline() {
    return switch (phase) {
      case WAITING -> due;
      case OPEN -> ackDue;
      default -> NEVER;
    };
  }

  // ---- what comes

  @Override
  public void onFrame(Header header, byte[][] body, long now) {
    switch (header.type()) {
      case Wire.DELIVER -> {
        if (phase == Phase.OPEN) {
          queue.add(Delivery.of(header, body));
          changed.run();
        }
      }
      case Wire.EVENT -> event(header);
      case Wire.ERROR -> {
        IsterException reason = header.error();
        if (!header.flag(Wire.CLOSED)) {
          complaint = reason;
        } else if (phase == Phase.OPEN || phase == Phase.OPENING || phase == Phase.WAITING) {
          refused(reason, now);
        }
        changed.run();
      }
      default -> {}
    }
  }

  private void event(Header header) {
    String code = header.text(Wire.CODE);
    switch (code) {
      case "active" -> standby = false;
      case "standby" -> standby = true;
      case "sought" -> {
        for (Delivery each : queue) {
          used += each.left();
          usedBytes += each.bytes();
        }
        queue.clear();
        dropAcks();
        giveBack();
      }
      default -> {}
    }
    OptionalLong offset =
        header.has(Wire.OFFSET) ? OptionalLong.of(header.uint(Wire.OFFSET)) : OptionalLong.empty();
    if (events.size() == EVENTS_KEPT) {
      events.remove();
    }
    events.add(
        new Event(code, wanted.topic(), header.uint(Wire.COUNT), offset, header.text(Wire.TEXT)));
    changed.run();
  }

  // ---- what the program takes

  /** Whether there is a message that may be handed out. */
  boolean hasNext() {
    return !queue.isEmpty();
  }

  /** Hands out one message; null where there is none. The program asks at now. */
  Message nextOne(long now) {
    Delivery came = queue.peek();
    if (came == null) {
      starve(now);
      return null;
    }
    Message taken = came.take(this, wanted.topic(), epoch);
    handedOut(came, 1, taken.offset(), now);
    return taken;
  }

  /** Hands out up to most messages that came together; empty where there are none. */
  List<Message> next(int most, long now) {
    Delivery came = queue.peek();
    if (came == null) {
      starve(now);
      return List.of();
    }
    int count = Math.min(most, came.left());
    List<Message> taken = new ArrayList<>(count);
    for (int i = 0; i < count; i++) {
      taken.add(came.take(this, wanted.topic(), epoch));
    }
    handedOut(came, count, taken.get(count - 1).offset(), now);
    return taken;
  }

  private void handedOut(Delivery came, int count, long last, long now) {
    if (came.left() == 0) {
      queue.remove();
      usedBytes += came.bytes();
    }
    used += count;
    reached = last + 1;
    moved = true;
    pace(now);
  }

  /** The program has nothing to do: all credit goes back, and there may be more of it. */
  private void starve(long now) {
    if (wanted.credit() == 0 && used > 0 && used >= window / 2 && now - usedSince < PACE_AIM) {
      grow();
    }
    if (used > 0) {
      giveBack();
      usedSince = now;
    }
  }

  private void grow() {
    long most =
        session == null ? WINDOW_MOST : Math.min(WINDOW_MOST, session.limits().creditMessagesMax());
    long wider = Math.min(2 * window, most);
    if (wider > window) {
      used += wider - window;
      window = wider;
    }
  }

  /**
   * Gives credit back when half of it is used, and follows the program: as much as it works off in
   * a moment.
   */
  private void pace(long now) {
    if (used < (window + 1) / 2 && usedBytes < CREDIT_BYTES / 2) {
      return;
    }
    if (wanted.credit() == 0 && used >= (window + 1) / 2) {
      long took = now - usedSince;
      if (took < PACE_AIM / 4) {
        grow();
      } else if (took > PACE_AIM && window > 2) {
        long less = window / 2;
        used -= Math.min(used, window - less);
        window = less;
      }
    }
    giveBack();
    usedSince = now;
  }

  private void giveBack() {
    if (phase != Phase.OPEN || session == null || used == 0 && usedBytes == 0) {
      return;
    }
    session.emit(
        new Header(Wire.CREDIT)
            .with(Wire.HANDLE, number)
            .with(Wire.MESSAGES, used)
            .with(Wire.BYTES, usedBytes));
    used = 0;
    usedBytes = 0;
  }

  // ---- acknowledging

  boolean settled() {
    return pending.isEmpty() && unconfirmed.isEmpty() && until.isEmpty();
  }

  boolean ackIsDue() {
    return ackDue != NEVER;
  }

  void ack(Message message, long now) {
    if (message.epoch() != epoch) {
      forgotten = true;
      return;
    }
    pending.add(message.offset());
    if (ackDue == NEVER) {
      ackDue = now + ACK_DELAY;
    }
  }

  /** Sends what is acknowledged; with confirm, DONE is asked for. */
  void flush(boolean confirm) {
    if (phase != Phase.OPEN || session == null) {
      return;
    }
    ackDue = NEVER;
    Spans fresh = pending;
    pending = new Spans();
    unconfirmed.addAll(fresh);
    boolean ask =
        (confirm || unconfirmed.size() > CONFIRM_RANGES) && !confirming && !unconfirmed.isEmpty();
    if (!ask) {
      sendRanges(Wire.ACK, fresh, 0, null, null);
      return;
    }
    confirming = true;
    int covered = unconfirmed.size();
    int coveredUntils = untils;
    int asked = epoch;
    long ref =
        session.expect((answer, body, now) -> onConfirmed(answer, asked, covered, coveredUntils));
    sendRanges(Wire.ACK, fresh.isEmpty() ? unconfirmed.last() : fresh, ref, null, null);
  }

  private void onConfirmed(Header answer, int asked, int covered, int coveredUntils) {
    if (asked != epoch) {
      return;
    }
    confirming = false;
    int over = covered;
    if (answer.type() == Wire.ERROR) {
      IsterException reason = answer.error();
      if (!reason.code().equals("closed")) {
        complaint = reason;
      }
      over = unconfirmed.size();
    }
    if (coveredUntils == untils) {
      until = OptionalLong.empty();
    }
    unconfirmed.drop(over);
    changed.run();
  }

  /** Sends what is not known to be written again. */
  private void repeatAcks() {
    sendRanges(Wire.ACK, unconfirmed, 0, null, null);
    sendUntil();
  }

  private void sendUntil() {
    if (until.isPresent() && session != null && phase != Phase.CLOSING && phase != Phase.CLOSED) {
      session.emit(
          new Header(Wire.ACK_UNTIL)
              .with(Wire.HANDLE, number)
              .with(Wire.OFFSET, until.getAsLong()));
    }
  }

  /** Splits ranges over several frames; a REF is on the last, whose DONE covers all. */
  private void sendRanges(int type, Spans spans, long ref, Long delayMs, String reason) {
    for (int from = 0; from < spans.size(); from += Wire.RANGES_MAX) {
      Header header =
          new Header(type)
              .with(Wire.HANDLE, number)
              .with(Wire.RANGES, spans.part(from, Wire.RANGES_MAX))
              .with(Wire.DELAY, (Object) delayMs)
              .with(Wire.REASON, reason);
      if (ref != 0 && from + Wire.RANGES_MAX >= spans.size()) {
        header.with(Wire.REF, ref);
      }
      session.emit(header);
    }
  }

  private Spans spansOf(List<Message> messages) {
    Spans found = new Spans();
    for (Message message : messages) {
      if (message.epoch() == epoch) {
        found.add(message.offset());
      }
    }
    return found;
  }

  /** Gives messages back; without a delay the subscription's back-off counts. */
  void nack(List<Message> messages, Long delayMs, String reason) {
    flush(false);
    if (phase == Phase.OPEN && session != null) {
      sendRanges(Wire.NACK, spansOf(messages), 0, delayMs, reason);
    }
  }

  void extend(List<Message> messages) {
    if (phase == Phase.OPEN && session != null) {
      sendRanges(Wire.EXTEND, spansOf(messages), 0, null, null);
    }
  }

  void ackUntil(Message message, long now) {
    if (message.epoch() != epoch) {
      forgotten = true;
      return;
    }
    flush(false);
    until = OptionalLong.of(message.offset());
    untils++;
    sendUntil();
    ack(message, now); // the message itself as well: what the next confirmation is about
  }

  /** Sends what is acknowledged and says CLOSE. */
  void close() {
    flush(false);
    if (phase == Phase.CLOSED || phase == Phase.CLOSING) {
      return;
    } else if (phase == Phase.IDLE || session == null) {
      fail(new IsterException.Closed("the " + what()));
      return;
    }
    phase = Phase.CLOSING;
    queue.clear();
    long ref =
        session.expect((header, body, now) -> fail(new IsterException.Closed("the " + what())));
    session.emit(new Header(Wire.CLOSE).with(Wire.REF, ref).with(Wire.HANDLE, number));
  }
}

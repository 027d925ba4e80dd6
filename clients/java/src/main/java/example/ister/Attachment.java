package example.ister;

import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;

/**
 * A consumer's or reader's side of the conversation, section 9 of PROTOCOL.md: opening, deliveries
 * and events, closing. It has two parts: {@link Handing}, what is on its way to the program, and
 * {@link Acknowledgments}, what the program says of it. It knows no socket, no clock and no thread.
 *
 * <p>Invariants: whatever the broker forgets, or is told to forget, is void here before anything
 * more is said about it. No acknowledgment for a subscription that was deleted is sent to the next
 * one of its name.
 */
final class Attachment implements Handle, Handing.Speaker, Acknowledgments.Speaker {
  static final String BUSY = "subscription-busy";
  private static final String OTHER_OPTIONS = "subscription-options";
  private static final String UNKNOWN_HANDLE = "unknown-handle";
  private static final String READER = "reader";
  private static final long PLACE_RETRY = 500 * Session.MS;
  static final int EVENTS_KEPT = 256;

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
      long credit) {
    /** The same of one topic of a pattern; a start of null is the one here. */
    Wanted of(String one, Object place, long messages) {
      Object begin = place == null ? start : place;
      return new Wanted(
          one, subscription, type, begin, priority, force, arguments, patient, messages);
    }

    boolean shares() {
      return type.equals("shared") || type.equals("key-shared");
    }
  }

  final Handing handing;
  final Acknowledgments acks;
  private final long number;
  private final Wanted wanted;
  private final Runnable changed;
  private Map<String, Object> arguments;

  private Phase phase = Phase.IDLE;
  private boolean opened;
  private Session session;
  private byte[] deliveredIn; // the session that knows what was delivered
  private IsterException error;
  private IsterException complaint;
  private IsterException damage; // told once nothing from before it is left
  private IsterException trouble;
  private String instance = "";
  private long moves; // of so many the broker has told, where it counts them
  private long position;
  private int begun; // how often delivering began again: opened, or moved
  private Boolean active;
  private long dropped;
  private ArrayDeque<Event> events = new ArrayDeque<>();

  private List<Header> lastWords = List.of();

  private long due;
  private int failures;

  Attachment(long number, Wanted wanted, Runnable changed) {
    this.number = number;
    this.wanted = wanted;
    this.changed = changed;
    arguments = wanted.arguments();
    handing = new Handing(this, wanted.shares(), wanted.credit());
    acks = new Acknowledgments(this);
    acks.silent(isReader());
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

  /** Whether it is the active one, as far as it was told; null where it was not. */
  Boolean active() {
    return active;
  }

  boolean standby() {
    return active != null && !active;
  }

  int begun() {
    return begun;
  }

  long dropped() {
    return dropped;
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

  /** Damage that the subscription waits at; told once, when everything from before is taken. */
  IsterException takeDamage() {
    if (damage == null || handing.asks() || handing.waits() || handing.hasInHand()) {
      return null;
    }
    IsterException told = damage;
    damage = null;
    return told;
  }

  /** Whether there is something to hand out or to tell. */
  boolean hasNews() {
    return handing.waits() || complaint != null || damage != null || phase == Phase.CLOSED;
  }

  /** Where events go: of a pattern's topics, all to one place. */
  void events(ArrayDeque<Event> place) {
    events = place;
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
    boolean same = resumed && Arrays.equals(ready.secret(), deliveredIn);
    if (!same) {
      acks.forget();
      changed.run();
    } else if (phase == Phase.IDLE && opened) {
      acks.repeat(); // so that what they are about is not delivered again
    }
    if (phase == Phase.IDLE || phase == Phase.WAITING && due <= now) {
      open();
    }
  }

  private void open() {
    phase = Phase.OPENING;
    begun++;
    handing.restart(session.limits());
    Header header =
        new Header(Wire.OPEN_CONSUMER)
            .with(Wire.REF, session.expect((answer, body, now) -> onOpenAnswer(answer, now)))
            .with(Wire.HANDLE, number)
            .with(Wire.TOPIC, wanted.topic())
            .with(Wire.SUBSCRIPTION, wanted.subscription())
            .with(Wire.SUBSCRIPTION_TYPE, wanted.type())
            .with(Wire.MESSAGES, handing.creditMessages())
            .with(Wire.BYTES, handing.creditBytes())
            .with(Wire.SPARSE, true)
            .with(Wire.TAKEN, 0L)
            .with(Wire.INSTANCE, instance)
            .with(Wire.SOUGHT, 0L);
    if (handing.reads()) {
      header.with(Wire.START, handing.next());
    } else if (wanted.start() != null) {
      header.with(Wire.START, wanted.start());
    }
    if (wanted.type().equals("failover")) {
      header.with(Wire.PRIORITY, wanted.priority());
    }
    if (wanted.force() && !opened) { // later two that want it would displace each other for ever
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
        if (isTheSame(header.text(Wire.INSTANCE))) {
          opened(header);
        }
      }
      default ->
          throw IsterException.malformed(
              "a frame of type %d answered OPEN_CONSUMER".formatted(header.type()));
    }
  }

  private void opened(Header header) {
    phase = Phase.OPEN;
    opened = true;
    deliveredIn = session.secret();
    failures = 0;
    trouble = null;
    boolean reliable = !header.text(Wire.STRATEGY).equals("non-reliable");
    position = header.uint(Wire.OFFSET);
    acks.silent(isReader() || !reliable);
    handing.tells(header.has(Wire.TAKEN));
    moves = header.uint(Wire.SOUGHT);
    if (isReader() && reliable) {
      handing.readsFrom(position);
    }
    acks.repeat(); // a broker that had not finished an earlier open ignored them before
    acks.flush(false);
    changed.run();
  }

  /**
   * Notes which subscription of its name is open. If it is another than before, or was moved
   * meanwhile, what was said of it is void; a reader's place is one in another topic then, and it
   * is over.
   */
  private boolean isTheSame(String said) {
    String before = instance;
    instance = said.isEmpty() ? before : said;
    if (before.isEmpty() || before.equals(instance)) {
      return true;
    }
    if (isReader() && handing.reads()) {
      session.close(number, List.of(), (answer, body, now) -> {});
      fail(
          new IsterException.Refused(
              "topic-deleted",
              Action.STOP,
              "topic %s was deleted and made again".formatted(wanted.topic())));
      return false;
    }
    acks.forget();
    return true;
  }

  private void refused(IsterException said, long now) {
    boolean again = said.action() == Action.RETRY || said.code().equals(UNKNOWN_HANDLE) && opened;
    if (said.code().equals(OTHER_OPTIONS) && opened && !arguments.isEmpty()) {
      arguments = Map.of(); // somebody changed them meanwhile
      again = true;
    }
    boolean busy = said.code().equals(BUSY);
    if (!again || busy && !opened && !wanted.patient()) {
      fail(said);
      return;
    }
    long wait = Session.backOff(failures++, Session.BACK_OFF_MIN, Session.BACK_OFF_MAX);
    phase = Phase.WAITING;
    trouble = said;
    due = now + (busy ? Math.min(PLACE_RETRY, wait) : wait);
    acks.forget(); // whoever answers then may not know what was delivered before
    dropUnseen();
    changed.run();
  }

  /** Drops what was not handed out: it comes again, if the broker keeps it. */
  private void dropUnseen() {
    handing.clear();
    if (!acks.silent()) {
      handing.withhold();
    }
  }

  @Override
  public void fail(IsterException reason) {
    if (phase == Phase.CLOSED) {
      return;
    }
    phase = Phase.CLOSED;
    error = reason;
    dropUnseen();
    acks.forget();
    changed.run();
  }

  @Override
  public void onLost(IsterException reason) {
    trouble = reason;
    switch (phase) {
      case OPENING, OPEN, WAITING -> {
        phase = Phase.IDLE;
        dropUnseen();
        acks.onLost();
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
    if (acks.due() <= now) {
      acks.flush(false);
    }
  }

  @Override
  public long deadline() {
    return switch (phase) {
      case WAITING -> due;
      case OPEN -> acks.due();
      default -> NEVER;
    };
  }

  // ---- what comes

  @Override
  public void onFrame(Header header, byte[][] body, long now) {
    switch (header.type()) {
      case Wire.DELIVER -> {
        if (phase == Phase.OPEN) {
          handing.onDelivery(Delivery.of(this, acks.epoch(), now, header, body));
          changed.run();
        }
      }
      case Wire.EVENT -> event(header);
      case Wire.ERROR -> error(header, now);
      default -> {}
    }
  }

  private void error(Header header, long now) {
    IsterException reason = header.error();
    boolean lives = phase == Phase.OPEN || phase == Phase.OPENING || phase == Phase.WAITING;
    boolean again = reason.code().equals(UNKNOWN_HANDLE) || reason.action() == Action.RETRY;
    if (reason.code().equals("not-active")) {
      return; // acknowledged too late: the consumer that is active now gets the messages again
    } else if (lives && (header.flag(Wire.CLOSED) || again)) {
      refused(reason, now);
    } else {
      complaint = reason;
    }
    changed.run();
  }

  private void event(Header header) {
    String code = header.text(Wire.CODE);
    String text = header.text(Wire.TEXT);
    moves = Math.max(moves, header.uint(Wire.SOUGHT));
    switch (code) {
      case "active" -> active = true;
      case "standby" -> active = false;
      case "dropped" -> dropped = header.uint(Wire.COUNT);
      case "log-damaged" -> // nothing more comes until an operator decides: the program must hear
          // it
          damage = new IsterException.Refused(code, Action.STOP, text);
      case "sought" -> {
        begun++;
        damage = null;
        acks.onMoved();
        handing.onSought();
      }
      case "recalled" -> handing.onRecalled();
      default -> {}
    }
    OptionalLong offset =
        header.has(Wire.OFFSET) ? OptionalLong.of(header.uint(Wire.OFFSET)) : OptionalLong.empty();
    if (events.size() == EVENTS_KEPT) {
      events.remove();
    }
    events.add(new Event(code, wanted.topic(), header.uint(Wire.COUNT), offset, text));
    changed.run();
  }

  // ---- for its parts

  @Override
  public boolean isOpen() {
    return phase == Phase.OPEN && session != null;
  }

  @Override
  public boolean say(Header header) {
    if (!isOpen()) {
      return false;
    }
    session.emit(header.with(Wire.HANDLE, number));
    return true;
  }

  @Override
  public void sayOfMessages(Header header) {
    if (session != null && phase != Phase.CLOSING && phase != Phase.CLOSED) {
      mark(header);
      session.emit(header);
    }
  }

  private void mark(Header header) {
    header.with(Wire.HANDLE, number);
    if (moves != 0) {
      header.with(Wire.SOUGHT, moves);
    }
  }

  @Override
  public boolean isOver() {
    return phase == Phase.CLOSED;
  }

  @Override
  public List<Header> lastWords() {
    return lastWords;
  }

  @Override
  public long expectLeave() {
    return isOpen() ? session.expect((answer, body, now) -> onLeave(answer)) : 0;
  }

  private void onLeave(Header answer) {
    if (handing.onLeave(answer.uint(Wire.REF), answer.type() == Wire.DONE)) {
      changed.run();
    }
  }

  @Override
  public long expectConfirmed(Acknowledgments.Confirmation what) {
    return session.expect(
        (answer, body, now) -> {
          IsterException told = acks.onConfirmed(what, answer);
          complaint = told == null ? complaint : told;
          changed.run();
        });
  }

  @Override
  public void flush() {
    acks.flush(false);
  }

  // ---- what the program says

  /** Acknowledges; true where that gathers, and a time to send it is to be set. */
  boolean ack(Message message) {
    acks.add(message);
    return acks.wantsDue();
  }

  /** Gives messages back; without a delay the subscription's back-off counts. */
  void nack(List<Message> messages, Duration delay, String reason) {
    int[] letters = reason.codePoints().limit(Wire.REASON_CHARACTERS_MAX).toArray();
    String told = letters.length == 0 ? null : new String(letters, 0, letters.length);
    acks.sayOf(Wire.NACK, messages, delay == null ? null : Math.max(0, delay.toMillis()), told);
  }

  /** Lets everything that the program has in hand fail. */
  void blame(String reason) {
    if (isOpen() && handing.tells()) {
      acks.flush(false);
      int[] letters = reason.codePoints().limit(Wire.REASON_CHARACTERS_MAX).toArray();
      sayOfMessages(
          new Header(Wire.NACK)
              .with(Wire.RANGES, new long[0])
              .with(Wire.TAKEN, handing.handed())
              .with(Wire.REASON, new String(letters, 0, letters.length)));
    }
  }

  /** Sends what is acknowledged and says CLOSE. */
  void close() {
    acks.flush(false);
    if (phase == Phase.CLOSED || phase == Phase.CLOSING) {
      return;
    }
    lastWords = acks.unheard();
    lastWords.forEach(this::mark);
    if (phase == Phase.IDLE || session == null) {
      fail(new IsterException.Closed("the " + what()));
      return;
    }
    phase = Phase.CLOSING;
    handing.clear();
    handing.withhold();
    session.close(
        number, lastWords, (header, body, now) -> fail(new IsterException.Closed("the " + what())));
  }
}

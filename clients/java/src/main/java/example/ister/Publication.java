package example.ister;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * A producer's side of the conversation, section 8 of PROTOCOL.md. It knows no socket, no clock and
 * no thread.
 *
 * <p>Invariants: a sealed batch is never cut again: what is sent once is sent again byte for byte.
 * What has no receipt fits the window and BATCHES_IN_FLIGHT_MAX, or is one batch alone. A receipt
 * is resolved once.
 */
final class Publication implements Handle {
  enum Phase {
    IDLE,
    OPENING,
    OPEN,
    WAITING,
    CLOSING,
    CLOSED
  }

  /** A batch that is sealed, until it is resolved. */
  private static final class Shipment {
    final long sequence;
    final int count;
    final int columns;
    final byte[][] body;
    final long size;
    final Receipt[] receipts;
    IsterException refused;

    Shipment(long sequence, int count, int columns, byte[][] body, Receipt[] receipts) {
      this.sequence = sequence;
      this.count = count;
      this.columns = columns;
      this.body = body;
      this.size = Batch.sizeOf(body);
      this.receipts = receipts;
    }
  }

  private static final String UNKNOWN_HANDLE = "unknown-handle";
  private static final int REFUSED_KEPT = 1000;

  /** So many batches without a receipt show that the broker is behind. */
  private static final int BEHIND = 4;

  private static final int LARGE = 4; // times as much gathers then

  private final long number;
  private final String topic;
  private final long id;
  private final long batchBytes;
  private final long linger;
  private final long ownWindow;
  private final Runnable changed;

  private Phase phase = Phase.IDLE;
  private boolean opened;
  private boolean reliable = true;
  private IsterException error;
  private IsterException trouble;
  private final List<Receipt> refused = new ArrayList<>(); // told by flush if nobody looks at them

  private Session session;
  private Session.Limits limits;
  private long next; // the number of the next message
  private long window;
  private long inFlight = 1;
  private final List<Shipment> shipments = new ArrayList<>();
  private long bytes;
  private int sent;

  private final Batch gathered = new Batch();
  private Receipt[] receipts = new Receipt[16]; // of what is gathered
  private long gatheredBytes;
  private long gatheredWith; // with the message that is looked at
  private long batchMost; // batchBytes, within the limits
  private long largeMost; // the same while the broker is behind
  private long gatheredSince;

  private long due;
  private int failures;

  Publication(
      long number,
      String topic,
      long id,
      long batchBytes,
      long linger,
      long ownWindow,
      Runnable changed) {
    this.number = number;
    this.topic = topic;
    this.id = id;
    this.batchBytes = batchBytes;
    this.linger = linger;
    this.ownWindow = ownWindow;
    this.changed = changed;
  }

  @Override
  public long number() {
    return number;
  }

  String topic() {
    return topic;
  }

  boolean opened() {
    return opened;
  }

  boolean reliable() {
    return reliable;
  }

  Phase phase() {
    return phase;
  }

  IsterException error() {
    return error;
  }

  IsterException trouble() {
    return trouble;
  }

  /** The number of the next message. */
  long next() {
    return next;
  }

  Session.Limits limits() {
    return limits;
  }

  boolean answered() {
    return gathered.count() == 0 && shipments.isEmpty();
  }

  long unanswered() {
    return bytes;
  }

  int inFlight() {
    return shipments.size();
  }

  boolean gathers() {
    return gathered.count() > 0;
  }

  // ---- opening

  @Override
  public void onReady(Session ready, boolean resumed, long now) {
    session = ready;
    if (phase == Phase.IDLE || phase == Phase.WAITING && due <= now) {
      open();
    }
  }

  private long lowest() {
    return shipments.isEmpty() ? next - gathered.count() : shipments.get(0).sequence;
  }

  private void open() {
    phase = Phase.OPENING;
    sent = 0;
    for (Shipment shipment : shipments) {
      shipment.refused = null;
    }
    long lowest = lowest();
    session.emit(
        new Header(Wire.OPEN_PRODUCER)
            .with(Wire.REF, session.expect((header, body, now) -> onOpenAnswer(header, now)))
            .with(Wire.HANDLE, number)
            .with(Wire.TOPIC, topic)
            .with(Wire.PRODUCER, id)
            .with(Wire.SEQUENCE, lowest));
  }

  private void onOpenAnswer(Header header, long now) {
    if (phase != Phase.OPENING) {
      return;
    }
    switch (header.type()) {
      case Wire.MOVED -> session.moved(this, header.text(Wire.ENDPOINT));
      case Wire.ERROR -> refusedWhole(header.error(), now);
      case Wire.OPENED -> {
        phase = Phase.OPEN;
        failures = 0;
        trouble = null;
        limits = session.limits();
        window = header.has(Wire.BYTES) ? header.uint(Wire.BYTES) : limits.windowBytes();
        if (ownWindow > 0) {
          window = Math.min(window, ownWindow);
        }
        inFlight = Math.max(1, limits.batchesInFlightMax());
        long most = Math.min(window, limits.batchBytesMax());
        batchMost = Math.min(batchBytes, most);
        largeMost = Math.min(Math.min(LARGE * batchBytes, window / LARGE), most);
        reliable = !header.text(Wire.STRATEGY).equals("non-reliable");
        if (!opened) {
          opened = true;
          next = Math.max(next, header.uint(Wire.SEQUENCE));
        }
        send();
        changed.run();
      }
      default ->
          throw IsterException.malformed(
              "a frame of type %d answered OPEN_PRODUCER".formatted(header.type()));
    }
  }

  private void refusedWhole(IsterException reason, long now) {
    if (reason.action() == Action.RETRY) {
      phase = Phase.WAITING;
      trouble = reason;
      due = now + Session.backOff(failures++, Session.BACK_OFF_MIN, Session.BACK_OFF_MAX);
    } else {
      fail(reason);
    }
  }

  @Override
  public void fail(IsterException reason) {
    if (phase == Phase.CLOSED) {
      return;
    }
    phase = Phase.CLOSED;
    error = reason;
    List<Receipt> all = new ArrayList<>();
    shipments.forEach(shipment -> all.addAll(Arrays.asList(shipment.receipts)));
    all.addAll(Arrays.asList(receipts).subList(0, gathered.count()));
    shipments.clear();
    gathered.clear();
    bytes = 0;
    gatheredBytes = 0;
    if (!all.isEmpty()) {
      later(() -> all.forEach(receipt -> receipt.refuse(reason)));
    }
    changed.run();
  }

  @Override
  public boolean isOver() {
    return phase == Phase.CLOSED;
  }

  @Override
  public List<Header> lastWords() {
    return List.of();
  }

  private Session lastSession;

  private void later(Runnable task) {
    Session any = session != null ? session : lastSession;
    if (any == null) {
      task.run(); // it never had one: nobody can have sent anything
    } else {
      any.later(task);
    }
  }

  @Override
  public void onLost(IsterException reason) {
    trouble = reason;
    lastSession = session != null ? session : lastSession;
    switch (phase) {
      case OPENING, OPEN, WAITING -> {
        phase = Phase.IDLE;
        sent = 0;
      }
      case CLOSING -> fail(new IsterException.Closed("the producer"));
      default -> {}
    }
    session = null;
  }

  @Override
  public void tick(long now) {
    if (phase == Phase.WAITING && due <= now && session != null) {
      open();
    }
    if (gathered.count() > 0 && gatheredSince + linger <= now) {
      seal();
    }
  }

  @Override
  public long deadline() {
    long wanted = phase == Phase.WAITING ? due : NEVER;
    if (gathered.count() > 0 && hasRoom(gatheredBytes)) {
      wanted = Math.min(wanted, gatheredSince + linger);
    }
    return wanted;
  }

  // ---- answers

  @Override
  public void onFrame(Header header, byte[][] body, long now) {
    if (header.type() == Wire.RECEIPT) {
      long[] pairs = header.uints(Wire.RECEIPTS);
      for (int i = 0; i + 1 < pairs.length; i += 2) {
        resolve(pairs[i], pairs[i + 1]);
      }
      afterAnswers();
    } else if (header.type() == Wire.ERROR) {
      IsterException reason = header.error();
      if (!header.flag(Wire.CLOSED) && header.has(Wire.SEQUENCE)) {
        refuse(header.uint(Wire.SEQUENCE), reason, now);
      } else if (phase == Phase.OPEN || phase == Phase.OPENING || phase == Phase.WAITING) {
        refusedWhole(reason, now);
      }
    }
  }

  private void resolve(long sequence, long offset) {
    for (int i = 0; i < shipments.size(); i++) {
      Shipment shipment = shipments.get(i);
      if (shipment.sequence == sequence) {
        remove(i);
        Receipt[] told = shipment.receipts;
        later(
            () -> {
              for (Receipt receipt : told) {
                receipt.resolve(topic, offset);
              }
            });
        return;
      }
    }
  }

  private void remove(int i) {
    bytes -= shipments.remove(i).size;
    if (i < sent) {
      sent--;
    }
  }

  private void refuse(long sequence, IsterException reason, long now) {
    if (phase != Phase.OPEN) {
      return;
    }
    for (Shipment shipment : shipments) {
      if (shipment.sequence == sequence) {
        if (reason.action() == Action.RETRY) {
          refusedWhole(reason, now);
        } else if (reason
            .code()
            .equals(UNKNOWN_HANDLE)) { // the worker has no such producer (any more)
          refusedWhole(
              new IsterException.Refused(UNKNOWN_HANDLE, Action.RETRY, reason.getMessage()), now);
        } else {
          shipment.refused = reason;
          afterAnswers();
        }
        return;
      } else if (shipment.refused != null && shipment.sequence < sequence) {
        return; // what followed a refused one is a gap, and is sent again behind it
      }
    }
  }

  /** Goes on once something was answered. */
  private void afterAnswers() {
    while (phase == Phase.OPEN && !shipments.isEmpty() && shipments.get(0).refused != null) {
      Shipment shipment = shipments.get(0);
      remove(0);
      if (refused.size() < REFUSED_KEPT) {
        refused.addAll(Arrays.asList(shipment.receipts));
      }
      IsterException reason = shipment.refused;
      later(() -> Arrays.asList(shipment.receipts).forEach(receipt -> receipt.refuse(reason)));
      open(); // behind it; what follows is sent again
    }
    if (gathered.count() > 0 && shipments.isEmpty()) {
      seal();
    }
    changed.run();
  }

  // ---- taking messages

  private boolean hasRoom(long size) {
    if (!opened || phase == Phase.CLOSED || phase == Phase.CLOSING) {
      return false;
    }
    return (bytes == 0 || bytes + size <= window) && shipments.size() < inFlight;
  }

  /**
   * How many bytes gather. While the broker is behind, more: fewer and larger batches cost both
   * sides less, and nobody waits longer for it.
   */
  private long batchLimit() {
    return shipments.size() < BEHIND ? batchMost : Math.max(batchMost, largeMost);
  }

  /**
   * Whether a message can be taken now; keys and attributes may be null. Seals what was gathered
   * where it must.
   */
  boolean hasRoomFor(byte[] payload, byte[] key, byte[] attributes, long deliverAtMs) {
    int keyBytes = key == null ? 0 : key.length;
    int attributeBytes = attributes == null ? 0 : attributes.length;
    gatheredWith = gathered.sizeWith(payload.length, keyBytes, attributeBytes, deliverAtMs);
    if (gathered.count() == 0) {
      return bytes == 0 || gatheredWith <= batchLimit() || hasRoom(gatheredWith);
    } else if (gatheredWith <= batchLimit()) {
      return true;
    } else if (!seal()) {
      return false;
    }
    gatheredWith = gathered.sizeWith(payload.length, keyBytes, attributeBytes, deliverAtMs);
    return gatheredWith <= batchLimit() || hasRoom(gatheredWith);
  }

  /** Adds a message to what is gathered; {@link #hasRoomFor} was true, just now. */
  Receipt take(byte[] payload, byte[] key, byte[] attributes, long deliverAtMs, long now) {
    int index = gathered.count();
    if (index == 0) {
      gatheredSince = now;
    } else if (index == receipts.length) {
      receipts = Arrays.copyOf(receipts, 2 * index);
    }
    Receipt receipt = new Receipt(index, 1);
    gathered.add(payload, key, attributes, deliverAtMs);
    receipts[index] = receipt;
    gatheredBytes = gatheredWith;
    next++;
    if (shipments.isEmpty() || gatheredBytes >= batchLimit()) {
      seal();
    }
    return receipt;
  }

  /** Sends messages as a batch of their own; null where it must wait for room. */
  Receipt takeBatch(int count, int columns, byte[][] body) {
    if (!seal() || !hasRoom(Batch.sizeOf(body))) {
      return null;
    }
    Receipt receipt = new Receipt(0, count);
    enqueue(count, columns, body, new Receipt[] {receipt}, next);
    next += count;
    return receipt;
  }

  /** Makes a batch of what is gathered, if there is room for it; false where there is none. */
  boolean seal() {
    int count = gathered.count();
    if (count == 0) {
      return true;
    } else if (!hasRoom(gatheredBytes)) {
      return false;
    }
    Receipt[] told = Arrays.copyOf(receipts, count);
    Arrays.fill(receipts, 0, count, null);
    enqueue(count, gathered.columns(), gathered.body(true), told, next - count);
    gathered.clear();
    gatheredBytes = 0;
    return true;
  }

  private void enqueue(int count, int columns, byte[][] body, Receipt[] told, long sequence) {
    Shipment shipment = new Shipment(sequence, count, columns, body, told);
    shipments.add(shipment);
    bytes += shipment.size;
    send();
  }

  private void send() {
    if (phase != Phase.OPEN || session == null) {
      return;
    }
    for (; sent < shipments.size(); sent++) {
      Shipment shipment = shipments.get(sent);
      Header header =
          new Header(Wire.PUBLISH).with(Wire.HANDLE, number).with(Wire.SEQUENCE, shipment.sequence);
      if (shipment.columns != 0) {
        header.with(Wire.COLUMNS, (long) shipment.columns);
      }
      session.emit(header, shipment.body);
    }
  }

  /** Leaves numbers out; only when everything is answered. */
  void skipTo(long sequence) {
    next = sequence;
    if (phase == Phase.OPEN) {
      open();
    }
  }

  /**
   * A receipt for a number that was used before: of this run if it is still on its way, or one that
   * says: stored.
   */
  Receipt before(long sequence) {
    for (Shipment shipment : shipments) {
      if (shipment.sequence <= sequence && sequence < shipment.sequence + shipment.count) {
        int index = (int) (sequence - shipment.sequence);
        return shipment.receipts[Math.min(shipment.receipts.length - 1, index)];
      }
    }
    long first = next - gathered.count();
    if (sequence >= first) {
      return receipts[(int) (sequence - first)];
    }
    Receipt known = new Receipt(0, 1);
    known.resolve(topic, Wire.OFFSET_UNKNOWN);
    return known;
  }

  /**
   * The error of a refused message whose receipt nobody has looked at since the last time; null for
   * none.
   */
  IsterException unseenRefusal() {
    IsterException found = null;
    for (Receipt receipt : refused) {
      if (found == null && !receipt.observed() && receipt.isCompletedExceptionally()) {
        found = IsterClient.reasonOf(receipt);
      }
    }
    refused.clear();
    return found;
  }

  /** Says CLOSE; what is not answered is given up. */
  void close() {
    if (phase == Phase.CLOSED || phase == Phase.CLOSING) {
      return;
    } else if (phase == Phase.IDLE || session == null) {
      fail(new IsterException.Closed("the producer"));
      return;
    }
    phase = Phase.CLOSING;
    session.close(
        number,
        lastWords(),
        (header, body, now) -> fail(new IsterException.Closed("the producer for topic " + topic)));
  }
}

package example.ister;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;

/**
 * What one consumer has for its program, and the credit for more: sections 9.4 and 9.6 of
 * PROTOCOL.md. It knows no socket, no clock and no thread; whoever uses it holds the client's lock.
 *
 * <p>Invariants: what waits here never exceeds the credit given; credit comes back for what the
 * program was given, and for nothing else; a reader goes on at the first message that was not
 * handed out, wherever it opens again.
 */
final class Handing {
  static final long CREDIT_MOST = 65_536; // of a consumer whose credit follows its program's pace
  static final long CREDIT_BYTES = 8 << 20;

  // Credit comes back once this much is used, and a sixteenth of all, or half of a small one.
  private static final long BACK_MESSAGES = 256;
  private static final long BACK_BYTES = 256 << 10;

  /**
   * A program that is handed no more than this at a time has its acknowledgments sent before the
   * report of what is next.
   */
  private static final int ACK_AT_ONCE = 64;

  private static final long NO_REF = 0;

  /** What handing out needs of the consumer it is part of. */
  interface Speaker {
    /** Sends a frame; false where the consumer is not open. */
    boolean say(Header header);

    /** A REF whose answer is brought to {@link #onLeave}; 0 where the consumer is not open. */
    long expectLeave();

    /** Sends the acknowledgments made so far. */
    void flush();
  }

  private final Speaker speaker;
  private final boolean paced;
  private final Pace pace;
  private final ArrayDeque<Delivery> queue = new ArrayDeque<>();
  private volatile Handful current = Handful.NONE;

  private long creditMessages;
  private long creditBytes = CREDIT_BYTES;
  private long creditMost = CREDIT_MOST;
  private long sharing = 1; // how many topics the program takes from in turn
  private boolean reads; // it is a reader: next counts
  private long next;
  private Delivery inHand; // the last that was begun
  private int at; // its messages before this one were handed out
  private boolean free; // it came before the last open, and its credit is void
  private long now; // when the program asked last
  private long usedMessages;
  private long usedBytes;
  private boolean recalled; // all credit is withheld until the program asks for more

  // what the broker is told about the messages that the program takes, counted since OPENED
  private boolean tells;
  private long came;
  private long handed;
  private long told; // these may be handed out
  private int singly; // deliveries that wait, and are handed out one by one
  private long asking = NO_REF;
  private boolean leave; // the next one may be handed out
  private boolean
      afterSingly; // the last was handed out alone: its acknowledgment may be on its way

  /** A credit of 0 follows the program's pace; shares: others may get what is left to them. */
  Handing(Speaker speaker, boolean shares, long credit) {
    this.speaker = speaker;
    paced = credit == 0;
    int first = shares ? Pace.FIRST_SHARED : Pace.FIRST_ALONE;
    pace = new Pace(first, CREDIT_MOST);
    creditMessages = paced ? first : credit;
  }

  // ---- coming in

  /** It is opened, perhaps again: nothing has come yet, and no credit is used. */
  void restart(Session.Limits limits) {
    queue.clear();
    free = inHand != null; // of a reader, whose program goes on with it
    usedMessages = 0;
    usedBytes = 0;
    came = 0;
    handed = 0;
    told = 0;
    singly = 0;
    tells = false;
    leave = false;
    recalled = false;
    afterSingly = false;
    asking = NO_REF;
    creditMessages = Math.max(1, Math.min(creditMessages, limits.creditMessagesMax()));
    creditBytes = Math.min(creditBytes, limits.creditBytesMax());
  }

  long creditMessages() {
    return creditMessages;
  }

  long creditBytes() {
    return creditBytes;
  }

  /** Whether the broker wants to hear what the program takes. */
  void tells(boolean wanted) {
    tells = wanted;
  }

  boolean tells() {
    return tells;
  }

  /** How many messages since OPENED are the program's. */
  long handed() {
    return handed;
  }

  /** A reader's place, once it has one. */
  void readsFrom(long offset) {
    if (!reads) {
      reads = true;
      next = offset;
    }
  }

  boolean reads() {
    return reads;
  }

  long next() {
    return next;
  }

  void onDelivery(Delivery delivery) {
    came += delivery.count();
    singly += delivery.singly() ? 1 : 0;
    queue.add(delivery);
  }

  /** The subscription was moved: what was not handed out is void, and its credit goes on. */
  void onSought() {
    dropWaiting();
    giveCredit(-1, NO_REF, true);
  }

  /** The broker gave what waits here to others; all credit is void until the program asks. */
  void onRecalled() {
    dropWaiting();
    recalled = true;
    usedMessages = creditMessages;
    usedBytes = creditBytes;
  }

  private void dropWaiting() {
    for (Delivery each : queue) {
      usedMessages += each.count();
      usedBytes += each.bytes();
    }
    if (inHand != null && !free) {
      usedMessages += inHand.count() - at;
    }
    queue.clear();
    withhold();
    singly = 0;
    asking = NO_REF;
    leave = false;
    handed = came; // later messages come after those
  }

  /** Hands out nothing more of the present delivery. */
  void withhold() {
    current.takeBack();
    inHand = null;
  }

  void clear() {
    queue.clear();
    singly = 0;
  }

  // ---- handing out

  /** What the program may take without asking here; of any thread. */
  Handful current() {
    return current;
  }

  boolean waits() {
    return !queue.isEmpty();
  }

  /** Whether something of the delivery that was begun last was not handed out. */
  boolean hasInHand() {
    return inHand != null && (at < inHand.count() || current.left() > 0);
  }

  /** Whether the broker still has to say that the next message may be handed out. */
  boolean asks() {
    return asking != NO_REF;
  }

  /** So many topics take turns, this one among them. */
  void sharing(long topics) {
    sharing = Math.max(1, topics);
  }

  /** The program asks for more, and is done with what it had. */
  void asked(long time) {
    now = time;
    if (inHand == null || current.left() == 0) {
      pace.asked(time);
      if (paced) {
        long wanted = window();
        if (wanted != creditMessages) {
          setCredit(wanted, creditBytes);
        }
      }
    }
    if (recalled) {
      recalled = false;
      giveCredit(-1, NO_REF, true);
    }
  }

  /** The next message, and more behind it that {@link #current} has then; null for none. */
  Message one() {
    Message begun = current.take();
    if (begun != null) {
      return begun;
    }
    int from = cut(tells ? pace.atOnce() : Integer.MAX_VALUE, false);
    if (from < 0) {
      return null;
    }
    Handful made = new Handful(inHand, from, at);
    Message first = made.take();
    current = made;
    return first;
  }

  /** The next messages that came together, at most so many; empty for none. */
  List<Message> some(int most) {
    if (inHand != null) {
      int unseen = current.takeBack();
      at -= unseen;
      use(-unseen);
    }
    int from = cut(most, true);
    if (from < 0) {
      return List.of();
    }
    List<Message> found = new ArrayList<>(at - from);
    for (int i = from; i < at; i++) {
      found.add(inHand.message(i));
    }
    return found;
  }

  private Delivery begin() {
    Delivery delivery = queue.poll();
    if (delivery != null) {
      inHand = delivery;
      at = 0;
      free = false;
      singly -= delivery.singly() ? 1 : 0;
      usedBytes += delivery.bytes();
      if (reads) {
        next = delivery.end();
      }
    }
    return delivery;
  }

  /** Moves {@code at} behind the next messages, and returns where they begin; -1 for none. */
  private int cut(int most, boolean together) {
    Delivery delivery = inHand;
    if (delivery == null || at >= delivery.count()) {
      delivery = begin();
      if (delivery == null) {
        return -1;
      }
    }
    int from = at;
    int stop = (int) Math.min(delivery.count(), (long) from + most);
    if (tells && (delivery.singly() || afterSingly)) {
      if (!mayHaveOne()) {
        return -1;
      }
      afterSingly = delivery.singly();
      stop = from + 1;
    }
    at = stop;
    handOver(stop - from, together);
    return from;
  }

  /** The program gets messages: tells the broker before, and gives credit back once it is due. */
  private void handOver(int count, boolean together) {
    pace.handed(count, inHand.came(), now, together);
    use(count);
    boolean due =
        usedMessages >= part(creditMessages, BACK_MESSAGES)
            || usedBytes >= part(creditBytes, BACK_BYTES);
    if (tells && (due || handed > told)) {
      told = Math.max(told, handed);
      if (singly == 0 && !inHand.singly()) {
        told = Math.max(told, handed - count + pace.atOnce());
      }
      if (pace.atOnce() <= ACK_AT_ONCE) {
        speaker.flush(); // what is done is not in the program's hands any more
      }
      // one frame for both; a small credit waits until it is due
      giveCredit(told, NO_REF, due || 2 * usedMessages >= part(creditMessages, BACK_MESSAGES));
    } else if (due) {
      giveCredit(-1, NO_REF, true);
    }
  }

  /** The program has so many more of the delivery in hand. */
  private void use(int count) {
    if (!free) {
      usedMessages += count;
      handed += count;
    }
  }

  /** Whether the broker knows that the program gets the next message, which may kill it. */
  private boolean mayHaveOne() {
    if (leave) {
      leave = false;
      return true;
    }
    if (asking == NO_REF) {
      long ref = speaker.expectLeave();
      if (ref != NO_REF) {
        asking = ref;
        speaker.flush();
        giveCredit(handed + 1, ref, true);
      }
    }
    return false;
  }

  /** The answer to {@link Speaker#expectLeave}; false where it is about an earlier question. */
  boolean onLeave(long ref, boolean given) {
    if (ref != asking) {
      return false;
    }
    asking = NO_REF;
    if (given) {
      leave = true;
      told = Math.max(told, handed + 1);
    }
    return true;
  }

  // ---- credit

  /** Gives credit back, or none, and says how many messages are taken, if that is not below 0. */
  private void giveCredit(long taken, long ref, boolean back) {
    long messages = back ? Math.max(0, usedMessages) : 0;
    long bytes = back ? Math.max(0, usedBytes) : 0;
    if (messages == 0 && bytes == 0 && taken < 0) {
      return;
    }
    Header credit = new Header(Wire.CREDIT).with(Wire.MESSAGES, messages).with(Wire.BYTES, bytes);
    if (taken >= 0) {
      credit.with(Wire.TAKEN, taken);
    }
    if (ref != NO_REF) {
      credit.with(Wire.REF, ref);
    }
    if (speaker.say(credit)) {
      usedMessages -= messages;
      usedBytes -= bytes;
    }
  }

  /** Sets the credit, or the most of one that follows the program's pace. */
  void resize(long messages, long bytes) {
    if (paced) {
      creditMost = messages;
    }
    setCredit(paced ? window() : messages, bytes);
  }

  private long window() {
    return Math.max(1, Math.min(pace.window() / sharing, creditMost));
  }

  /** A larger credit is given at once; a smaller one is reached as messages are handed out. */
  private void setCredit(long messages, long bytes) {
    usedMessages += messages - creditMessages;
    usedBytes += bytes - creditBytes;
    creditMessages = messages;
    creditBytes = bytes;
    if (usedMessages > 0 || usedBytes > 0) {
      giveCredit(-1, NO_REF, true);
    }
  }

  private static long part(long credit, long least) {
    return Math.max(credit / 16, Math.min((credit + 1) / 2, least));
  }
}

package example.ister;

import java.util.ArrayList;
import java.util.List;
import java.util.OptionalLong;

/**
 * What one consumer's program says of its messages: gathered, sent, and kept until the broker has
 * written it; section 9.5 of PROTOCOL.md. It knows no socket, no clock and no thread.
 *
 * <p>Invariants: what was delivered before the broker forgot about it, or moved the subscription,
 * is never acknowledged. What was sent stays here until a DONE covers it, and is sent again over a
 * resumed session; at most {@link #KEPT} ranges of it.
 */
final class Acknowledgments {
  static final long DELAY = 3 * Session.MS;
  private static final int RANGES_GATHERED = 256; // scattered ones are not kept waiting
  private static final int ASK = 1000; // unconfirmed ranges, beyond which the broker is asked
  private static final int KEPT = 4096;

  /** What acknowledging needs of the consumer it is part of. */
  interface Speaker {
    boolean isOpen();

    /** Sends a frame about messages. */
    void sayOfMessages(Header header);

    /** A REF whose answer is given to {@link #onConfirmed}. */
    long expectConfirmed(Confirmation what);
  }

  /** What a DONE will cover. */
  record Confirmation(int epoch, int ranges, int untils) {}

  private final Speaker speaker;
  private int epoch; // messages of an earlier one are not acknowledged any more
  private int movedIn; // the first epoch since a move: what is older was not meant to be kept
  private boolean forgotten;
  private boolean silent;
  private Spans pending = new Spans(); // not sent yet
  private Spans unconfirmed = new Spans();
  private boolean lossy; // of the unconfirmed, more were sent than are kept
  private OptionalLong until = OptionalLong.empty(); // everything up to here as well
  private int untils;
  private long due = Handle.NEVER;
  private boolean confirming;

  Acknowledgments(Speaker speaker) {
    this.speaker = speaker;
  }

  int epoch() {
    return epoch;
  }

  /** When those that gather are to be sent. */
  long due() {
    return due;
  }

  /** The broker wants none: of a reader, and on a non-reliable topic. */
  void silent(boolean wanted) {
    silent = wanted;
  }

  boolean silent() {
    return silent;
  }

  /** Whether everything is known to be written. */
  boolean settled() {
    return silent || pending.isEmpty() && unconfirmed.isEmpty() && until.isEmpty();
  }

  /** Whether some were forgotten since it was asked last. */
  boolean takeForgotten() {
    boolean told = forgotten;
    forgotten = false;
    return told;
  }

  /** Whether a message of an epoch may be spoken of. */
  private boolean counts(int of) {
    if (silent) {
      return false;
    } else if (of == epoch) {
      return true;
    }
    forgotten |= of >= movedIn; // what was moved over was meant to come again
    return false;
  }

  /** Whether something gathers that is not going to be sent by itself. */
  boolean wantsDue() {
    return due == Handle.NEVER && !pending.isEmpty();
  }

  void dueAt(long time) {
    due = time;
  }

  void add(Message message) {
    if (counts(message.delivery().epoch())) {
      pending.add(message.offset());
      if (pending.size() > RANGES_GATHERED) {
        flush(false);
      }
    }
  }

  void addUntil(Message message) {
    if (!counts(message.delivery().epoch())) {
      return;
    }
    flush(false);
    until = OptionalLong.of(Math.max(message.offset(), until.orElse(0)));
    untils++;
    if (speaker.isOpen()) {
      sendUntil();
    }
    add(message); // the message itself as well: what the next confirmation is about
  }

  /** Sends those that gathered; with confirm, DONE is asked for. */
  void flush(boolean confirm) {
    if (silent || !speaker.isOpen()) {
      return;
    }
    due = Handle.NEVER;
    Spans fresh = pending;
    if (fresh.isEmpty() && (!confirm || confirming)) {
      return;
    }
    pending = new Spans();
    unconfirmed.addAll(fresh);
    boolean ask = (confirm || unconfirmed.size() > ASK) && !confirming && !unconfirmed.isEmpty();
    if (!ask) {
      send(fresh, 0);
      if (unconfirmed.size() > KEPT) {
        unconfirmed.dropLast(unconfirmed.size() - KEPT);
        lossy = true;
      }
      return;
    }
    confirming = true;
    Confirmation what = new Confirmation(epoch, unconfirmed.size(), untils);
    Spans last = fresh.isEmpty() ? unconfirmed.last() : fresh; // again: DONE covers the others
    send(last, speaker.expectConfirmed(what));
  }

  /** The broker answered; the error that the program is to be told, or null. */
  IsterException onConfirmed(Confirmation what, Header answer) {
    if (what.epoch() != epoch) {
      return null;
    }
    confirming = false;
    IsterException error = answer.type() == Wire.ERROR ? answer.error() : null;
    boolean late = error != null && error.code().equals("not-active");
    if (error != null && error.action() == Action.RETRY && !late) {
      unconfirmed.addAll(pending); // nothing is known of them: the next flush says them again
      pending = unconfirmed;
      unconfirmed = new Spans();
      return error;
    }
    if (what.untils() == untils) {
      until = OptionalLong.empty();
    }
    unconfirmed.drop(what.ranges());
    lossy &= !unconfirmed.isEmpty();
    return error == null || error.code().equals("closed") ? null : error;
  }

  /** Sends what is not known to be written, again where it was sent. */
  void repeat() {
    if (!silent) {
      unconfirmed.addAll(pending);
      pending = new Spans();
      send(unconfirmed, 0);
      sendUntil();
    }
  }

  private void sendUntil() {
    untilFrames().forEach(speaker::sayOfMessages);
  }

  private List<Header> untilFrames() {
    return until.isPresent()
        ? List.of(new Header(Wire.ACK_UNTIL).with(Wire.OFFSET, until.getAsLong()))
        : List.of();
  }

  /** What says everything that is not known to be written. */
  List<Header> unheard() {
    if (silent) {
      return List.of();
    }
    Spans all = new Spans();
    all.addAll(unconfirmed);
    all.addAll(pending);
    List<Header> frames = frames(Wire.ACK, all, 0, null, null);
    frames.addAll(untilFrames());
    return frames;
  }

  private void send(Spans spans, long ref) {
    sendRanges(Wire.ACK, spans, ref, null, null);
  }

  private void sendRanges(int type, Spans spans, long ref, Long delayMs, String reason) {
    frames(type, spans, ref, delayMs, reason).forEach(speaker::sayOfMessages);
  }

  /** Splits ranges over several frames; a REF is on the last, whose DONE covers all. */
  private static List<Header> frames(int type, Spans spans, long ref, Long delayMs, String reason) {
    List<Header> frames = new ArrayList<>();
    for (int from = 0; from < spans.size(); from += Wire.RANGES_MAX) {
      frames.add(
          new Header(type)
              .with(Wire.RANGES, spans.part(from, Wire.RANGES_MAX))
              .with(Wire.DELAY, (Object) delayMs)
              .with(Wire.REASON, reason));
    }
    if (ref != 0 && !frames.isEmpty()) {
      frames.get(frames.size() - 1).with(Wire.REF, ref);
    }
    return frames;
  }

  /** Says something else of messages: NACK, with a delay or null, or EXTEND. */
  void sayOf(int type, Iterable<Message> messages, Long delayMs, String reason) {
    if (type == Wire.NACK) {
      flush(false);
    }
    Spans spans = new Spans();
    for (Message message : messages) {
      if (counts(message.delivery().epoch())) {
        spans.add(message.offset());
      }
    }
    if (speaker.isOpen()) { // else they come again anyway
      sendRanges(type, spans, 0, delayMs, reason);
    }
  }

  /** The broker knows no more what it delivered. */
  void forget() {
    forgotten |= !settled();
    drop();
  }

  /** The subscription was moved: as was asked for, nothing from before counts. */
  void onMoved() {
    drop();
    movedIn = epoch;
  }

  /** The connection is gone, and with it every question. */
  void onLost() {
    confirming = false;
    if (lossy) { // what is not kept comes again
      lossy = false;
      forgotten = true;
    }
  }

  void drop() {
    epoch++;
    pending = new Spans();
    unconfirmed = new Spans();
    until = OptionalLong.empty();
    confirming = false;
    lossy = false;
    due = Handle.NEVER;
  }
}

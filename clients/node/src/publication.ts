// A producer's side of the conversation: gather messages, seal them into batches, send, send again, resolve receipts.
// Section 8 of PROTOCOL.md. Pure: no socket, clock or timer lives here.
//
// Invariants
// - a batch is cut once: what is sent again is byte for byte what was sent, in order, under the same numbers
// - a shipment is resolved once: by a receipt, by a refusal, or by the end of the producer
// - sealed bytes without a receipt never exceed the window (one batch may, when it is alone)
// - behind a refused batch, or a number left out, nothing is sent before the broker was told to skip it
// - what waits for room is taken in the order of the calls

import { bytesOf, type Content, Gathering } from "./batch.js";
import { ClosedError, type IsterError, ProtocolError } from "./errors.js";
import { backOffMs, errorOf, type Frames, type Handle, type Limits, NEVER, type Session } from "./session.js";
import { exact, type Header, K, OFFSET_UNKNOWN, type Sendable, T, text, uint } from "./wire.js";

export type Phase = "idle" | "opening" | "open" | "waiting" | "closing" | "closed";
type Event = "ready" | "opened" | "refused" | "due" | "reopen" | "close" | "lost" | "done" | "fail";

// The whole state machine of a producer or consumer. An event that has no line here is ignored.
const TRANSITIONS: Record<Phase, Partial<Record<Event, Phase>>> = {
  idle: { ready: "opening", fail: "closed" },
  opening: { opened: "open", refused: "waiting", lost: "idle", fail: "closed" },
  open: { refused: "waiting", reopen: "opening", close: "closing", lost: "idle", fail: "closed" },
  waiting: { due: "opening", lost: "idle", fail: "closed" },
  closing: { done: "closed", lost: "closed", fail: "closed" }, // the broker hears of it with the next hello
  closed: {},
};

export function next(phase: Phase, event: Event): Phase | undefined {
  return TRANSITIONS[phase][event];
}

const REFUSED_MAX = 64; // refused batches whose numbers are remembered, for a program that gives them again

/** What becomes of one batch; the receipts of all its messages point here. */
export class Shipment {
  over = false;
  /** The offset of its first message; null if the broker has forgotten it. */
  first: number | null = null;
  error: IsterError | null = null;
  /** Somebody has been told of its error. */
  observed = false;
  private listeners: (() => void)[] | null = null;

  onOver(listener: () => void): void {
    if (this.over) {
      listener();
    } else {
      this.listeners ??= [];
      this.listeners.push(listener);
    }
  }

  resolve(first: number | null, error: IsterError | null): void {
    if (this.over) {
      return;
    }
    this.over = true;
    this.first = first;
    this.error = error;
    const listeners = this.listeners;
    this.listeners = null;
    for (const listener of listeners ?? []) {
      listener();
    }
  }
}

/** Where what was sent with one call is, as soon as it was taken. */
export class Place {
  shipment: Shipment | null = null;
  index = 0;
  private listeners: (() => void)[] | null = null;

  constructor(readonly count: number) {}

  put(shipment: Shipment, index: number): void {
    this.shipment = shipment;
    this.index = index;
    for (const listener of this.listeners ?? []) {
      shipment.onOver(listener);
    }
    this.listeners = null;
  }

  fail(error: IsterError): void {
    const shipment = new Shipment();
    shipment.resolve(null, error);
    this.put(shipment, 0);
  }

  onOver(listener: () => void): void {
    if (this.shipment !== null) {
      this.shipment.onOver(listener);
    } else {
      this.listeners ??= [];
      this.listeners.push(listener);
    }
  }
}

interface Batch {
  sequence: number;
  count: number;
  frames: [number[], Frames]; // the header's numbers, and the body
  bytes: number;
  shipment: Shipment;
  refused: boolean;
}

/** What was given while there was no room. */
type Waiting =
  | { place: Place; content: Content; sequence: number | null }
  | { place: Place; count: number; columns: number; body: Frames };

export interface PublicationOptions {
  batchBytes: number;
  lingerMs: number;
  windowBytes: number | null;
}

export class Publication implements Handle {
  session: Session | null = null;
  phase: Phase = "idle";
  opened = false;
  strategy = "";
  /** What the worker that it is at allows; of the last one while there is none. */
  limits: Limits | null = null;
  /** Why it is closed. */
  error: IsterError | null = null;
  /** Why it is being tried again. */
  trouble: IsterError | null = null;
  /** A batch that failed, to be told of if nobody looks at its receipt. */
  refused: Shipment | null = null;
  /** Something has changed for somebody who waits. */
  changed: () => void = () => {};

  private gathering = new Gathering();
  private shipment = new Shipment();
  private lingerAt = NEVER;
  private readonly batches: Batch[] = [];
  private bytes = 0;
  private window = 0;
  private inFlightMax = 1;
  private sent = 0; // how many of `batches` are on the wire of this connection
  private following = 0; // the number behind the last sealed message
  private expected = 0; // what the broker expects next on this connection
  private gap = false; // a refused batch was dropped, and the broker still expects its number
  private readonly numbersRefused: { first: number; end: number; error: IsterError }[] = [];
  private readonly waiting: Waiting[] = [];
  private failures = 0;
  private due = NEVER;

  constructor(
    readonly handle: number,
    readonly topic: string,
    private readonly id: bigint,
    private readonly options: PublicationOptions,
  ) {}

  private step(event: Event): boolean {
    const then = next(this.phase, event);
    if (then !== undefined) {
      this.phase = then;
    }
    return then !== undefined;
  }

  // ---- taking messages --------------------------------------------------------------------------------------------

  /** The number of the next message; all below it have been taken, in this run or before. */
  get nextSequence(): number {
    return this.following + this.gathering.count;
  }

  /** Whether a message that comes now is taken at once, unless it is a large one. */
  get hasRoom(): boolean {
    return (
      this.waiting.length === 0 && this.opened && (this.gathering.count === 0 || this.gathering.bytes < this.batchLimit)
    );
  }

  /** Whether everything taken was answered. */
  get answered(): boolean {
    return this.waiting.length === 0 && this.gathering.count === 0 && this.batches.length === 0;
  }

  private get batchLimit(): number {
    return Math.min(this.options.batchBytes, this.window, this.limits?.batchBytesMax ?? 0);
  }

  private fits(bytes: number): boolean {
    return (
      this.opened &&
      this.phase !== "closed" &&
      this.phase !== "closing" &&
      (this.bytes === 0 || this.bytes + bytes <= this.window) &&
      this.batches.length < this.inFlightMax
    );
  }

  /** Take a message; it waits behind others, or for room, if it must. */
  take(place: Place, content: Content, sequence: number | null, now: () => number): void {
    if (this.waiting.length > 0 || !this.takeNow(place, content, sequence, now)) {
      this.waiting.push({ place, content, sequence });
    }
  }

  private takeNow(place: Place, content: Content, sequence: number | null, now: () => number): boolean {
    if (sequence !== null && sequence !== this.nextSequence) {
      if (sequence < this.nextSequence) {
        this.takeBefore(place, sequence);
        return true;
      }
      this.seal();
      if (this.gathering.count > 0 || this.batches.length > 0) {
        return false; // numbers are left out once everything before them is resolved
      }
      this.following = sequence;
      if (this.phase === "open") {
        this.reopen();
      }
    }
    let gathering = this.gathering;
    if (gathering.count > 0 && gathering.bytes + gathering.cost(content) > this.batchLimit) {
      if (!this.seal()) {
        return false;
      }
      gathering = this.gathering;
    }
    if (gathering.count === 0) {
      const bytes = gathering.cost(content);
      if (bytes > this.batchLimit && !this.fits(bytes)) {
        return false; // one that is a batch alone is not taken before it can go
      }
      this.begin(now());
    }
    place.put(this.shipment, gathering.count);
    if (gathering.plain && content.key === null && content.attributes === null && content.deliverAt === 0) {
      gathering.addPayload(content.payload, content.payloadBytes);
    } else {
      gathering.add(content);
    }
    if (gathering.bytes >= this.batchLimit) {
      this.seal();
    }
    return true;
  }

  /** The first message is about to be put into an empty batch. */
  private begin(now: number): void {
    // what is alone goes at the end of this turn of the program, what follows gathers until that is answered
    this.lingerAt = this.batches.length === 0 ? now : now + this.options.lingerMs;
    this.session?.onDue(this.lingerAt);
  }

  /** Take many messages as a batch of their own. */
  takeBatch(place: Place, columns: number, body: Frames): void {
    const { count } = place;
    if (this.waiting.length > 0 || !this.takeBatchNow(place, count, columns, body)) {
      this.waiting.push({ place, count, columns, body });
    }
  }

  private takeBatchNow(place: Place, count: number, columns: number, body: Frames): boolean {
    if (!this.seal() || !this.fits(bytesOf(body))) {
      return false;
    }
    place.put(this.shipment, 0);
    this.enqueue(count, columns, body);
    return true;
  }

  private takeBefore(place: Place, sequence: number): void {
    const gathered = this.following;
    if (sequence >= gathered) {
      place.put(this.shipment, sequence - gathered);
      return;
    }
    for (const { first, end, error } of this.numbersRefused) {
      if (first <= sequence && sequence < end) {
        place.fail(error);
        return;
      }
    }
    for (const batch of this.batches) {
      if (batch.sequence <= sequence && sequence < batch.sequence + batch.count) {
        place.put(batch.shipment, sequence - batch.sequence);
        return;
      }
    }
    const stored = new Shipment(); // in this run or in one before; where, is not known here
    stored.resolve(null, null);
    place.put(stored, 0);
  }

  /** Make a batch of what is gathered; false where there is no room for it. */
  seal(): boolean {
    const { gathering } = this;
    if (gathering.count === 0) {
      return true;
    }
    if (!this.fits(gathering.bytes)) {
      return false;
    }
    this.enqueue(gathering.count, gathering.columns, gathering.body());
    this.gathering = new Gathering(gathering.payloadBytes);
    this.lingerAt = NEVER;
    return true;
  }

  private enqueue(count: number, columns: number, body: Frames): void {
    const header = [K.TYPE, T.PUBLISH, K.HANDLE, this.handle, K.SEQUENCE, this.following];
    if (columns !== 0) {
      header.push(K.COLUMNS, columns);
    }
    const bytes = bytesOf(body);
    const { shipment } = this;
    this.batches.push({ sequence: this.following, count, frames: [header, body], bytes, shipment, refused: false });
    this.shipment = new Shipment();
    this.following += count;
    this.bytes += bytes;
    this.send();
  }

  private settle(now: number): void {
    let taken = 0;
    while (taken < this.waiting.length) {
      const each = this.waiting[taken] as Waiting;
      const done =
        "content" in each
          ? this.takeNow(each.place, each.content, each.sequence, () => now)
          : this.takeBatchNow(each.place, each.count, each.columns, each.body);
      if (!done) {
        break;
      }
      taken++;
    }
    if (taken > 0) {
      this.waiting.splice(0, taken);
    }
    if (this.batches.length === 0) {
      this.seal(); // nothing is on its way any more that it could wait for
    } else if (this.gathering.count > 0) {
      this.session?.onDue(this.deadline());
    }
  }

  // ---- on the wire ------------------------------------------------------------------------------------------------

  private send(): void {
    const { session } = this;
    if (this.phase !== "open" || session === null) {
      return;
    }
    while (this.sent < this.batches.length) {
      const batch = this.batches[this.sent] as Batch;
      if (batch.refused || batch.sequence !== this.expected) {
        break; // what is behind it, or behind a hole, waits until the broker has been told to skip it
      }
      this.expected = batch.sequence + batch.count;
      this.sent++;
      session.emitNumbers(...batch.frames);
    }
  }

  onReady(_resumed: boolean, _now: number): void {
    if (this.step("ready")) {
      this.open();
    }
  }

  private open(): void {
    const session = this.session as Session;
    this.sent = 0;
    this.gap = false;
    const lowest = this.batches[0]?.sequence ?? this.following;
    this.expected = lowest;
    session.emit(
      new Map<number, Sendable>([
        [K.TYPE, T.OPEN_PRODUCER],
        [K.REF, session.expect((header, _body, now) => this.onOpenAnswer(header, now))],
        [K.HANDLE, this.handle],
        [K.TOPIC, this.topic],
        [K.PRODUCER, this.id],
        [K.SEQUENCE, lowest],
      ]),
    );
  }

  private reopen(): void {
    if (this.step("reopen")) {
      this.open();
    }
  }

  private onOpenAnswer(header: Header, now: number): void {
    if (this.phase !== "opening" || this.session === null) {
      return;
    }
    const kind = header.get(K.TYPE);
    if (kind === T.MOVED) {
      this.session.onMoved(this, text(header, K.ENDPOINT));
    } else if (kind === T.ERROR) {
      this.onRefusal(header, null, now); // a SEQUENCE in it is that of the open: it is about no batch
    } else if (kind === T.OPENED) {
      this.onOpened(header, now);
    } else {
      throw new ProtocolError(`a frame of type ${kind} answered OPEN_PRODUCER`);
    }
  }

  private onOpened(header: Header, now: number): void {
    const sequence = exact(header, K.SEQUENCE);
    this.step("opened");
    const { limits } = this.session as Session;
    this.limits = limits;
    const granted = uint(header, K.BYTES, limits.windowBytes);
    this.window = Math.min(granted, this.options.windowBytes ?? granted);
    this.inFlightMax = limits.batchesInFlightMax;
    this.strategy = text(header, K.STRATEGY);
    if (!this.opened) {
      this.opened = true;
      this.following = this.expected = Math.max(this.following, sequence);
    }
    this.advance();
    this.send();
    this.settle(now);
    this.changed();
  }

  onFrame(header: Header, _body: Frames, now: number): void {
    const kind = header.get(K.TYPE);
    if (kind === T.RECEIPT) {
      this.onReceipts(header.get(K.RECEIPTS) as (number | bigint)[], now);
    } else if (kind === T.ERROR) {
      this.onRefusal(header, header.has(K.SEQUENCE) ? uint(header, K.SEQUENCE) : null, now);
    } else {
      throw new ProtocolError(`a frame of type ${kind} came for a producer`);
    }
  }

  private onReceipts(pairs: (number | bigint)[], now: number): void {
    this.failures = 0;
    this.trouble = null;
    for (let at = 0; at < pairs.length; at += 2) {
      const sequence = pairs[at];
      const index = this.batches.findIndex((batch) => batch.sequence === sequence && !batch.refused);
      if (index >= 0) {
        // otherwise it is a second receipt, after a resend
        const [batch] = this.batches.splice(index, 1) as [Batch];
        if (index < this.sent) {
          this.sent--;
        }
        this.bytes -= batch.bytes;
        const first = pairs[at + 1] as number | bigint;
        batch.shipment.resolve(first === OFFSET_UNKNOWN ? null : Number(first), null);
      }
    }
    this.advance();
    this.settle(now);
    this.changed();
  }

  private onRefusal(header: Header, sequence: number | null, now: number): void {
    const error = errorOf(header);
    if (error.action === "retry" || error.code === "unknown-handle") {
      this.postpone(error, now + backOffMs(this.failures, this.session?.jitter() ?? 0.5));
    } else if (sequence === null || header.get(K.CLOSED) === true) {
      this.fail(error);
    } else {
      this.refuse(sequence, error, now);
    }
  }

  /** One batch failed for good; if it was resolved already, this is old news. */
  private refuse(sequence: number, error: IsterError, now: number): void {
    const batch = this.batches.find((each) => each.sequence === sequence && !each.refused);
    if (batch === undefined) {
      return;
    }
    batch.refused = true;
    this.bytes -= batch.bytes;
    this.numbersRefused.push({ first: batch.sequence, end: batch.sequence + batch.count, error });
    if (this.numbersRefused.length > REFUSED_MAX) {
      this.numbersRefused.shift();
    }
    if (this.refused === null || this.refused.observed) {
      this.refused = batch.shipment;
    }
    batch.shipment.resolve(null, error);
    this.advance();
    this.settle(now);
    this.changed();
  }

  postpone(error: IsterError, due: number): void {
    this.trouble = error;
    if (this.step("refused")) {
      this.due = due;
      this.failures++;
      this.session?.onDue(due);
    }
  }

  /** Drop refused batches from the front; the broker must be told to skip their numbers, and holes. */
  private advance(): void {
    while (this.batches[0]?.refused) {
      this.batches.shift();
      this.sent = Math.max(0, this.sent - 1);
      this.gap = true;
    }
    const [first] = this.batches;
    if (first !== undefined && this.sent === 0 && first.sequence > this.expected) {
      this.gap = true;
    }
    if (this.gap) {
      this.reopen();
    }
  }

  // ---- the end ----------------------------------------------------------------------------------------------------

  /** Say CLOSE, once everything is answered; the phase is "closed" when the broker has answered. */
  close(): void {
    const opening = this.phase === "opening"; // the broker is about to have it: it must hear that nobody wants it
    const { session } = this;
    if ((this.step("close") || opening) && session !== null) {
      const ref = session.expect(() => {
        this.step("done");
        this.giveUp();
      });
      session.emitNumbers([K.TYPE, T.CLOSE, K.REF, ref, K.HANDLE, this.handle]);
    }
    if (this.phase !== "closing") {
      this.fail(new ClosedError(`the producer for topic ${this.topic}`));
    }
  }

  /** Where it is closed: nobody waits for what was not answered, if the program gave that up. */
  private giveUp(): void {
    if (this.phase === "closed") {
      this.error ??= new ClosedError(`the producer for topic ${this.topic}`);
      this.failAll(this.error);
    }
  }

  onLost(reason: IsterError): void {
    this.trouble = reason;
    this.sent = 0;
    this.step("lost");
    this.giveUp();
    this.changed();
  }

  fail(error: IsterError): void {
    if (this.step("fail")) {
      this.error = error;
      this.failAll(error);
    }
  }

  private failAll(error: IsterError): void {
    this.lingerAt = NEVER;
    const batches = this.batches.splice(0);
    this.bytes = 0;
    this.sent = 0;
    for (const batch of batches) {
      batch.shipment.resolve(null, error);
    }
    if (this.gathering.count > 0) {
      this.shipment.resolve(null, error);
    }
    this.gathering = new Gathering();
    this.shipment = new Shipment();
    for (const each of this.waiting.splice(0)) {
      each.place.fail(error);
    }
    this.changed();
  }

  // ---- time -------------------------------------------------------------------------------------------------------

  tick(now: number): void {
    if (this.phase === "waiting" && now >= this.due) {
      this.step("due");
      this.open();
    } else if (now >= this.lingerAt) {
      this.seal();
    }
  }

  deadline(): number {
    if (this.phase === "waiting") {
      return this.due;
    }
    return this.gathering.count > 0 && this.fits(this.gathering.bytes) ? this.lingerAt : NEVER;
  }
}

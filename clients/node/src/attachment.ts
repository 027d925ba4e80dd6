// A consumer's or reader's side of the conversation: open, take deliveries in, give credit, acknowledge. Section 9 of
// PROTOCOL.md. Pure: no socket, clock or timer lives here.
//
// Invariants
// - what waits here never exceeds the credit given (bytes: by one delivery)
// - credit is given back only for messages that were handed to the program
// - no word is sent about a message that the broker has forgotten, or was told to deliver again
// - acknowledgments stay here until a DONE covers them, and are sent again over a resumed session
// - a message delivered SINGLY is handed out when the broker has said that it knows
// - a reader goes on at the first message that was not handed out, wherever it opens again

import type { Payload } from "./batch.js";
import { BrokerError, ClosedError, type IsterError, ProtocolError } from "./errors.js";
import { Delivery, Message, type Owner, type ReplyOptions } from "./message.js";
import { Pace, WINDOW_ALONE, WINDOW_MOST, WINDOW_SHARED } from "./pace.js";
import { next, type Phase } from "./publication.js";
import { backOffMs, errorOf, type Frames, type Handle, NEVER, type Session } from "./session.js";
import { exact, type Header, K, RANGES_MAX, type Sendable, T, text, uint } from "./wire.js";

export const READER = "reader";
export type SubscriptionType = "exclusive" | "shared" | "failover" | "key-shared";

const ACK_DELAY_MS = 5; // acknowledgments gather for so long
const ACK_AT_ONCE = 64; // of a program that takes no more at a time, they go before the word of what is next
const ACK_RANGES_MAX = 256; // scattered ones that are sent without waiting longer
// Ranges sent and not confirmed, kept to be sent again when the connection is lost. Consumers that share a subscription
// have as many as there are gaps between their messages: the broker is asked then to say when they are written. Beyond
// the limit messages come again, and `flush` says so.
const UNPROVEN_MAX = 4096;
const UNPROVEN_ASK = 1024;
export const EVENTS_MAX = 256; // kept for a program that never looks at them
const CREDIT_BACK_MESSAGES = 256;
const CREDIT_BACK_BYTES = 256 << 10;
const CREDIT_BYTES = 8 << 20;
const PLACE_MS = 500; // how often whoever waits for an Exclusive place asks for it, at least

/** What a broker tells a consumer besides messages; PROTOCOL.md, section 9.7, lists the codes. */
export interface ConsumerEvent {
  code: string;
  count: number;
  text: string;
  /** Null where it says none. */
  offset: number | null;
  topic: string;
}

export interface AttachmentOptions {
  topic: string;
  subscription: string;
  type: SubscriptionType | typeof READER;
  start: string | number | null;
  priority: number;
  force: boolean;
  arguments: Map<string, Sendable>;
  /** A fixed credit; null to follow the program's pace. */
  creditMessages: number | null;
  /** Waits for the place of whoever has an Exclusive subscription. */
  patient: boolean;
}

type Range = [first: number, end: number];

/** Sort half-open ranges and join those that touch or overlap. */
export function joined(ranges: Range[]): Range[] {
  if (ranges.length < 2) {
    return ranges;
  }
  const sorted = [...ranges].sort((one, other) => one[0] - other[0]);
  const whole: Range[] = [[...(sorted[0] as Range)]];
  for (const [first, end] of sorted.slice(1)) {
    const last = whole[whole.length - 1] as Range;
    if (first <= last[1]) {
      last[1] = Math.max(end, last[1]);
    } else {
      whole.push([first, end]);
    }
  }
  return whole;
}

function* flat(ranges: Range[]): Generator<number[]> {
  for (let at = 0; at < ranges.length; at += RANGES_MAX) {
    yield ranges.slice(at, at + RANGES_MAX).flat();
  }
}

function part(credit: number, least: number): number {
  return Math.max(Math.floor(credit / 16), Math.min(Math.ceil(credit / 2), least));
}

export class Attachment implements Handle, Owner {
  session: Session | null = null;
  phase: Phase = "idle";
  opened = false;
  strategy = "";
  position = 0;
  /** Of a Failover consumer: whether it is the active one; null until the broker says. */
  active: boolean | null = null;
  /** Why it is closed. */
  error: IsterError | null = null;
  /** Why it is being tried again. */
  trouble: IsterError | null = null;
  /** What the broker said about an acknowledgment; told once. */
  complaint: IsterError | null = null;
  /** Acknowledgments were lost with what the broker forgot; `flush` says so once. */
  forgotten = false;
  /** Counts how often delivering began again: opened, or moved. */
  begun = 0;
  reply: ((to: Message, payload: Payload, options: ReplyOptions) => Promise<void>) | null = null;
  /** Something has changed for somebody who waits. */
  changed: () => void = () => {};
  onEvent: (event: ConsumerEvent) => void = () => {};

  private queue: Delivery[] = [];
  private inHand: Delivery | null = null; // the last one that was taken from the queue
  private at = 0; // its messages up to here are the program's, or in the run that it takes from
  private run = 0; // the next message of that run
  private events: ConsumerEvent[] = [];
  // what the broker has forgotten, or was told to
  private lineage = 0;
  private sought = 0; // the lineage since the subscription was last moved
  private moves: number | null = null; // of so many the broker has told, where it counts them
  private instance = "";
  private deliveredIn: Uint8Array | null = null; // the session that knows what was delivered
  private nextOffset: number | null = null; // of a reader: the first offset that was not handed out
  // acknowledgments: one run that grows, closed ranges, and what was sent and may yet be lost
  private ackFirst = 0;
  private ackEnd = 0;
  private ranges: Range[] = [];
  private until: number | null = null;
  private ackDue = NEVER;
  private lastSent: Range | null = null; // since the broker last said that all is written
  private unproven: Range[] = [];
  private unprovenUntil = false; // an ACK_UNTIL, or more than is kept, is among what may be lost
  private readonly confirming = new Map<number, Range[]>();
  // credit
  private readonly pace: Pace;
  private credit: number;
  private creditBytes = CREDIT_BYTES;
  private used = 0;
  private usedBytes = 0;
  private recalled = false; // credit waits here until the program asks for something
  // what the broker is told of what the program takes, in messages since OPENED
  private tells = false;
  private came = 0;
  private handed = 0; // are the program's, or in the run that it takes from
  private told = 0;
  private singly = 0; // deliveries in the queue that are handed out one by one
  private asking: number | null = null; // the REF of the question whether the next one may be handed out
  private leave = false; // it may
  private afterSingly = false;
  private options: AttachmentOptions;
  private failures = 0;
  private due = NEVER;

  constructor(
    readonly handle: number,
    options: AttachmentOptions,
  ) {
    this.options = options;
    const shares = options.type === "shared" || options.type === "key-shared";
    const start = shares ? WINDOW_SHARED : WINDOW_ALONE;
    this.pace = new Pace(start, WINDOW_MOST);
    this.credit = options.creditMessages ?? start;
  }

  get topic(): string {
    return this.options.topic;
  }

  get subscription(): string {
    return this.options.subscription;
  }

  get isReader(): boolean {
    return this.options.type === READER;
  }

  private step(event: Parameters<typeof next>[1]): boolean {
    const then = next(this.phase, event);
    if (then !== undefined) {
      this.phase = then;
    }
    return then !== undefined;
  }

  // ---- opening ----------------------------------------------------------------------------------------------------

  onReady(resumed: boolean, _now: number): void {
    const { session } = this;
    if (!resumed || this.deliveredIn === null || !sameBytes(session?.secret ?? null, this.deliveredIn)) {
      this.lineage++;
      this.dropAcks();
    }
    if (this.step("ready")) {
      this.acknowledgeAgain();
      this.open();
    }
  }

  /** Say once more what the session that continues knows: that does not come again then. All of it is kept, and sent
   * again when the handle is open: only then is it certain that the broker takes it. */
  private acknowledgeAgain(): void {
    const { session } = this;
    if (session === null || !this.acknowledges) {
      return;
    }
    this.sendUntil();
    this.closeRun();
    this.ranges = joined(this.ranges);
    for (const ranges of flat(this.ranges)) {
      session.emit(this.words(T.ACK, ranges));
    }
  }

  private words(type: number, ranges: number[]): Map<number, Sendable> {
    const header = new Map<number, Sendable>([
      [K.TYPE, type],
      [K.HANDLE, this.handle],
      [K.RANGES, ranges],
    ]);
    if (this.moves !== null && this.moves > 0) {
      header.set(K.SOUGHT, this.moves); // it is about what was delivered since
    }
    return header;
  }

  private sendUntil(): void {
    if (this.until !== null) {
      const header = [K.TYPE, T.ACK_UNTIL, K.HANDLE, this.handle, K.OFFSET, this.until];
      if (this.moves !== null && this.moves > 0) {
        header.push(K.SOUGHT, this.moves);
      }
      this.session?.emitNumbers(header);
    }
  }

  private open(): void {
    const session = this.session as Session;
    const { options } = this;
    this.queue = [];
    this.begun++;
    // what is left of a delivery in hand is handed out without credit: this open has given none for it
    this.used = this.inHand === null ? 0 : this.at - this.inHand.count;
    this.usedBytes = 0;
    this.came = this.handed = this.told = this.singly = 0;
    this.tells = this.leave = this.recalled = this.afterSingly = false;
    this.asking = null;
    this.credit = Math.min(this.credit, session.limits.creditMessagesMax);
    this.creditBytes = Math.min(this.creditBytes, session.limits.creditBytesMax);
    const header = new Map<number, Sendable>([
      [K.TYPE, T.OPEN_CONSUMER],
      [K.REF, session.expect((answer, _body, now) => this.onOpenAnswer(answer, now))],
      [K.HANDLE, this.handle],
      [K.TOPIC, options.topic],
      [K.SUBSCRIPTION, options.subscription],
      [K.SUBSCRIPTION_TYPE, options.type],
      [K.MESSAGES, this.credit],
      [K.BYTES, this.creditBytes],
      [K.SPARSE, true],
      [K.TAKEN, 0],
      [K.INSTANCE, this.instance],
      [K.SOUGHT, 0],
    ]);
    const start = this.nextOffset ?? options.start;
    if (start !== null) {
      header.set(K.START, start);
    }
    if (options.force && !this.opened) {
      header.set(K.FORCE, true); // two that both repeat it would throw each other out for ever
    }
    if (options.priority > 0) {
      header.set(K.PRIORITY, options.priority);
    }
    if (options.arguments.size > 0) {
      header.set(K.ARGUMENTS, options.arguments);
    }
    session.emit(header);
  }

  private onOpenAnswer(header: Header, now: number): void {
    const { session } = this;
    if (this.phase !== "opening" || session === null) {
      return;
    }
    const kind = header.get(K.TYPE);
    if (kind === T.MOVED) {
      session.onMoved(this, text(header, K.ENDPOINT));
    } else if (kind === T.ERROR) {
      this.onRefusal(errorOf(header), now);
    } else if (kind === T.OPENED) {
      const position = exact(header, K.OFFSET);
      if (!this.isTheSame(text(header, K.INSTANCE), session)) {
        return;
      }
      this.step("opened");
      this.opened = true;
      this.deliveredIn = session.secret;
      this.failures = 0;
      this.trouble = null;
      this.strategy = text(header, K.STRATEGY);
      this.position = position;
      this.tells = header.has(K.TAKEN);
      this.moves = header.has(K.SOUGHT) ? uint(header, K.SOUGHT) : null;
      if (this.isReader && this.strategy === "reliable" && this.nextOffset === null) {
        this.nextOffset = this.position;
      }
      this.sendAcks();
      this.changed();
    } else {
      throw new ProtocolError(`a frame of type ${kind} answered OPEN_CONSUMER`);
    }
  }

  /** Note which of its name is open. A reader of another topic than before is told so, as one is that was connected. */
  private isTheSame(instance: string, session: Session): boolean {
    const before = this.instance;
    this.instance = instance || before;
    if (before === "" || instance === "" || before === instance) {
      return true;
    }
    if (this.isReader && this.nextOffset !== null) {
      const ref = session.expect(() => {});
      session.emitNumbers([K.TYPE, T.CLOSE, K.REF, ref, K.HANDLE, this.handle]);
      this.fail(new BrokerError("topic-deleted", "stop", `topic ${this.topic} was deleted, and made anew since`));
      return false;
    }
    this.lineage++;
    this.dropAcks();
    return true;
  }

  private onRefusal(error: IsterError, now: number): void {
    let fatal = error.action !== "retry" && error.code !== "unknown-handle";
    if (error.code === "subscription-options" && this.opened && this.options.arguments.size > 0) {
      this.options = { ...this.options, arguments: new Map() }; // somebody changed them: it is the same subscription
      fatal = false;
    }
    if (error.code === "subscription-busy" && !this.opened) {
      const hint = `${error.message} (force: true takes it over, waitForPlace: true waits for it)`;
      const busy = new BrokerError(error.code, error.action, hint);
      if (this.options.patient) {
        this.postpone(busy, now + Math.min(PLACE_MS, this.backOff()));
      } else {
        this.fail(busy);
      }
    } else if (fatal) {
      this.fail(error);
    } else {
      this.postpone(error, now + this.backOff());
    }
  }

  private backOff(): number {
    return backOffMs(this.failures, this.session?.jitter() ?? 0.5);
  }

  postpone(error: IsterError, due: number): void {
    this.trouble = error;
    if (this.step("refused")) {
      this.lineage++; // whoever answers then may not know what was delivered before
      this.dropAcks();
      this.dropUnseen();
      this.due = due;
      this.failures++;
      this.session?.onDue(due);
    }
  }

  // ---- what comes -------------------------------------------------------------------------------------------------

  onFrame(header: Header, body: Frames, now: number): void {
    const kind = header.get(K.TYPE);
    if (kind === T.DELIVER) {
      if (this.phase === "open") {
        const delivery = new Delivery(this, this.lineage, header, body, now);
        this.came += delivery.count;
        this.singly += delivery.singly ? 1 : 0;
        this.queue.push(delivery);
        this.changed();
      }
    } else if (kind === T.EVENT) {
      if (this.moves !== null) {
        this.moves = Math.max(this.moves, uint(header, K.SOUGHT));
      }
      this.onHappening({
        code: text(header, K.CODE),
        count: uint(header, K.COUNT),
        text: text(header, K.TEXT),
        offset: header.has(K.OFFSET) ? uint(header, K.OFFSET) : null,
        topic: this.topic,
      });
    } else if (kind === T.ERROR) {
      const error = errorOf(header);
      if (error.code === "unknown-handle" || (error.action === "retry" && error.code !== "not-active")) {
        this.postpone(error, now + this.backOff());
      } else if (header.get(K.CLOSED) === true) {
        this.fail(error);
      } else if (error.code !== "not-active") {
        // of one acknowledged too late nothing is told: whoever is active now gets it again
        this.complaint = error;
      }
      this.changed();
    } else {
      throw new ProtocolError(`a frame of type ${kind} came for a consumer`);
    }
  }

  private onHappening(event: ConsumerEvent): void {
    switch (event.code) {
      case "active":
      case "standby":
        this.active = event.code === "active";
        break;
      case "log-damaged": // nothing more comes until an operator decides: the program must hear that
        this.complaint = new BrokerError(event.code, "stop", event.text);
        break;
      case "sought":
        this.onSought();
        break;
      case "recalled":
        this.dropWaiting();
        this.recalled = true; // and all credit with it
        this.used = this.credit;
        this.usedBytes = this.creditBytes;
        break;
      default:
    }
    this.events.push(event);
    if (this.events.length > EVENTS_MAX) {
      this.events.shift();
    }
    this.onEvent(event);
    this.changed();
  }

  takeEvents(): ConsumerEvent[] {
    const { events } = this;
    this.events = [];
    return events;
  }

  /** Somebody moved the subscription: what was delivered before is moot, and so is every word about it. */
  private onSought(): void {
    this.begun++;
    this.lineage++;
    this.sought = this.lineage;
    const { forgotten } = this;
    this.dropAcks();
    this.forgotten = forgotten; // nothing comes again that was not meant to
    this.dropWaiting();
    this.giveCredit();
  }

  /** Drop what the program was not handed: the broker has taken it back. */
  private dropWaiting(): void {
    for (const delivery of this.queue) {
      this.used += delivery.count;
      this.usedBytes += delivery.bytes;
    }
    if (this.inHand !== null) {
      this.used += this.inHand.count - this.at; // the rest of the run was counted when it began
    }
    this.handed = this.came; // what follows is behind it
    this.queue = [];
    this.withhold();
    this.singly = 0;
    this.asking = null;
    this.leave = false;
  }

  // ---- handing out ------------------------------------------------------------------------------------------------

  /** Whether a message can be handed out without a look at the clock. */
  get hasRun(): boolean {
    return this.inHand !== null && this.run < this.at;
  }

  /** The next message of the run that the program takes from. */
  takeFromRun(): Message {
    return new Message(this.inHand as Delivery, this.run++);
  }

  /** The program wants more: what it was handed is done. */
  asked(now: number): void {
    this.pace.asked(now);
    if (this.options.creditMessages === null) {
      const window = Math.max(1, Math.min(this.pace.window, this.session?.limits.creditMessagesMax ?? WINDOW_MOST));
      if (window !== this.credit) {
        this.used += window - this.credit; // below zero: more is out than should be
        this.credit = window;
        if (this.used > 0 && this.phase === "open") {
          this.giveCredit();
        }
      }
    }
    if (this.recalled) {
      this.recalled = false;
      this.giveCredit();
    }
  }

  /** The next message; null if there is none yet. */
  takeOne(now: number): Message | null {
    if (!this.hasRun) {
      this.asked(now);
      // where nobody wants to know, a run is what the program is through with in a moment all the same: so often its
      // pace is looked at
      if (!this.cut(this.pace.atOnce, false, now)) {
        return null;
      }
    }
    return this.takeFromRun();
  }

  /** The next messages that came together, at most so many; null if there are none yet. */
  takeSome(most: number, now: number): Message[] | null {
    if (this.hasRun) {
      // what the run has not yielded is taken back
      const unseen = this.at - this.run;
      this.at = this.run;
      this.handed -= unseen;
      this.used -= unseen;
    }
    this.asked(now);
    if (!this.cut(most, true, now)) {
      return null;
    }
    const messages: Message[] = [];
    while (this.run < this.at) {
      messages.push(this.takeFromRun());
    }
    return messages;
  }

  /** Begin a run of at most so many messages. */
  private cut(most: number, together: boolean, now: number): boolean {
    if (this.inHand === null || this.at >= this.inHand.count) {
      const delivery = this.queue[0];
      if (delivery === undefined) {
        return false;
      }
      this.queue.shift();
      this.inHand = delivery;
      this.at = 0;
      this.singly -= delivery.singly ? 1 : 0;
      this.usedBytes += delivery.bytes;
      if (this.nextOffset !== null) {
        this.nextOffset = delivery.offset(delivery.count - 1) + 1; // what is in hand is handed out to its end
      }
    }
    const { inHand } = this;
    let stop = Math.min(inHand.count, this.at + most);
    if (this.tells && (inHand.singly || this.afterSingly)) {
      if (!this.mayHaveOne()) {
        this.run = this.at;
        return false;
      }
      this.afterSingly = inHand.singly;
      stop = this.at + 1;
    }
    const count = stop - this.at;
    this.run = this.at;
    this.at = stop;
    this.handOver(count, together, now);
    return true;
  }

  /** So many messages go to the program: say so first, and give credit back once that is a good part of all. */
  private handOver(count: number, together: boolean, now: number): void {
    const inHand = this.inHand as Delivery;
    this.pace.handed(count, inHand.came, now, together);
    this.used += count;
    this.handed += count;
    const due =
      this.used >= part(this.credit, CREDIT_BACK_MESSAGES) ||
      this.usedBytes >= part(this.creditBytes, CREDIT_BACK_BYTES);
    if (this.tells && this.handed > this.told) {
      this.told = this.handed;
      if (this.singly === 0 && !inHand.singly) {
        this.told = Math.max(this.told, this.handed - count + this.pace.atOnce);
      }
      if (this.pace.atOnce <= ACK_AT_ONCE) {
        this.sendAcks(); // what it has done with is in its hands no more
      }
      this.giveCredit({ taken: this.told, back: due });
    } else if (due) {
      this.giveCredit();
    }
  }

  /** Whether the broker knows that the program gets the next message, which may be its last; else ask. */
  private mayHaveOne(): boolean {
    if (this.leave) {
      this.leave = false;
      return true;
    }
    const { session } = this;
    if (this.asking === null && this.phase === "open" && session !== null) {
      const ref = session.expect((header) => {
        if (this.asking === ref) {
          this.asking = null;
          if (header.get(K.TYPE) === T.DONE) {
            this.leave = true;
            this.told = Math.max(this.told, this.handed + 1);
          }
          this.changed();
        }
      });
      this.asking = ref;
      this.sendAcks();
      this.giveCredit({ taken: this.handed + 1, ref });
    }
    return false;
  }

  /** Hand nothing more out of the delivery in hand. */
  private withhold(): void {
    this.inHand = null;
    this.at = this.run = 0;
  }

  private giveCredit({ taken, ref, back = true }: { taken?: number; ref?: number; back?: boolean } = {}): void {
    const messages = back ? Math.max(0, this.used) : 0;
    const bytes = back ? Math.max(0, this.usedBytes) : 0;
    if (this.phase !== "open" || this.session === null || (messages === 0 && bytes === 0 && taken === undefined)) {
      return;
    }
    const header = [K.TYPE, T.CREDIT, K.HANDLE, this.handle, K.MESSAGES, messages, K.BYTES, bytes];
    if (taken !== undefined) {
      header.push(K.TAKEN, taken);
    }
    if (ref !== undefined) {
      header.push(K.REF, ref);
    }
    this.used -= messages;
    this.usedBytes -= bytes;
    this.session.emitNumbers(header);
  }

  // ---- acknowledging ----------------------------------------------------------------------------------------------

  private get acknowledges(): boolean {
    return this.strategy !== "non-reliable" && !this.isReader; // there the broker never asks
  }

  private isVoid(message: Message): boolean {
    const { lineage } = message.delivery;
    if (lineage === this.lineage) {
      return false;
    }
    if (lineage >= this.sought) {
      this.forgotten = true; // and it delivers again what it forgot
    }
    return true;
  }

  /** Acknowledge a message, soon. */
  ack(message: Message, now: () => number): void {
    if (!this.acknowledges || this.isVoid(message)) {
      return;
    }
    const { offset } = message;
    if (offset === this.ackEnd && this.ackFirst < this.ackEnd) {
      this.ackEnd++;
    } else {
      this.closeRun();
      this.ackFirst = offset;
      this.ackEnd = offset + 1;
    }
    this.ackSoon(now);
    if (this.ranges.length >= ACK_RANGES_MAX) {
      this.sendAcks();
    }
  }

  private ackSoon(now: () => number): void {
    if (this.ackDue === NEVER) {
      this.ackDue = now() + ACK_DELAY_MS;
      this.session?.onDue(this.ackDue);
    }
  }

  /** Acknowledge everything up to and including a message, soon. */
  ackUntil(message: Message, now: () => number): void {
    if (this.acknowledges && !this.isVoid(message)) {
      this.until = Math.max(this.until ?? 0, message.offset);
      this.ackSoon(now);
    }
  }

  /** Give messages back, to be delivered again after the delay, or after the back-off where there is none. */
  nack(messages: readonly Message[], delayMs: number | null, reason: string): void {
    const more = new Map<number, Sendable>();
    if (delayMs !== null) {
      more.set(K.DELAY, delayMs);
    }
    if (reason !== "") {
      more.set(K.REASON, reason);
    }
    this.sayOf(T.NACK, messages, more);
  }

  /** Say that messages are still being worked on: their acknowledgment timeout starts again. */
  extend(messages: readonly Message[]): void {
    this.sayOf(T.EXTEND, messages, new Map());
  }

  private sayOf(type: number, messages: readonly Message[], more: Map<number, Sendable>): void {
    const { session } = this;
    const known = messages.filter((message) => this.acknowledges && !this.isVoid(message));
    if (this.phase !== "open" || session === null || known.length === 0) {
      return; // opening again releases everything that is not acknowledged
    }
    const ranges = joined(known.map(({ offset }): Range => [offset, offset + 1]));
    for (const numbers of flat(ranges)) {
      session.emit(new Map([...this.words(type, numbers), ...more]));
    }
  }

  private closeRun(): void {
    if (this.ackFirst < this.ackEnd) {
      this.ranges.push([this.ackFirst, this.ackEnd]);
    }
    this.ackFirst = this.ackEnd;
  }

  private dropAcks(): void {
    this.forgotten ||= !this.settled;
    this.ackFirst = this.ackEnd;
    this.ranges = [];
    this.confirming.clear();
    this.unproven = [];
    this.unprovenUntil = false;
    this.until = null;
    this.ackDue = NEVER;
    this.lastSent = null;
  }

  /** Send the acknowledgments gathered so far; with `confirm`, have the broker say when they are written. */
  sendAcks({ confirm = false }: { confirm?: boolean } = {}): void {
    const { session } = this;
    if (this.phase !== "open" || session === null || !this.acknowledges) {
      return;
    }
    this.closeRun();
    let ranges = joined(this.ranges);
    this.ranges = [];
    this.ackDue = NEVER;
    const ask = confirm || (ranges.length > 0 && this.confirming.size === 0 && this.unproven.length >= UNPROVEN_ASK);
    if (this.until !== null) {
      this.sendUntil();
      this.lastSent = [this.until, this.until + 1];
      this.unprovenUntil = true;
      this.until = null;
    }
    if (ranges.length === 0 && ask && this.lastSent !== null) {
      ranges = [this.lastSent]; // acknowledging again is free, and its answer covers what went before
    }
    if (ranges.length === 0) {
      return;
    }
    for (let at = 0; at < ranges.length; at += RANGES_MAX) {
      const header = this.words(T.ACK, ranges.slice(at, at + RANGES_MAX).flat());
      if (ask && at + RANGES_MAX >= ranges.length) {
        const ref = session.expect((answer) => this.onConfirmed(ref, answer));
        header.set(K.REF, ref);
        this.confirming.set(ref, [...this.unproven, ...ranges]);
        this.unproven = [];
      }
      session.emit(header);
    }
    if (ask) {
      this.lastSent = null;
    } else {
      this.lastSent = ranges[ranges.length - 1] as Range;
      this.keep(ranges);
    }
  }

  /** Remember what was sent, for when it is lost on its way. */
  private keep(ranges: Range[]): void {
    const last = this.unproven[this.unproven.length - 1];
    if (last !== undefined && ranges.length === 1 && ranges[0]?.[0] === last[1]) {
      last[1] = ranges[0][1]; // a program that acknowledges in order needs one
      return;
    }
    for (const [first, end] of ranges) {
      this.unproven.push([first, end]);
    }
    let most = UNPROVEN_MAX;
    for (const each of this.confirming.values()) {
      most -= each.length;
    }
    if (this.unproven.length > most) {
      this.unproven = joined(this.unproven);
      if (this.unproven.length > most) {
        this.unprovenUntil = true;
        this.unproven.splice(0, UNPROVEN_MAX / 2);
      }
    }
  }

  private onConfirmed(ref: number, header: Header): void {
    if (!this.confirming.delete(ref)) {
      return; // it was closed or moved meanwhile: what was acknowledged is known to be void
    }
    if (this.confirming.size === 0 && this.lastSent === null) {
      this.unprovenUntil = false;
    }
    if (header.get(K.TYPE) === T.ERROR) {
      const error = errorOf(header);
      if (error.code !== "closed" && error.code !== "not-active") {
        this.complaint = error;
      }
    }
    this.changed();
  }

  /** Whether the broker has written every acknowledgment made so far. */
  get settled(): boolean {
    return (
      !this.acknowledges ||
      (this.ranges.length === 0 &&
        this.confirming.size === 0 &&
        this.ackFirst === this.ackEnd &&
        this.until === null &&
        this.lastSent === null)
    );
  }

  // ---- the end, and time ------------------------------------------------------------------------------------------

  /** The program failed, for this reason: so did all that it has in hand, which only the broker knows. */
  blame(reason: string): void {
    if (this.phase === "open" && this.session !== null && this.tells) {
      this.sendAcks();
      this.session.emit(
        new Map<number, Sendable>([...this.words(T.NACK, []), [K.TAKEN, this.handed], [K.REASON, reason]]),
      );
    }
  }

  /** Send what is acknowledged and say CLOSE; the phase is "closed" when the broker has answered. */
  close(): void {
    this.sendAcks();
    const opening = this.phase === "opening"; // the broker is about to have it: it must hear that nobody wants it
    const { session } = this;
    if ((this.step("close") || opening) && session !== null) {
      const ref = session.expect(() => {
        this.step("done");
        this.changed();
      });
      session.emitNumbers([K.TYPE, T.CLOSE, K.REF, ref, K.HANDLE, this.handle]);
    }
    if (this.phase !== "closing") {
      this.fail(new ClosedError(this.isReader ? `the reader of ${this.topic}` : `the consumer ${this.subscription}`));
    }
    this.queue = [];
    this.withhold();
  }

  /** Drop what was not handed out: it is delivered again, if the broker keeps it. */
  private dropUnseen(): void {
    this.queue = [];
    if (this.acknowledges) {
      this.withhold();
    }
  }

  onLost(reason: IsterError): void {
    this.trouble = reason;
    this.dropUnseen();
    this.closeRun();
    for (const ranges of this.confirming.values()) {
      this.ranges.push(...ranges);
    }
    this.confirming.clear();
    this.ranges.push(...this.unproven);
    this.unproven = [];
    this.lastSent = null;
    if (this.unprovenUntil) {
      // what it covered is not known here: it is delivered again
      this.unprovenUntil = false;
      this.forgotten = true;
    }
    this.step("lost");
    this.changed();
  }

  fail(error: IsterError): void {
    if (this.step("fail")) {
      this.error = error;
      this.dropUnseen();
      this.dropAcks();
      this.changed();
    }
  }

  tick(now: number): void {
    if (this.phase === "waiting" && now >= this.due) {
      this.step("due");
      this.open();
    } else if (now >= this.ackDue) {
      this.sendAcks();
    }
  }

  deadline(): number {
    if (this.phase === "waiting") {
      return this.due;
    }
    return this.phase === "open" ? this.ackDue : NEVER;
  }
}

function sameBytes(one: Uint8Array | null, other: Uint8Array): boolean {
  return one !== null && Buffer.compare(one, other) === 0;
}

// What a program holds of a consumer or reader.

import { EventEmitter } from "node:events";
import type { Attachment, ConsumerEvent } from "./attachment.js";
import { ClosedError, ConnectionLostError, type IsterError, invalid } from "./errors.js";
import type { Message } from "./message.js";
import type { Network } from "./network.js";
import { type Bell, until, type WaitOptions } from "./waiting.js";
import { REASON_CHARACTERS_MAX } from "./wire.js";

/** Where a subscription or a reader begins, or goes: an offset, or a date for the first message taken in since. */
export type Start = "earliest" | "latest" | number | Date;

/** @internal A place as the protocol has it. */
export function wirePlace(place: Start): string | number {
  if (place instanceof Date) {
    if (Number.isNaN(place.getTime())) {
      throw invalid("a place is an invalid date");
    }
    return `time:${place.getTime()}`;
  }
  if (typeof place === "number" && (!Number.isSafeInteger(place) || place < 0)) {
    throw invalid(`a place is ${place}: offsets are whole, and not below 0`);
  }
  return place;
}

/** A reason as it may be sent: so many characters, and well-formed. */
function shortened(reason: string): string {
  return [...reason].slice(0, REASON_CHARACTERS_MAX).join("").toWellFormed();
}

/** What consumers and readers have in common. */
export class Receiver extends EventEmitter<{ event: [ConsumerEvent] }> implements AsyncDisposable {
  /** @internal */
  constructor(
    protected readonly network: Network,
    /** @internal */
    readonly attachment: Attachment,
    protected readonly bell: Bell,
    protected readonly patience: WaitOptions,
  ) {
    super();
    attachment.onEvent = (event) => {
      if (this.listenerCount("event") > 0) {
        process.nextTick(() => this.emit("event", event));
      }
    };
  }

  get topic(): string {
    return this.attachment.topic;
  }

  /** Up to where the subscription had delivered when it was opened last. */
  get position(): number {
    return this.attachment.position;
  }

  /** @internal */
  get what(): string {
    const { isReader, subscription } = this.attachment;
    return isReader ? `the reader of ${this.topic}` : `the consumer ${subscription} of ${this.topic}`;
  }

  /** What the broker told besides messages since the last call, oldest first; at most the last 256. */
  takeEvents(): ConsumerEvent[] {
    return this.attachment.takeEvents();
  }

  /** @internal Throws what ends, or interrupts, receiving. */
  protected check(): void {
    const { attachment } = this;
    if (attachment.error !== null) {
      throw attachment.error;
    }
    if (attachment.complaint !== null) {
      const { complaint } = attachment;
      attachment.complaint = null;
      throw complaint;
    }
    if (attachment.phase === "closing" || attachment.phase === "closed") {
      throw new ClosedError(this.what);
    }
  }

  private look(): Message | undefined {
    const message = this.attachment.takeOne(this.network.now());
    if (message === null) {
      this.check();
      return undefined;
    }
    return message;
  }

  /** Wait for the next message. */
  receive(options: WaitOptions = {}): Promise<Message> {
    if (this.attachment.hasRun && options.signal?.aborted !== true) {
      return Promise.resolve(this.attachment.takeFromRun());
    }
    return until(
      this.bell,
      () => this.look(),
      options,
      () => this.nothing(),
    );
  }

  private nothing(): string {
    const { trouble } = this.attachment;
    return trouble === null ? `no message from ${this.topic}` : `no message from ${this.topic}: ${trouble.message}`;
  }

  /** Wait for messages that came together: at least one, at most so many. */
  receiveBatch(most: number, options: WaitOptions = {}): Promise<Message[]> {
    if (!Number.isSafeInteger(most) || most < 1) {
      return Promise.reject(invalid(`a batch of at most ${most} messages holds none`));
    }
    return until(
      this.bell,
      () => {
        const messages = this.attachment.takeSome(most, this.network.now());
        if (messages === null) {
          this.check();
        }
        return messages ?? undefined;
      },
      options,
      () => this.nothing(),
    );
  }

  /** Every message from now on. Ends when this is closed; throws what `receive` rejects with. */
  async *messages(options: Pick<WaitOptions, "signal"> = {}): AsyncGenerator<Message, void, undefined> {
    const { attachment } = this;
    for (;;) {
      let message: Message;
      if (attachment.hasRun && options.signal?.aborted !== true) {
        message = attachment.takeFromRun();
      } else {
        try {
          message = await this.receive(options);
        } catch (error) {
          if (error instanceof ClosedError) {
            return;
          }
          throw error;
        }
      }
      yield message;
    }
  }

  /** Every message from now on, as they came together: at most so many at a time. */
  async *batches(most: number, options: Pick<WaitOptions, "signal"> = {}): AsyncGenerator<Message[], void, undefined> {
    for (;;) {
      let messages: Message[];
      try {
        messages = await this.receiveBatch(most, options);
      } catch (error) {
        if (error instanceof ClosedError) {
          return;
        }
        throw error;
      }
      yield messages;
    }
  }

  [Symbol.asyncIterator](): AsyncGenerator<Message, void, undefined> {
    return this.messages();
  }

  /** Send the acknowledgments made so far, wait until they are applied, and leave. Closing again does nothing. */
  async close(options: WaitOptions = {}): Promise<void> {
    const { attachment } = this;
    if (attachment.phase === "closed") {
      return;
    }
    attachment.close();
    this.bell.ring(); // whoever waits for a message waits no more
    try {
      await until(
        this.bell,
        () => (attachment.phase === "closed" ? true : undefined),
        { ...this.patience, ...options },
        () => `the broker did not confirm the close of ${this.what}`,
      );
    } finally {
      this.abandon(new ClosedError(this.what));
    }
  }

  /** @internal Let go of it without waiting for anything. */
  abandon(error: IsterError): void {
    this.attachment.close();
    this.attachment.fail(error);
    this.network.release(this.attachment);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Reads a topic, without a subscription and without acknowledgments. */
export class Reader extends Receiver {}

/** How messages are given back. */
export interface NackOptions {
  /** Delivered again after so long; 0 for at once. Without it the subscription's back-off counts. */
  delayMs?: number;
  /** For people: it is in the dead letter, if it comes to that. */
  reason?: string;
}

/** Receives the messages of one subscription. */
export class Consumer extends Receiver {
  /** @internal `moveTo` moves the subscription. */
  constructor(
    network: Network,
    attachment: Attachment,
    bell: Bell,
    patience: WaitOptions,
    private readonly moveTo: (to: Start, options: WaitOptions) => Promise<number>,
  ) {
    super(network, attachment, bell, patience);
  }

  get subscription(): string {
    return this.attachment.subscription;
  }

  /** Of a Failover consumer: whether it is the active one; null until the broker says. */
  get active(): boolean | null {
    return this.attachment.active;
  }

  private own(messages: Message | readonly Message[]): readonly Message[] {
    const all = Array.isArray(messages) ? (messages as readonly Message[]) : [messages as Message];
    for (const message of all) {
      if (message.delivery.owner !== this.attachment) {
        throw invalid("this message came from another consumer: acknowledge it there");
      }
    }
    this.check();
    return all;
  }

  /** @internal */
  readonly now = () => this.network.now();

  /**
   * Acknowledge messages: they do not come to this subscription again. The words are sent within some milliseconds;
   * `flush` waits until they are written.
   */
  ack(messages: Message | readonly Message[]): void {
    for (const message of this.own(messages)) {
      this.attachment.ack(message, this.now);
    }
  }

  /** Acknowledge everything up to and including a message: of the whole subscription, or of what this consumer has. */
  ackUntil(message: Message): void {
    this.own(message);
    this.attachment.ackUntil(message, this.now);
  }

  /** Give messages back, to be delivered again. */
  nack(messages: Message | readonly Message[], { delayMs, reason = "" }: NackOptions = {}): void {
    if (delayMs !== undefined && (!Number.isFinite(delayMs) || delayMs < 0)) {
      throw invalid(`delayMs is ${delayMs}: milliseconds, not below 0`);
    }
    const all = this.own(messages);
    this.attachment.nack(all, delayMs === undefined ? null : Math.round(delayMs), shortened(reason));
  }

  /** Say that messages are still being worked on: their acknowledgment timeout begins anew. */
  extend(messages: Message | readonly Message[]): void {
    this.attachment.extend(this.own(messages));
  }

  /**
   * Wait until the broker has written every acknowledgment made so far. Rejects with `ConnectionLostError` where the
   * broker forgot what it had delivered: those messages come again.
   */
  async flush(options: WaitOptions = {}): Promise<void> {
    await until(
      this.bell,
      () => {
        const { attachment } = this;
        this.check();
        if (!attachment.settled) {
          attachment.sendAcks({ confirm: true });
          return undefined;
        }
        if (attachment.forgotten) {
          attachment.forgotten = false;
          throw new ConnectionLostError(
            "the broker forgot what some acknowledgments were about: it delivers those messages again",
          );
        }
        return true;
      },
      { ...this.patience, ...options },
      () => `acknowledgments of ${this.what} were not confirmed`,
    );
  }

  /** Move the whole subscription, and return the offset of the next message. */
  async seek(to: Start, options: WaitOptions = {}): Promise<number> {
    const { attachment } = this;
    const { begun } = attachment;
    const patience = { ...this.patience, ...options };
    attachment.sendAcks();
    const position = await this.moveTo(to, patience);
    await until(
      this.bell,
      () => {
        if (attachment.error !== null) {
          throw attachment.error;
        }
        // a standby is not told
        return attachment.begun !== begun || attachment.phase !== "open" || attachment.active === false
          ? true
          : undefined;
      },
      patience,
      () => `the news that ${this.what} was moved has not come`,
    );
    return position;
  }

  /** @internal The program ends: what it acknowledged is sent. */
  part(): void {
    this.attachment.sendAcks();
  }

  /**
   * Say that this program failed while it worked on what it has in hand: those messages have failed too, which a close
   * alone would not mean. A program that ends by an uncaught exception says so by itself.
   */
  blame(error: unknown): void {
    const reason = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
    this.attachment.blame(shortened(reason));
  }
}

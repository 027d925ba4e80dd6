// The consumer of a pattern: one consumer for each topic that matches, presented as one.
//
// Invariants
// - topics take turns: none starves another
// - an acknowledgment goes to the consumer that its message came from; for a topic that is gone it is dropped
// - dead-letter topics are not followed: what a consumer refuses would come to it again
// - a topic that refused is not tried again until it was deleted and created again

import { EventEmitter } from "node:events";
import { type ConsumerEvent, EVENTS_MAX } from "./attachment.js";
import type { Consumer, NackOptions } from "./consumer.js";
import { BrokerError, ClosedError, IsterError, invalid } from "./errors.js";
import type { Message } from "./message.js";
import { type Bell, until, type WaitOptions } from "./waiting.js";

const DEAD_LETTERS = ".dlq";
const GONE = ["topic-deleted", "unknown-topic", "subscription-deleted", "unknown-subscription"];
const LOOK_MS = 5000;
const AGAIN_MS = 500;

/** A topic that matches, as `topic.watch` tells of it. */
export interface Listed {
  topic: string;
  created_ms: number;
  /** It was created while no consumer of the pattern was connected. */
  later?: boolean;
}

/** What following a pattern asks of the client. */
export interface Follower {
  /** The topics that match; after a version, when they are others or the time is over. */
  watch(version: number | null, signal: AbortSignal): Promise<{ version: number; topics: Listed[] }>;
  /** Open the consumer of a topic; `later`: from its earliest message on. */
  open(topic: string, later: boolean, signal: AbortSignal): Promise<Consumer>;
}

interface Member {
  created: number;
  consumer: Consumer;
}

/** Receives the messages of every topic that matches a pattern, also of those that are created later. */
export class PatternConsumer extends EventEmitter<{ event: [ConsumerEvent] }> implements AsyncDisposable {
  private members = new Map<string, Member>();
  private readonly refused = new Map<string, number>();
  private complaint: IsterError | null = null;
  private readonly ending = new AbortController();
  private turn = 0;
  private current: Consumer | null = null; // whose run of messages is being handed out
  private closed = false;
  private told: ConsumerEvent[] = [];

  /** @internal */
  constructor(
    readonly pattern: string,
    readonly subscription: string,
    private readonly follower: Follower,
    private readonly bell: Bell,
    private readonly patience: WaitOptions,
  ) {
    super();
  }

  /** The pattern. */
  get topic(): string {
    return this.pattern;
  }

  /** The topics it receives from at present, by name. */
  get topics(): string[] {
    return [...this.members.keys()].sort();
  }

  /** What the broker told of its topics since the last call, oldest first; at most the last 256. */
  takeEvents(): ConsumerEvent[] {
    const { told } = this;
    this.told = [];
    return told;
  }

  // ---- which topics there are -------------------------------------------------------------------------------------

  /** @internal Open the topics that there are, and follow those that come. */
  async begin(options: WaitOptions): Promise<void> {
    const stop = () => this.ending.abort(options.signal?.reason);
    options.signal?.addEventListener("abort", stop, { once: true });
    try {
      const first = await this.follower.watch(null, this.ending.signal);
      await this.change(first.topics, false);
      if (this.complaint !== null) {
        throw this.complaint;
      }
      void this.follow(first.version);
    } catch (error) {
      await this.close();
      throw error;
    } finally {
      options.signal?.removeEventListener("abort", stop);
    }
  }

  private async follow(first: number): Promise<void> {
    let version: number | null = first;
    while (!this.closed) {
      try {
        const told = await this.follower.watch(version, this.ending.signal);
        await this.change(told.topics, version !== null);
        ({ version } = told);
      } catch (error) {
        if (this.closed || error instanceof ClosedError) {
          break;
        }
        version = null; // the next look is at all that there are
        if (!(error instanceof IsterError && error.action === "retry")) {
          this.complain(error as IsterError);
        }
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      }
    }
  }

  private async change(listed: Listed[], later: boolean): Promise<void> {
    const there = new Map(
      listed.filter(({ topic }) => !topic.endsWith(DEAD_LETTERS)).map((each) => [each.topic, each]),
    );
    for (const [topic, { created, consumer }] of this.members) {
      if (there.get(topic)?.created_ms !== created || consumer.attachment.phase === "closed") {
        this.leave(topic, consumer);
        void consumer.close({ timeoutMs: LOOK_MS }).catch(() => {});
      }
    }
    for (const [topic, created] of this.refused) {
      if (there.get(topic)?.created_ms !== created) {
        this.refused.delete(topic);
      }
    }
    const come = [...there.values()].filter(({ topic }) => !this.members.has(topic) && !this.refused.has(topic));
    await Promise.all(come.map((each) => this.join(each, later)));
    this.bell.ring();
  }

  private leave(topic: string, consumer: Consumer): void {
    this.members.delete(topic);
    if (this.current === consumer) {
      this.current = null;
    }
  }

  private async join(listed: Listed, later: boolean): Promise<void> {
    const { topic, created_ms: created } = listed;
    try {
      const consumer = await this.follower.open(topic, later || listed.later === true, this.ending.signal);
      if (this.closed) {
        await consumer.close({ timeoutMs: LOOK_MS });
        return;
      }
      consumer.on("event", (event) => {
        this.told.push(event);
        if (this.told.length > EVENTS_MAX) {
          this.told.shift();
        }
        this.emit("event", event);
      });
      this.members.set(topic, { created, consumer });
    } catch (error) {
      if (!(error instanceof IsterError) || !GONE.includes(error.code)) {
        this.refused.set(topic, created);
        this.complain(error as IsterError, topic);
      }
    }
  }

  private complain(error: IsterError, topic?: string): void {
    const named =
      topic === undefined || !(error instanceof BrokerError)
        ? error
        : new BrokerError(error.code, error.action, `topic ${topic}: ${error.message}`);
    this.complaint ??= named;
    this.bell.ring();
  }

  // ---- receiving --------------------------------------------------------------------------------------------------

  private take<Found>(from: (consumer: Consumer) => Found | null): Found | undefined {
    if (this.closed) {
      throw new ClosedError(`the consumer ${this.subscription} of ${this.pattern}`);
    }
    if (this.current?.attachment.hasRun === true) {
      const found = from(this.current);
      if (found !== null) {
        return found;
      }
    }
    const members = [...this.members];
    for (let i = 0; i < members.length; i++) {
      const at = (this.turn + i) % members.length;
      const [topic, { consumer, created }] = members[at] as [string, Member];
      const found = from(consumer);
      if (found !== null) {
        this.current = consumer;
        this.turn = at + 1;
        return found;
      }
      const { error } = consumer.attachment;
      if (error !== null) {
        this.leave(topic, consumer);
        if (!GONE.includes(error.code)) {
          this.refused.set(topic, created);
          this.complain(error, topic);
        }
      }
      const { complaint } = consumer.attachment;
      if (complaint !== null) {
        consumer.attachment.complaint = null;
        this.complain(complaint, topic);
      }
    }
    if (this.complaint !== null) {
      const { complaint } = this;
      this.complaint = null;
      throw complaint;
    }
    return undefined;
  }

  /** Wait for the next message of any topic. */
  receive(options: WaitOptions = {}): Promise<Message> {
    const look = () => this.take((consumer) => consumer.attachment.takeOne(consumer.now()));
    return until(this.bell, look, options, () => `no message from ${this.pattern}`);
  }

  /** Wait for messages of one topic that came together: at least one, at most so many. */
  receiveBatch(most: number, options: WaitOptions = {}): Promise<Message[]> {
    if (!Number.isSafeInteger(most) || most < 1) {
      return Promise.reject(invalid(`a batch of at most ${most} messages holds none`));
    }
    const look = () => this.take((consumer) => consumer.attachment.takeSome(most, consumer.now()));
    return until(this.bell, look, options, () => `no message from ${this.pattern}`);
  }

  /** Every message from now on. Ends when this is closed; throws what `receive` rejects with. */
  async *messages(options: Pick<WaitOptions, "signal"> = {}): AsyncGenerator<Message, void, undefined> {
    for (;;) {
      let message: Message;
      try {
        message = await this.receive(options);
      } catch (error) {
        if (error instanceof ClosedError) {
          return;
        }
        throw error;
      }
      yield message;
    }
  }

  [Symbol.asyncIterator](): AsyncGenerator<Message, void, undefined> {
    return this.messages();
  }

  // ---- acknowledging ----------------------------------------------------------------------------------------------

  private each(messages: Message | readonly Message[], say: (consumer: Consumer, part: Message[]) => void): void {
    const all = Array.isArray(messages) ? (messages as readonly Message[]) : [messages as Message];
    const parts = new Map<Consumer, Message[]>();
    for (const message of all) {
      const consumer = this.members.get(message.topic)?.consumer;
      if (consumer !== undefined && consumer.attachment === message.delivery.owner) {
        const part = parts.get(consumer);
        if (part === undefined) {
          parts.set(consumer, [message]);
        } else {
          part.push(message);
        }
      }
    }
    for (const [consumer, part] of parts) {
      if (consumer.attachment.error === null) {
        say(consumer, part);
      }
    }
  }

  /** Acknowledge messages, of whatever topics. */
  ack(messages: Message | readonly Message[]): void {
    this.each(messages, (consumer, part) => consumer.ack(part));
  }

  /** Acknowledge everything of its topic up to and including a message. */
  ackUntil(message: Message): void {
    this.each(message, (consumer) => consumer.ackUntil(message));
  }

  /** Give messages back, to be delivered again. */
  nack(messages: Message | readonly Message[], options: NackOptions = {}): void {
    this.each(messages, (consumer, part) => consumer.nack(part, options));
  }

  /** Say that messages are still being worked on: their acknowledgment timeout begins anew. */
  extend(messages: Message | readonly Message[]): void {
    this.each(messages, (consumer, part) => consumer.extend(part));
  }

  /** Wait until the broker has written every acknowledgment made so far. */
  async flush(options: WaitOptions = {}): Promise<void> {
    const flushed = [...this.members.values()].map(async ({ consumer }) => {
      try {
        await consumer.flush({ ...this.patience, ...options });
      } catch (error) {
        if (!(error instanceof IsterError && GONE.includes(error.code))) {
          throw error;
        }
      }
    });
    await Promise.all(flushed);
  }

  /** Send the acknowledgments made so far, and leave every topic. Closing again does nothing. */
  async close(options: WaitOptions = {}): Promise<void> {
    if (this.closed) {
      return;
    }
    this.closed = true;
    this.ending.abort();
    this.bell.ring();
    this.current = null;
    const members = [...this.members.values()];
    this.members = new Map();
    const outcomes = await Promise.allSettled(members.map(({ consumer }) => consumer.close(options)));
    for (const outcome of outcomes) {
      if (outcome.status === "rejected") {
        throw outcome.reason;
      }
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

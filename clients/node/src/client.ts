// What a program begins with.

import { randomBytes } from "node:crypto";
import { Administration, type ConnectionEvent, type SubscriptionOptions } from "./admin.js";
import { Attachment, type AttachmentOptions, READER, type SubscriptionType } from "./attachment.js";
import type { Payload } from "./batch.js";
import { Consumer, Reader, type Receiver, type Start, wirePlace } from "./consumer.js";
import { DeadLetters } from "./deadletters.js";
import { ClosedError, IsterError, invalid } from "./errors.js";
import { type Follower, PatternConsumer } from "./following.js";
import { Correspondence } from "./inbox.js";
import type { Message, ReplyOptions } from "./message.js";
import { Network } from "./network.js";
import { Producer } from "./producer.js";
import { producerId } from "./producerid.js";
import { Publication } from "./publication.js";
import { Bell, until, type WaitOptions } from "./waiting.js";
import { toArguments } from "./wire.js";

/** This client's version. */
export const VERSION = "0.1.0";
/** @internal */
export const CLIENT_TEXT = `ister-node/${VERSION}`;
const PATIENCE_MS = 30_000;
const EVENTS_MAX = 256;
const NAME_MAX = 100;
const BATCH_BYTES = 64 << 10;
const LINGER_MS = 1;
const WATCH_MS = 15_000; // the broker answers within five seconds

/** Who is told what happens to connections; `console` is one. */
export interface Logger {
  info(message: string): void;
  warn(message: string): void;
}

export interface ConnectOptions extends WaitOptions {
  /** For people who look at the broker. */
  name?: string;
  /** Hears of connections that are lost and made again; nobody does without it. */
  logger?: Logger;
  /** How long calls that ask the broker something may wait if they do not say so themselves: 30 s. */
  patienceMs?: number;
}

export interface ProducerOptions extends WaitOptions {
  /** The same producer over restarts of the program; a second one of that name fences the first. */
  name?: string;
  /** Messages gather while a batch before them is on its way, until there are so many bytes: 64 KiB. */
  batchBytes?: number;
  /** Or so long: 1 ms. */
  lingerMs?: number;
  /** At most so many bytes are without a receipt: what the broker allows. */
  windowBytes?: number;
}

export interface ConsumerOptions extends WaitOptions {
  /** "shared" without it. */
  type?: SubscriptionType;
  /** Where a new subscription begins: "latest" without it. */
  start?: Start;
  /** Of a failover consumer: lower is preferred. */
  priority?: number;
  /** Takes an exclusive subscription over. */
  force?: boolean;
  /** Waits for the place of whoever has an exclusive subscription. */
  waitForPlace?: boolean;
  /** So many messages may wait here unseen. Without it, as many as the program works off in half a second. */
  creditMessages?: number;
  /** Of a new subscription, or what an existing one must have. */
  options?: SubscriptionOptions;
}

export interface ReaderOptions extends WaitOptions {
  /** "earliest" without it. */
  start?: Start;
  creditMessages?: number;
}

export interface RequestOptions extends WaitOptions {
  key?: Payload | null;
  attributes?: Readonly<Record<string, string>> | null;
}

function wholeNumber(value: number | undefined, what: string, least: number): number | null {
  if (value === undefined) {
    return null;
  }
  if (!Number.isSafeInteger(value) || value < least) {
    throw invalid(`${what} is ${value}: a whole number, at least ${least}`);
  }
  return value;
}

/** Connect to a broker: to the first of some endpoints that answers. Resolves when there is a session. */
export async function connect(endpoints: string | readonly string[], options: ConnectOptions = {}): Promise<Client> {
  const all = typeof endpoints === "string" ? [endpoints] : [...endpoints];
  if (all.length === 0) {
    throw invalid("an endpoint is needed, like tcp://127.0.0.1:5555");
  }
  const client = new Client(all, options);
  await client.begin(options);
  return client;
}

// A program that ends without closing its clients says goodbye all the same, and its places are free at once. One that
// ends by an exception says so before: what it had in hand has failed.
const alive = new Set<Client>();

function onExit(): void {
  for (const client of alive) {
    client.part();
  }
}

function onUncaught(error: unknown): void {
  if (process.listenerCount("uncaughtException") > 0 || process.hasUncaughtExceptionCaptureCallback()) {
    return; // the program goes on
  }
  for (const client of alive) {
    client.fall(error);
  }
}

/** A connection to a broker. A lost one is made again, for as long as the client lives, and everything goes on. */
export class Client extends Administration implements AsyncDisposable {
  /** @internal */
  protected readonly network: Network;
  /** @internal */
  protected readonly patience: WaitOptions;
  private readonly bell = new Bell();
  private readonly correspondence = new Correspondence(this);
  private readonly logger: Logger | null;
  private told: ConnectionEvent[] = [];
  private closing = false;

  /** @internal */
  constructor(endpoints: readonly string[], options: ConnectOptions) {
    super();
    const name = [...(options.name ?? "")].slice(0, NAME_MAX).join("").toWellFormed();
    this.network = new Network(endpoints, name === "" ? CLIENT_TEXT : `${name} ${CLIENT_TEXT}`);
    this.patience = { timeoutMs: options.patienceMs ?? PATIENCE_MS };
    this.logger = options.logger ?? null;
    this.network.changed = () => this.bell.ring();
    this.network.onUp = (connection) => this.tell("connected", connection.endpoint, "");
    this.network.onDown = (connection, why) => this.tell("lost", connection.endpoint, why?.message ?? "");
  }

  /** @internal */
  async begin(options: WaitOptions): Promise<void> {
    const { home } = this.network;
    const { session } = home;
    if (alive.size === 0) {
      process.on("exit", onExit);
      process.on("uncaughtExceptionMonitor", onUncaught);
    }
    alive.add(this);
    try {
      home.connect();
      await until(
        this.bell,
        () => {
          if (session.phase === "ended") {
            throw session.trouble ?? new ClosedError("the client");
          }
          return session.phase === "ready" ? true : undefined;
        },
        { ...this.patience, ...options },
        () => `no broker at ${home.endpoints.join(", ")}${session.trouble ? `: ${session.trouble.message}` : ""}`,
      );
    } catch (error) {
      this.end();
      throw error;
    }
  }

  private tell(code: "connected" | "lost", endpoint: string, reason: string): void {
    const event: ConnectionEvent = { code, endpoint, reason };
    if (code === "lost") {
      this.logger?.warn(`ister: the connection to ${endpoint} was lost, and is made again: ${reason}`);
    } else if (this.told.length > 0) {
      this.logger?.info(`ister: connected to ${endpoint}`);
    }
    this.told.push(event);
    if (this.told.length > EVENTS_MAX) {
      this.told.shift();
    }
    process.nextTick(() => this.emit(code, event)); // what a listener throws concerns the program, not the connection
  }

  /** What became of connections since the last call, oldest first; at most the last 256. */
  takeEvents(): ConnectionEvent[] {
    const { told } = this;
    this.told = [];
    return told;
  }

  protected check(): void {
    if (this.closing) {
      throw new ClosedError("the client");
    }
  }

  // ---- producers and consumers ------------------------------------------------------------------------------------

  /** Open a producer. */
  async producer(topic: string, options: ProducerOptions = {}): Promise<Producer> {
    this.check();
    const { name } = options;
    const batchBytes = wholeNumber(options.batchBytes, "batchBytes", 1) ?? BATCH_BYTES;
    const windowBytes = wholeNumber(options.windowBytes, "windowBytes", 1);
    const id = name === undefined ? randomBytes(8).readBigUInt64LE() >> 11n || 1n : producerId(topic, name);
    const publication = new Publication(this.network.nextHandle(), topic, id, {
      batchBytes,
      lingerMs: Math.max(0, options.lingerMs ?? LINGER_MS),
      windowBytes,
    });
    const bell = new Bell();
    publication.changed = () => bell.ring();
    const producer = new Producer(this.network, publication, bell, this.patience);
    await this.open(publication, producer, bell, options, `the producer for topic ${topic} was not opened`);
    return producer;
  }

  private async open(
    handle: Publication | Attachment,
    owner: Producer | Receiver,
    bell: Bell,
    options: WaitOptions,
    what: string,
  ): Promise<void> {
    try {
      this.network.attach(handle);
      await until(
        bell,
        () => {
          if (handle.error !== null) {
            throw handle.error;
          }
          return handle.opened ? true : undefined;
        },
        { ...this.patience, ...options },
        () => {
          const trouble = handle.trouble ?? this.network.home.session.trouble;
          return trouble === null ? what : `${what}: ${trouble.message}`;
        },
      );
      this.network.users.set(handle.handle, owner);
    } catch (error) {
      const { trouble } = handle;
      owner.abandon(new ClosedError("it was not opened, and"));
      if (trouble?.code === "subscription-busy" && (error as IsterError).code === "timeout") {
        throw trouble;
      }
      throw error;
    }
  }

  /** Open a consumer; a subscription that does not exist is created. */
  consumer(topic: string, subscription: string, options: ConsumerOptions = {}): Promise<Consumer> {
    return this.openConsumer(topic, subscription, options, new Bell());
  }

  /**
   * Open a consumer of every topic whose name matches a pattern: `*` stands for one part of a name, `>` at the end for
   * one or more. It follows topics that are created later, from their first message on, and those that are deleted.
   */
  async patternConsumer(
    pattern: string,
    subscription: string,
    options: Omit<ConsumerOptions, "force"> = {},
  ): Promise<PatternConsumer> {
    this.check();
    const bell = new Bell();
    const letters = options.options?.dead_letter_topic;
    const patience = { ...this.patience, ...given(options) };
    const follower: Follower = {
      watch: async (version, signal) => {
        const how = { signal, timeoutMs: WATCH_MS };
        const args = version === null ? { subscription } : { version };
        const told = await this.watchTopics({ pattern, ...args }, how).catch((error) => {
          if (version === null && error instanceof IsterError && error.code === "invalid-argument") {
            return this.watchTopics({ pattern }, how); // an older broker does not say what was created meanwhile
          }
          throw error;
        });
        return { ...told, topics: told.topics.filter(({ topic }) => topic !== letters) };
      },
      open: (topic, later, signal) => {
        const more: ConsumerOptions = later ? { start: "earliest" } : {};
        return this.openConsumer(topic, subscription, { ...options, ...patience, ...more, signal }, bell);
      },
    };
    const consumer = new PatternConsumer(pattern, subscription, follower, bell, this.patience);
    await consumer.begin(options);
    return consumer;
  }

  /** The dead letters of a subscription: listed, sent back, deleted. */
  deadLetters(topic: string, subscription: string): DeadLetters {
    return new DeadLetters(this, topic, subscription, this.patience);
  }

  private async openConsumer(
    topic: string,
    subscription: string,
    options: ConsumerOptions,
    bell: Bell,
  ): Promise<Consumer> {
    this.check();
    const attachment = this.attachment({
      topic,
      subscription,
      type: options.type ?? (options.force === true ? "exclusive" : "shared"),
      start: options.start === undefined ? null : wirePlace(options.start),
      priority: wholeNumber(options.priority, "priority", 0) ?? 0,
      force: options.force === true,
      arguments: toArguments((options.options ?? {}) as Record<string, unknown>),
      creditMessages: wholeNumber(options.creditMessages, "creditMessages", 1),
      patient: options.waitForPlace === true,
    });
    attachment.changed = () => bell.ring();
    const move = (to: Start, how: WaitOptions) => this.seek(topic, subscription, to, how);
    const consumer = new Consumer(this.network, attachment, bell, this.patience, move);
    await this.open(attachment, consumer, bell, options, `${consumer.what} was not opened`);
    return consumer;
  }

  /** Open a reader: it reads a topic from any place, and leaves nothing. */
  async reader(topic: string, options: ReaderOptions = {}): Promise<Reader> {
    this.check();
    const attachment = this.attachment({
      topic,
      subscription: `reader-${randomBytes(8).toString("hex")}`,
      type: READER,
      start: wirePlace(options.start ?? "earliest"),
      priority: 0,
      force: false,
      arguments: new Map(),
      creditMessages: wholeNumber(options.creditMessages, "creditMessages", 1),
      patient: false,
    });
    const bell = new Bell();
    attachment.changed = () => bell.ring();
    const reader = new Reader(this.network, attachment, bell, this.patience);
    await this.open(attachment, reader, bell, options, `${reader.what} was not opened`);
    return reader;
  }

  private attachment(options: AttachmentOptions): Attachment {
    const attachment = new Attachment(this.network.nextHandle(), options);
    attachment.reply = (to: Message, payload: Payload, { signal, timeoutMs, ...rest }: ReplyOptions) =>
      this.correspondence.reply(to, { ...rest, payload }, { ...this.patience, ...given({ signal, timeoutMs }) });
    return attachment;
  }

  // ---- request and reply ------------------------------------------------------------------------------------------

  /**
   * Send a message and wait for the reply that some consumer of the topic gives it with `message.reply`. Where the
   * session is lost on the way it rejects with `ConnectionLostError`: the request may have been carried out.
   */
  request(topic: string, payload: Payload, options: RequestOptions = {}): Promise<Message> {
    const { signal, timeoutMs, ...rest } = options;
    const patience = { ...this.patience, ...given({ signal, timeoutMs }) };
    return this.correspondence.request(topic, { ...rest, payload }, patience);
  }

  // ---- the end ----------------------------------------------------------------------------------------------------

  /**
   * Close what is open, in order: producers wait for their receipts, consumers send their acknowledgments; then say
   * goodbye. Rejects with the first thing that could not be done in time, after the end all the same.
   */
  async close(options: WaitOptions = {}): Promise<void> {
    if (this.closing) {
      return;
    }
    await this.correspondence.close();
    this.closing = true;
    const outcomes = await Promise.allSettled([...this.network.users.values()].map((each) => each.close(options)));
    this.end();
    for (const outcome of outcomes) {
      if (outcome.status === "rejected") {
        throw outcome.reason;
      }
    }
  }

  /** @internal The program ends by this error. */
  fall(error: unknown): void {
    for (const user of this.network.users.values()) {
      user.blame?.(error);
    }
    this.end();
  }

  /** @internal The program ends. */
  part(): void {
    for (const user of this.network.users.values()) {
      user.part?.();
    }
    this.end();
  }

  private end(): void {
    this.closing = true;
    alive.delete(this);
    if (alive.size === 0) {
      process.off("exit", onExit);
      process.off("uncaughtExceptionMonitor", onUncaught);
    }
    this.network.close(new ClosedError("the client"));
    this.bell.ring();
  }

  /** @internal Cut every connection without a word, as a broken network would; for tests. They are made again. */
  drop(): void {
    this.network.drop();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function given(options: WaitOptions): WaitOptions {
  return options.timeoutMs === undefined ? { signal: options.signal } : options;
}

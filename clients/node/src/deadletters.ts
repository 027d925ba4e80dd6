// The dead letters of one subscription: listing what it gave up, sending it back, and deleting it.
//
// They are in the subscription's dead-letter topic, and are taken from there through its Exclusive subscription
// `redrive`.
//
// Invariants
// - a letter is acknowledged once the topic it went to has it, and never before: an interruption loses nothing
// - what fails again meanwhile waits for the next call: no letter loops for ever
// - a dead-letter topic may serve several subscriptions: only this one's letters are listed and touched

import type { SubscriptionInfo, TopicInfo } from "./admin.js";
import type { Consumer, Reader, Start } from "./consumer.js";
import { BrokerError, IsterError, invalid } from "./errors.js";
import type { Message } from "./message.js";
import type { Producer, Receipt } from "./producer.js";
import type { WaitOptions } from "./waiting.js";

const REDRIVE = "redrive"; // the subscription of a dead-letter topic that its letters are taken through
const PAGE = 100;
const TOGETHER = 200; // letters that are settled together
const GAP_READ_OVER = 1000; // a longer one between letters is not read through
const SILENCE_MS = 300; // after which the broker is asked whether any are left
const ADDED = ["topic", "subscription", "offset", "producer", "timestamp", "attempts", "reason", "dead_lettered_at"];
const MARK = "ister.";

/** A message that a subscription gave up, as its producer sent it, and why. */
export interface DeadLetter {
  /** In the dead-letter topic. */
  offset: number;
  payload: Buffer;
  key: Buffer | null;
  /** Without those about the failure. */
  attributes: Record<string, string>;
  /** The topic it was published to. */
  topic: string;
  /** The subscription that gave it up. */
  subscription: string;
  /** Its offset in `topic`. */
  originOffset: number | null;
  /** Its producer's id, hexadecimal. */
  producer: string;
  /** When the broker took it. */
  timestamp: Date | null;
  /** How often it was delivered. */
  attempts: number;
  /** Of the last failure. */
  reason: string;
  deadLetteredAt: Date | null;
}

export interface RedriveOptions extends WaitOptions {
  /** Those at these offsets of the dead-letter topic alone. */
  offsets?: Iterable<number>;
  /** To another topic than the one they were in. */
  to?: string;
  /** At most so many. */
  limit?: number;
}

/** What is asked of the client. */
export interface LetterClient {
  topic(topic: string, how: WaitOptions): Promise<TopicInfo>;
  subscription(topic: string, subscription: string, how: WaitOptions): Promise<SubscriptionInfo>;
  producer(topic: string, options: WaitOptions): Promise<Producer>;
  consumer(
    topic: string,
    subscription: string,
    options: WaitOptions & { type: "exclusive"; start: Start; creditMessages: number },
  ): Promise<Consumer>;
  reader(topic: string, options: WaitOptions & { start: Start }): Promise<Reader>;
}

type Run = [first: number, end: number];

/** What waits in a dead-letter topic. */
interface Waiting {
  count: number;
  end: number;
  paused: boolean;
  /** The first runs of letters: the broker tells of no more than these. */
  runs: Run[];
}

/** Which letters a pass is about, and what is done with them. */
interface Plan {
  most: number;
  isWanted: (letter: Message) => boolean;
  send: ((letter: Message) => Receipt) | null;
}

/** How far a pass over the letters has come. */
class Pass {
  done = 0;
  passed = 0; // were looked at, and stay
  reached = 0; // behind the last one that was looked at: those below come again
  readonly gone = new Set<number>(); // settled, and not known to be acknowledged
  refused: IsterError | null = null;
}

/** The dead letters of one subscription; made by `client.deadLetters`. */
export class DeadLetters implements AsyncIterable<DeadLetter> {
  /** @internal */
  constructor(
    private readonly client: LetterClient,
    readonly topic: string,
    readonly subscription: string,
    private readonly patience: WaitOptions,
  ) {}

  /** The name of the topic they are in; of a subscription that was deleted, the default name. */
  async deadLetterTopic(options: WaitOptions = {}): Promise<string> {
    const told = await this.known(() => this.client.subscription(this.topic, this.subscription, this.how(options)));
    const named = told?.dead_letter_topic;
    return typeof named === "string" && named !== "" ? named : `${this.topic}.${this.subscription}.dlq`;
  }

  private how(options: WaitOptions): WaitOptions {
    const { signal, timeoutMs } = options;
    return {
      ...this.patience,
      ...(signal === undefined ? {} : { signal }),
      ...(timeoutMs === undefined ? {} : { timeoutMs }),
    };
  }

  private async known<Info>(ask: () => Promise<Info>): Promise<Info | null> {
    try {
      return await ask();
    } catch (error) {
      if (error instanceof IsterError && ["unknown-topic", "unknown-subscription"].includes(error.code)) {
        return null;
      }
      throw error;
    }
  }

  private async waiting(topic: string, options: WaitOptions): Promise<Waiting> {
    const told = await this.known(() => this.client.subscription(topic, REDRIVE, this.how(options)));
    return {
      count: Number(told?.unacknowledged ?? 0),
      end: Number(told?.durable_end ?? 0),
      paused: Boolean(told?.paused ?? false),
      runs: (told?.pending ?? []) as Run[],
    };
  }

  /** How many wait, of every subscription that shares the dead-letter topic. */
  async count(options: WaitOptions = {}): Promise<number> {
    return (await this.waiting(await this.deadLetterTopic(options), options)).count;
  }

  private isMine(letter: Message): boolean {
    const { attributes } = letter; // one that was published by hand belongs to all
    return (
      (attributes[`${MARK}topic`] ?? this.topic) === this.topic &&
      (attributes[`${MARK}subscription`] ?? this.subscription) === this.subscription
    );
  }

  // ---- looking ------------------------------------------------------------------------------------------------------

  /**
   * The letters that wait, oldest first, at most `limit` (100); nothing is taken. `after` is the offset of the last one
   * of the list before. To see all, iterate: `for await (const letter of letters)`.
   */
  async list({
    limit = PAGE,
    after,
    ...options
  }: WaitOptions & { limit?: number; after?: number } = {}): Promise<DeadLetter[]> {
    const topic = await this.deadLetterTopic(options);
    const waiting = await this.waiting(topic, options);
    const found: DeadLetter[] = [];
    let reader: Reader | null = null;
    let from = after === undefined ? 0 : after + 1;
    try {
      for (let run = nextRun(waiting, from); found.length < limit && run !== null; run = nextRun(waiting, from)) {
        if (reader !== null && run[0] - from > GAP_READ_OVER) {
          await reader.close();
          reader = null;
        }
        reader ??= await this.client.reader(topic, { start: run[0], ...this.how(options) });
        const message: Message = await reader.receive(this.how(options));
        from = message.offset + 1;
        if (nextRun(waiting, message.offset)?.[0] === message.offset && this.isMine(message)) {
          found.push(letterOf(message));
        }
      }
    } finally {
      await reader?.close();
    }
    const told = waiting.runs.reduce((sum, [first, end]) => sum + end - first, 0);
    if (found.length === 0 && limit > 0 && waiting.runs.length > 0 && waiting.count > told) {
      throw invalid(
        `${waiting.count - told} letters of ${topic} cannot be listed: they lie behind the first ` +
          `${waiting.runs.length} runs of letters, which are all that a broker tells; redrive or purge some of these, ` +
          "then list again",
      );
    }
    return found;
  }

  /** All letters that wait, oldest first; few are in memory at a time. */
  async *[Symbol.asyncIterator](): AsyncGenerator<DeadLetter, void, undefined> {
    let page = await this.list();
    while (page.length > 0) {
      yield* page;
      page = await this.list({ after: (page[page.length - 1] as DeadLetter).offset });
    }
  }

  // ---- settling -----------------------------------------------------------------------------------------------------

  /**
   * Send letters back to the topic they were in, or to another, and return how many were sent. Payload, key and
   * attributes are unchanged; those about the failure are replaced by `ister.redriven_from`, `ister.redriven_offset` and
   * `ister.redriven_for`. At least once: what is interrupted may be sent again, and nothing is lost. A letter that the
   * topic refuses stays, and stops no others; its error is thrown in the end.
   */
  async redrive(options: RedriveOptions = {}): Promise<number> {
    const { offsets, to = this.topic, limit } = options;
    if (to === (await this.deadLetterTopic(options))) {
      throw invalid(`${to} is the dead-letter topic: letters would loop for ever`);
    }
    if ((await this.client.topic(to, this.how(options))).strategy === "non-reliable") {
      throw invalid(`topic ${to} is non-reliable: it stores nothing, so letters would be lost`);
    }
    const wanted = offsets === undefined ? null : new Set(offsets);
    const producer = await this.client.producer(to, this.how(options));
    try {
      return await this.settle(options, {
        most: Math.min(limit ?? Number.MAX_SAFE_INTEGER, wanted?.size ?? Number.MAX_SAFE_INTEGER),
        isWanted: (letter) => wanted?.has(letter.offset) ?? this.isMine(letter),
        send: (letter) => producer.send(letter.payload, { key: letter.key, attributes: this.redriven(letter) }),
      });
    } finally {
      await producer.close();
    }
  }

  /** Delete letters, at most `limit`, and return how many. Messages that become dead letters meanwhile stay. */
  purge({ limit, ...options }: WaitOptions & { limit?: number } = {}): Promise<number> {
    const most = limit ?? Number.MAX_SAFE_INTEGER;
    return this.settle(options, { most, isWanted: (letter) => this.isMine(letter), send: null });
  }

  private redriven(letter: Message): Record<string, string> {
    return {
      ...withoutAdded(letter.attributes),
      [`${MARK}redriven_from`]: letter.topic,
      [`${MARK}redriven_offset`]: String(letter.offset),
      [`${MARK}redriven_for`]: this.subscription,
    };
  }

  private async settle(options: WaitOptions, plan: Plan): Promise<number> {
    const topic = await this.deadLetterTopic(options);
    const waiting = await this.waiting(topic, options);
    if (waiting.runs.length === 0 || plan.most < 1) {
      return 0;
    }
    const how = { type: "exclusive", start: "earliest", creditMessages: TOGETHER, ...this.how(options) } as const;
    const consumer = await this.client.consumer(topic, REDRIVE, how);
    const pass = new Pass();
    try {
      while (pass.done < plan.most || pass.gone.size > 0) {
        const most = Math.max(1, Math.min(TOGETHER, plan.most - pass.done));
        const letters = await someOf(consumer, most, options);
        if (letters === null) {
          const left = await this.waiting(topic, options);
          if ((nextRun(left, 0)?.[0] ?? waiting.end) >= waiting.end || left.count <= pass.passed) {
            break;
          }
          if (left.paused) {
            throw new BrokerError("paused", "retry", `subscription ${REDRIVE} of ${topic} is paused`);
          }
          continue;
        }
        await this.settleSome(
          letters.filter((letter) => letter.offset < waiting.end && this.isDue(letter, plan, pass)),
          consumer,
          plan,
          pass,
          options,
        );
        if (letters.some((letter) => letter.offset >= waiting.end)) {
          break; // it failed meanwhile
        }
      }
    } finally {
      await consumer.close();
    }
    if (pass.refused !== null) {
      throw pass.refused;
    }
    return pass.done;
  }

  /** Whether a letter that came is to be settled now; those that come again after a lost session were looked at. */
  private isDue(letter: Message, plan: Plan, pass: Pass): boolean {
    if (letter.offset < pass.reached) {
      return pass.gone.has(letter.offset);
    }
    pass.reached = letter.offset + 1;
    const isDue = plan.isWanted(letter);
    pass.passed += isDue ? 0 : 1;
    return isDue;
  }

  private async settleSome(
    letters: Message[],
    consumer: Consumer,
    plan: Plan,
    pass: Pass,
    options: WaitOptions,
  ): Promise<void> {
    const sent = letters.map((letter) =>
      plan.send === null || pass.gone.has(letter.offset) ? null : plan.send(letter),
    );
    const settled: Message[] = [];
    for (const [i, letter] of letters.entries()) {
      try {
        await sent[i]?.wait(this.how(options));
      } catch (error) {
        if (!(error instanceof IsterError && error.action === "fix")) {
          throw error;
        }
        pass.passed++;
        pass.refused ??= error;
        continue;
      }
      pass.done += pass.gone.has(letter.offset) ? 0 : 1;
      pass.gone.add(letter.offset);
      settled.push(letter);
    }
    if (settled.length === 0) {
      return;
    }
    try {
      consumer.ack(settled);
      await consumer.flush(this.how(options));
    } catch (error) {
      if (error instanceof IsterError && error.code === "connection-lost") {
        return; // they come again, and are acknowledged then
      }
      throw error;
    }
    pass.gone.clear();
  }
}

/** Messages that came together; null where none came for a while. */
async function someOf(consumer: Consumer, most: number, { signal }: WaitOptions): Promise<Message[] | null> {
  try {
    return await consumer.receiveBatch(most, { timeoutMs: SILENCE_MS, ...(signal === undefined ? {} : { signal }) });
  } catch (error) {
    if (error instanceof IsterError && error.code === "timeout") {
      return null;
    }
    throw error;
  }
}

/** The first run of letters that ends behind an offset, from there on. */
function nextRun({ runs }: Waiting, from: number): Run | null {
  const run = runs.find(([, end]) => end > from);
  return run === undefined ? null : [Math.max(from, run[0]), run[1]];
}

function withoutAdded(attributes: Record<string, string>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(attributes).filter(([name]) => !(name.startsWith(MARK) && ADDED.includes(name.slice(MARK.length)))),
  );
}

function letterOf(message: Message): DeadLetter {
  const { attributes, offset, payload, key } = message;
  const told = (name: string) => attributes[MARK + name] ?? "";
  const number = (name: string) => (/^[0-9]{1,15}$/.test(told(name)) ? Number(told(name)) : null);
  const date = (name: string) => (number(name) === null ? null : new Date(number(name) as number));
  return {
    offset,
    payload,
    key,
    attributes: withoutAdded(attributes),
    topic: told("topic"),
    subscription: told("subscription"),
    originOffset: number("offset"),
    producer: told("producer"),
    timestamp: date("timestamp"),
    attempts: number("attempts") ?? 0,
    reason: told("reason"),
    deadLetteredAt: date("dead_lettered_at"),
  };
}

// What a program holds of a producer.

import { bytesOf, type Content, contentOf, Gathering, type Outgoing, type Payload, sizeOf } from "./batch.js";
import { ClosedError, type IsterError, invalid, UsageError } from "./errors.js";
import type { Network } from "./network.js";
import { Place, type Publication } from "./publication.js";
import { Bell, until, type WaitOptions } from "./waiting.js";

/** Where messages are. */
export interface Published {
  topic: string;
  /** The first message's; null for a duplicate so old that the broker has forgotten where it is. */
  offset: number | null;
  count: number;
  /** Nothing new was stored: the broker had it already. */
  duplicate: boolean;
}

/**
 * The promise of an answer for what was sent with one call: `await` it, or leave it, and ask `producer.flush()`. Nothing
 * is made for a receipt that nobody waits for, and one that is refused unseen is no unhandled rejection: the next
 * `flush` or `close` tells of it.
 */
export class Receipt extends Place implements PromiseLike<Published> {
  /** @internal */
  constructor(
    readonly topic: string,
    count: number,
  ) {
    super(count);
  }

  /** Whether the broker has answered. */
  get settled(): boolean {
    return this.shipment?.over === true;
  }

  // biome-ignore lint/suspicious/noThenProperty: a receipt is there to be awaited
  then<Ok = Published, Bad = never>(
    onFulfilled?: ((value: Published) => Ok | PromiseLike<Ok>) | null,
    onRejected?: ((reason: unknown) => Bad | PromiseLike<Bad>) | null,
  ): Promise<Ok | Bad> {
    return this.wait().then(onFulfilled, onRejected);
  }

  /** Wait until the messages are stored as the topic promises; rejects with why they were refused. */
  wait(options: WaitOptions = {}): Promise<Published> {
    if (options.signal === undefined && options.timeoutMs === undefined) {
      return new Promise((resolve, reject) => {
        this.onOver(() => {
          try {
            resolve(this.look() as Published);
          } catch (error) {
            reject(error);
          }
        });
      });
    }
    const bell = new Bell();
    this.onOver(() => bell.ring());
    return until(
      bell,
      () => this.look(),
      options,
      () => `no receipt from topic ${this.topic}`,
    );
  }

  private look(): Published | undefined {
    const { shipment } = this;
    if (shipment === null || !shipment.over) {
      return undefined;
    }
    if (shipment.error !== null) {
      shipment.observed = true;
      throw shipment.error;
    }
    const { first } = shipment;
    const offset = first === null ? null : first + this.index;
    return { topic: this.topic, offset, count: this.count, duplicate: first === null };
  }
}

export interface SendOptions extends Omit<Outgoing, "payload"> {
  /**
   * The message's number, for a producer with a name: one that was stored before is not stored again. Without it
   * numbers follow each other; they may be left out, at the price of a round trip.
   */
  sequence?: number | null;
}

/** @internal */
export const LARGEST_COLUMNS = 3;
const BESIDE_LEAST = 64;
const BESIDE_MOST = 65_536;
const READY = Promise.resolve();

/** Sends messages to one topic. */
export class Producer implements AsyncDisposable {
  private batchBytes = 0; // of the payloads of the last batch: the next one is likely to be like it

  /** @internal */
  constructor(
    private readonly network: Network,
    private readonly publication: Publication,
    private readonly bell: Bell,
    private readonly patience: WaitOptions,
  ) {}

  get topic(): string {
    return this.publication.topic;
  }

  /** The number of the next message; at first, of a producer with a name, the one to go on with. */
  get nextSequence(): number {
    return this.publication.nextSequence;
  }

  /** Whether `send` has room now; where it has none, `await producer.ready()`. */
  get hasRoom(): boolean {
    return this.publication.hasRoom;
  }

  private check(): void {
    const { error, phase } = this.publication;
    if (error !== null) {
      throw error;
    }
    if (phase === "closing" || phase === "closed") {
      throw new ClosedError(`the producer for topic ${this.topic}`);
    }
  }

  private checkSize(payloadBytes: number): void {
    const most = this.publication.limits?.messageBytesMax ?? Number.POSITIVE_INFINITY;
    if (payloadBytes > most) {
      const text = `message of ${payloadBytes} bytes is over message_bytes_max (${most}) of topic ${this.topic}`;
      throw new UsageError("message-too-large", text);
    }
  }

  private checkBatch(count: number, bytes: number, beside: number): void {
    const most = this.publication.limits?.batchBytesMax ?? Number.POSITIVE_INFINITY;
    // what lies beside the payload of a message that is alone is not counted up to a sixteenth
    const allowed = count === 1 ? Math.min(Math.max(most / 16, BESIDE_LEAST), BESIDE_MOST) : 0;
    if (bytes - (count === 1 && beside <= allowed ? beside : 0) > most) {
      const text = `batch of ${bytes} bytes is over batch_bytes_max (${most}) of topic ${this.topic}`;
      throw new UsageError("batch-too-large", text);
    }
  }

  private checkTime(deliverAt: number): void {
    if (deliverAt > 0 && this.publication.strategy === "non-reliable") {
      throw invalid(`topic ${this.topic} is non-reliable: it can delay no message`);
    }
  }

  /**
   * Send a message. Its payload is copied, and what is sent in one turn of the program goes as one batch. The receipt
   * may be awaited. Throws where the message cannot be sent at all. Where the window is full the message waits here:
   * a program that sends faster than the broker stores should `await producer.ready()` before.
   */
  send(payload: Payload, options?: SendOptions): Receipt {
    this.check();
    let content: Content;
    let sequence: number | null = null;
    if (options === undefined) {
      if (typeof payload !== "string" && !(payload instanceof Uint8Array)) {
        throw invalid("a payload is a Buffer, a Uint8Array or a string");
      }
      content = { payload, payloadBytes: sizeOf(payload), key: null, attributes: null, deliverAt: 0 };
    } else {
      content = contentOf({ ...options, payload });
      sequence = options.sequence ?? null;
      if (sequence !== null && (!Number.isSafeInteger(sequence) || sequence < 0)) {
        throw invalid(`sequence is ${sequence}: numbers of messages are whole, and not below 0`);
      }
      this.checkTime(content.deliverAt);
    }
    this.checkSize(content.payloadBytes);
    const beside = (content.key?.length ?? 0) + (content.attributes?.length ?? 0) + 4 * LARGEST_COLUMNS + 8;
    this.checkBatch(1, content.payloadBytes + beside, beside);
    if (!this.publication.hasRoom && typeof payload !== "string") {
      content.payload = Buffer.from(payload); // it may have to wait: the program may use its buffer again
    }
    const receipt = new Receipt(this.topic, 1);
    this.publication.take(receipt, content, sequence, () => this.network.now());
    return receipt;
  }

  /** Send many messages as one batch: one receipt, and offsets that follow each other. */
  sendBatch(messages: Iterable<Outgoing | Payload>): Receipt {
    this.check();
    const gathering = new Gathering(this.batchBytes);
    let payloads = 0;
    for (const each of messages) {
      if (typeof each === "string" || each instanceof Uint8Array) {
        const bytes = sizeOf(each);
        this.checkSize(bytes);
        payloads += bytes;
        if (gathering.plain) {
          gathering.addPayload(each, bytes); // what most batches are made of
        } else {
          gathering.add(contentOf({ payload: each }));
        }
        continue;
      }
      const content = contentOf(each);
      this.checkTime(content.deliverAt);
      this.checkSize(content.payloadBytes);
      payloads += content.payloadBytes;
      gathering.add(content);
    }
    this.batchBytes = payloads;
    if (gathering.count === 0) {
      throw invalid("a batch holds at least one message");
    }
    const body = gathering.bodyWithLengths();
    const bytes = bytesOf(body);
    this.checkBatch(gathering.count, bytes, bytes - payloads);
    const receipt = new Receipt(this.topic, gathering.count);
    this.publication.takeBatch(receipt, gathering.columns, body);
    return receipt;
  }

  /** Wait until there is room for a message: the pace of the broker. */
  ready(options: WaitOptions = {}): Promise<void> {
    if (this.publication.hasRoom && options.signal?.aborted !== true) {
      return READY;
    }
    const found = until(
      this.bell,
      () => {
        this.check();
        return this.publication.hasRoom ? true : undefined;
      },
      options,
      () => `the window of the producer for topic ${this.topic} is full`,
    );
    return found.then(() => {});
  }

  /** Wait until everything sent so far is answered. Rejects with the error of a refused batch that nobody has seen. */
  async flush(options: WaitOptions = {}): Promise<void> {
    await until(
      this.bell,
      () => {
        const { publication } = this;
        publication.seal();
        if (!publication.answered) {
          return undefined;
        }
        this.tellRefused();
        if (publication.error !== null && !(publication.error instanceof ClosedError)) {
          throw publication.error;
        }
        return true;
      },
      { ...this.patience, ...options },
      () => this.why(`no receipts from topic ${this.topic}`),
    );
  }

  private tellRefused(): void {
    const { refused } = this.publication;
    this.publication.refused = null;
    if (refused?.error !== undefined && refused.error !== null && !refused.observed) {
      refused.observed = true;
      throw refused.error;
    }
  }

  private why(text: string): string {
    const { trouble } = this.publication;
    return trouble === null ? text : `${text}: ${trouble.message}`;
  }

  /** Wait for every receipt, and tell the broker that this producer is done. Closing again does nothing. */
  async close(options: WaitOptions = {}): Promise<void> {
    const { publication } = this;
    if (publication.phase === "closed") {
      return;
    }
    let refused: unknown = null;
    try {
      await this.flush(options);
    } catch (error) {
      refused = error;
    }
    try {
      publication.close();
      await until(
        this.bell,
        () => (publication.phase === "closed" ? true : undefined),
        { ...this.patience, ...options },
        () => this.why(`the broker did not confirm the close of the producer for topic ${this.topic}`),
      );
    } catch (error) {
      refused ??= error;
    }
    this.abandon(new ClosedError(`the producer for topic ${this.topic}`));
    if (refused !== null) {
      throw refused;
    }
  }

  /** @internal Let go of it without waiting for anything. */
  abandon(error: IsterError): void {
    this.publication.close();
    this.publication.fail(error);
    this.network.release(this.publication);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

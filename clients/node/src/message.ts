// What was delivered: one DELIVER, cut, and the messages that programs see of it.

import { inspect } from "node:util";
import type { Payload } from "./batch.js";
import { Contents } from "./batch.js";
import { invalid, ProtocolError } from "./errors.js";
import type { WaitOptions } from "./waiting.js";
import { asExact, decodeAttributes, exact, type Header, K, uint } from "./wire.js";

/** What a delivery belongs to. */
export interface Owner {
  readonly topic: string;
  reply: ((to: Message, payload: Payload, options: ReplyOptions) => Promise<void>) | null;
}

export interface ReplyOptions extends WaitOptions {
  key?: Payload | null;
  attributes?: Readonly<Record<string, string>> | null;
}

/** One DELIVER. Throws `ProtocolError` where it does not hold what it says. */
export class Delivery {
  readonly count: number;
  readonly bytes: number;
  readonly attempt: number;
  readonly singly: boolean;
  readonly contents: Contents;
  private readonly first: number;
  private readonly offsets: Float64Array | null;
  private readonly timestamps: number[];

  constructor(
    readonly owner: Owner,
    /** Counts how often the broker forgot what it had delivered: words about older deliveries are not sent. */
    readonly lineage: number,
    header: Header,
    body: Uint8Array[],
    readonly came: number,
  ) {
    this.first = exact(header, K.OFFSET);
    this.count = uint(header, K.COUNT);
    asExact(this.first + this.count, K.OFFSET);
    this.attempt = uint(header, K.ATTEMPT, 1);
    this.singly = header.get(K.SINGLY) === true;
    this.contents = Contents.cut(uint(header, K.COLUMNS), this.count, body);
    this.bytes = body.reduce((sum, frame) => sum + frame.length, 0);
    const ranges = header.get(K.RANGES) as number[] | undefined;
    this.offsets = ranges === undefined ? null : this.spread(ranges.map((each) => asExact(each, K.RANGES)));
    this.timestamps = (header.get(K.TIMESTAMPS) as number[]).map(Number);
    let timed = 0;
    for (let i = 0; i < this.timestamps.length; i += 2) {
      timed += this.timestamps[i] as number;
    }
    if (timed !== this.count) {
      throw new ProtocolError(`a delivery has times for ${timed} of its ${this.count} messages`);
    }
  }

  private spread(ranges: number[]): Float64Array {
    const offsets = new Float64Array(this.count);
    let at = 0;
    let last = -1;
    for (let i = 0; i < ranges.length; i += 2) {
      const [first, end] = [ranges[i] as number, ranges[i + 1] as number];
      if (first <= last || end <= first || at + end - first > this.count) {
        throw new ProtocolError(`the ranges of a delivery do not hold the ${this.count} messages that it says`);
      }
      for (last = first; last < end; last++) {
        offsets[at++] = last;
      }
    }
    if (at !== this.count || offsets[0] !== this.first) {
      throw new ProtocolError(`the ranges of a delivery do not hold the ${this.count} messages that it says`);
    }
    return offsets;
  }

  offset(index: number): number {
    return this.offsets === null ? this.first + index : (this.offsets[index] as number);
  }

  timestamp(index: number): number {
    let left = index;
    for (let i = 0; i < this.timestamps.length; i += 2) {
      left -= this.timestamps[i] as number;
      if (left < 0) {
        return this.timestamps[i + 1] as number;
      }
    }
    return 0;
  }
}

/**
 * One message as it was delivered. Its members are views of what came together with it: keep a copy
 * (`Buffer.from(message.payload)`) of a small payload that is to be kept for long.
 */
export class Message {
  /** @internal */
  readonly delivery: Delivery;
  /** @internal */
  readonly index: number;
  /** Its position in the topic. */
  readonly offset: number;

  /** @internal */
  constructor(delivery: Delivery, index: number) {
    this.delivery = delivery;
    this.index = index;
    this.offset = delivery.offset(index);
  }

  get topic(): string {
    return this.delivery.owner.topic;
  }

  get payload(): Buffer {
    return this.delivery.contents.payload(this.index);
  }

  /** The payload as UTF-8. */
  text(): string {
    return this.payload.toString("utf8");
  }

  /** The payload as JSON; throws `SyntaxError` where it is none. */
  json<Value = unknown>(): Value {
    return JSON.parse(this.text()) as Value;
  }

  /** Null for none. */
  get key(): Buffer | null {
    return this.delivery.contents.key(this.index);
  }

  /** Throws `ProtocolError` where whoever sent them sent no attributes: the broker does not look into them. */
  get attributes(): Record<string, string> {
    const bytes = this.delivery.contents.attributeBytes(this.index);
    return bytes === null ? {} : decodeAttributes(bytes);
  }

  /** When the broker took it. */
  get timestamp(): Date {
    return new Date(this.delivery.timestamp(this.index));
  }

  /** The time it was not to be delivered before; null for none. */
  get deliverAt(): Date | null {
    const time = this.delivery.contents.deliverAt(this.index);
    return time === 0 ? null : new Date(time);
  }

  /** 1 for the first delivery. */
  get attempt(): number {
    return this.delivery.attempt;
  }

  /** Answer a message that came from `client.request`. Whoever asked may be gone: then nobody hears it. */
  async reply(payload: Payload, options: ReplyOptions = {}): Promise<void> {
    const { reply } = this.delivery.owner;
    if (reply === null) {
      throw invalid("this message can have no reply");
    }
    await reply(this, payload, options);
  }

  [inspect.custom](): unknown {
    const { topic, offset, payload, key, timestamp, attempt } = this;
    return { topic, offset, payload, key, timestamp, attempt };
  }
}

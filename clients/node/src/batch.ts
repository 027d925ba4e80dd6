// Bodies of PUBLISH and DELIVER: section 5 of PROTOCOL.md. Pure.
//
// Invariants
// - what is gathered is copied: a program may use its buffers again at once, though the socket sends by reference
// - a body that is cut has lengths that add up; its attributes are decoded when somebody looks at them

import { invalid, ProtocolError } from "./errors.js";
import { encodeAttributes } from "./wire.js";

export const KEYS = 1;
export const ATTRIBUTES = 2;
export const TIMES = 4;
const LENGTH_BYTES = 4;
const TIME_BYTES = 8;
const FIRST_CAPACITY = 256;

/** A message's bytes, or text that is sent as UTF-8. */
export type Payload = Uint8Array | string;

/** A message to be sent. Only `payload` is needed. */
export interface Outgoing {
  payload: Payload;
  key?: Payload | null;
  attributes?: Readonly<Record<string, string>> | null;
  /** Not delivered before this time: a date, or unix milliseconds. */
  deliverAt?: Date | number | null;
}

/** A message in the form in which it is gathered. */
export interface Content {
  payload: Payload;
  payloadBytes: number;
  key: Uint8Array | null;
  attributes: Uint8Array | null;
  deliverAt: number;
}

export function sizeOf(payload: Payload): number {
  return typeof payload === "string" ? Buffer.byteLength(payload) : payload.length;
}

/** Check a message and bring it into the form in which it is gathered. */
export function contentOf(message: Outgoing): Content {
  const { payload, key, attributes, deliverAt } = message;
  if (typeof payload !== "string" && !(payload instanceof Uint8Array)) {
    throw invalid("a payload is a Buffer, a Uint8Array or a string");
  }
  let keyBytes: Uint8Array | null = null;
  if (key !== undefined && key !== null && key.length > 0) {
    if (typeof key !== "string" && !(key instanceof Uint8Array)) {
      throw invalid("a key is a Buffer, a Uint8Array or a string");
    }
    keyBytes = Buffer.from(key as Uint8Array);
  }
  let attributeBytes: Uint8Array | null = null;
  if (attributes !== undefined && attributes !== null && Object.keys(attributes).length > 0) {
    attributeBytes = encodeAttributes(attributes);
  }
  let time = 0;
  if (deliverAt !== undefined && deliverAt !== null) {
    time = Math.round(Number(deliverAt));
    if (!Number.isSafeInteger(time) || time < 0) {
      throw invalid(`deliverAt is ${String(deliverAt)}: a date, or unix milliseconds`);
    }
  }
  return { payload, payloadBytes: sizeOf(payload), key: keyBytes, attributes: attributeBytes, deliverAt: time };
}

/** Messages on their way into one batch. */
export class Gathering {
  count = 0;
  /** The body frames' bytes, were it sealed now. */
  bytes = 0;
  private payloads: Buffer;
  private used = 0;
  private lengths: number[] = [];
  private keys: (Uint8Array | null)[] | null = null;
  private attributes: (Uint8Array | null)[] | null = null;
  private times: number[] | null = null;

  /** `capacity` is a guess at how many bytes of payloads will come. */
  constructor(capacity = FIRST_CAPACITY) {
    this.payloads = Buffer.allocUnsafeSlow(Math.max(FIRST_CAPACITY, capacity));
  }

  get payloadBytes(): number {
    return this.used;
  }

  /** What a message would add. */
  cost(content: Content): number {
    let bytes = content.payloadBytes + LENGTH_BYTES;
    if (content.key !== null || this.keys !== null) {
      bytes += LENGTH_BYTES + (content.key?.length ?? 0) + (this.keys === null ? LENGTH_BYTES * this.count : 0);
    }
    if (content.attributes !== null || this.attributes !== null) {
      bytes += LENGTH_BYTES + (content.attributes?.length ?? 0);
      bytes += this.attributes === null ? LENGTH_BYTES * this.count : 0;
    }
    if (content.deliverAt > 0 || this.times !== null) {
      bytes += TIME_BYTES + (this.times === null ? TIME_BYTES * this.count : 0);
    }
    return bytes;
  }

  private room(bytes: number): void {
    const needed = this.used + bytes;
    if (needed > this.payloads.length) {
      const grown = Buffer.allocUnsafeSlow(Math.max(needed, 2 * this.payloads.length));
      this.payloads.copy(grown, 0, 0, this.used);
      this.payloads = grown;
    }
  }

  /** Whether a message of a payload alone adds nothing but that. */
  get plain(): boolean {
    return this.keys === null && this.attributes === null && this.times === null;
  }

  /** Add a message that has a payload alone, to a batch of such. */
  addPayload(payload: Payload, bytes: number): void {
    this.room(bytes);
    if (typeof payload === "string") {
      this.payloads.write(payload, this.used, bytes, "utf8");
    } else {
      this.payloads.set(payload, this.used);
    }
    this.used += bytes;
    this.lengths.push(bytes);
    this.count++;
    this.bytes += bytes + LENGTH_BYTES;
  }

  add(content: Content): void {
    const bytes = this.bytes + this.cost(content);
    if (content.key !== null || this.keys !== null) {
      this.keys ??= new Array(this.count).fill(null);
      this.keys.push(content.key);
    }
    if (content.attributes !== null || this.attributes !== null) {
      this.attributes ??= new Array(this.count).fill(null);
      this.attributes.push(content.attributes);
    }
    if (content.deliverAt > 0 || this.times !== null) {
      this.times ??= new Array(this.count).fill(0);
      this.times.push(content.deliverAt);
    }
    this.addPayload(content.payload, content.payloadBytes);
    this.bytes = bytes;
  }

  get columns(): number {
    return (
      (this.keys === null ? 0 : KEYS) | (this.attributes === null ? 0 : ATTRIBUTES) | (this.times === null ? 0 : TIMES)
    );
  }

  /** The body frames. A message alone and without columns may leave its length out. */
  body(): Uint8Array[] {
    const payloads = this.payloads.subarray(0, this.used);
    if (this.count === 1 && this.columns === 0) {
      return [payloads];
    }
    return this.bodyWithLengths();
  }

  bodyWithLengths(): Uint8Array[] {
    const table = Buffer.allocUnsafeSlow(LENGTH_BYTES * this.count);
    for (let i = 0; i < this.count; i++) {
      table.writeUInt32LE(this.lengths[i] as number, LENGTH_BYTES * i);
    }
    const body: Uint8Array[] = [table, this.payloads.subarray(0, this.used)];
    if (this.keys !== null) {
      body.push(packColumn(this.keys));
    }
    if (this.attributes !== null) {
      body.push(packColumn(this.attributes));
    }
    if (this.times !== null) {
      const times = Buffer.allocUnsafeSlow(TIME_BYTES * this.count);
      this.times.forEach((time, i) => {
        times.writeBigUInt64LE(BigInt(time), TIME_BYTES * i);
      });
      body.push(times);
    }
    return body;
  }
}

function packColumn(items: (Uint8Array | null)[]): Uint8Array {
  let bytes = LENGTH_BYTES * items.length;
  for (const item of items) {
    bytes += item?.length ?? 0;
  }
  const column = Buffer.allocUnsafeSlow(bytes);
  let at = LENGTH_BYTES * items.length;
  items.forEach((item, i) => {
    column.writeUInt32LE(item?.length ?? 0, LENGTH_BYTES * i);
    if (item !== null) {
      column.set(item, at);
      at += item.length;
    }
  });
  return column;
}

export function bytesOf(body: readonly Uint8Array[]): number {
  let bytes = 0;
  for (const frame of body) {
    bytes += frame.length;
  }
  return bytes;
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Items that lie end to end, and where each ends. */
class Column {
  private constructor(
    private readonly items: Buffer,
    private readonly ends: Float64Array,
  ) {}

  static cut(table: Buffer, items: Buffer, count: number, what: string): Column {
    if (table.length !== LENGTH_BYTES * count) {
      throw new ProtocolError(`${what} has no length for each of its ${count} messages`, "lengths-mismatch");
    }
    const ends = new Float64Array(count);
    const view = new DataView(table.buffer, table.byteOffset, table.length);
    let end = 0;
    for (let i = 0; i < count; i++) {
      end += view.getUint32(LENGTH_BYTES * i, true);
      ends[i] = end;
    }
    if (end !== items.length) {
      throw new ProtocolError(`the lengths of ${what} come to ${end}, and not ${items.length}`, "lengths-mismatch");
    }
    return new Column(items, ends);
  }

  static cutOne(frame: Buffer, count: number, what: string): Column {
    const table = frame.subarray(0, LENGTH_BYTES * count);
    return Column.cut(table, frame.subarray(table.length), count, what);
  }

  item(index: number): Buffer {
    return this.items.subarray(index === 0 ? 0 : this.ends[index - 1], this.ends[index]);
  }
}

/** A body, cut: what a DELIVER holds. */
export class Contents {
  private constructor(
    readonly count: number,
    private readonly payloads: Column,
    private readonly keys: Column | null,
    private readonly attributes: Column | null,
    private readonly times: Buffer | null,
  ) {}

  static cut(columns: number, count: number, body: readonly Uint8Array[]): Contents {
    const frames = body.map(asBuffer);
    let expected = 2;
    for (const bit of [KEYS, ATTRIBUTES, TIMES]) {
      expected += (columns & bit) === 0 ? 0 : 1;
    }
    if (columns > 7 || count === 0 || frames.length !== expected) {
      throw new ProtocolError(`${count} messages with the columns ${columns} have ${frames.length} body frames`);
    }
    const payloads = Column.cut(frames[0] as Buffer, frames[1] as Buffer, count, "a batch");
    let at = 2;
    const keys = (columns & KEYS) === 0 ? null : Column.cutOne(frames[at++] as Buffer, count, "a column of keys");
    const attributes =
      (columns & ATTRIBUTES) === 0 ? null : Column.cutOne(frames[at++] as Buffer, count, "a column of attributes");
    const times = (columns & TIMES) === 0 ? null : (frames[at] as Buffer);
    if (times !== null && times.length !== TIME_BYTES * count) {
      throw new ProtocolError(`a column of times has ${times.length} bytes for ${count} messages`, "lengths-mismatch");
    }
    return new Contents(count, payloads, keys, attributes, times);
  }

  payload(index: number): Buffer {
    return this.payloads.item(index);
  }

  /** Null for none, which an empty one is as well. */
  key(index: number): Buffer | null {
    const key = this.keys?.item(index);
    return key === undefined || key.length === 0 ? null : key;
  }

  attributeBytes(index: number): Buffer | null {
    const bytes = this.attributes?.item(index);
    return bytes === undefined || bytes.length === 0 ? null : bytes;
  }

  /** Unix ms; 0 for at once. */
  deliverAt(index: number): number {
    return this.times === null ? 0 : Number(this.times.readBigUInt64LE(TIME_BYTES * index));
  }
}

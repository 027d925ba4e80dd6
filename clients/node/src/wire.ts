// Headers, results and attributes as bytes: sections 2 to 4 of PROTOCOL.md. Pure.
//
// Invariants
// - what is decoded is what PROTOCOL.md allows, by kind too: an integer is never a float that happens to be whole
// - integers up to 2^53-1 are numbers, those above are bigints; what is sent above 2^53-1 is given as a bigint
// - text is well-formed in both directions

import { isUtf8 } from "node:buffer";
import { decode as cborDecode, encode as cborEncode, Token, Tokenizer, Type } from "cborg";
import { invalid, ProtocolError } from "./errors.js";

export const T = {
  HELLO: 1,
  BYE: 2,
  PING: 3,
  OPEN_PRODUCER: 4,
  PUBLISH: 5,
  CLOSE: 6,
  OPEN_CONSUMER: 7,
  CREDIT: 8,
  ACK: 9,
  NACK: 10,
  ACK_UNTIL: 11,
  REQUEST: 12,
  EXTEND: 13,
  WELCOME: 33,
  OPENED: 34,
  RECEIPT: 35,
  DELIVER: 36,
  ERROR: 37,
  MOVED: 38,
  RESULT: 39,
  DONE: 40,
  PONG: 41,
  EVENT: 42,
} as const;

export const K = {
  TYPE: 0,
  REF: 1,
  HANDLE: 2,
  TOPIC: 3,
  SUBSCRIPTION: 4,
  SEQUENCE: 5,
  OFFSET: 6,
  COUNT: 7,
  COLUMNS: 8,
  TIMESTAMPS: 9,
  ATTEMPT: 10,
  MESSAGES: 11,
  BYTES: 12,
  RANGES: 13,
  DELAY: 14,
  REASON: 15,
  CODE: 16,
  TEXT: 17,
  ACTION: 18,
  ENDPOINT: 19,
  SESSION: 20,
  BOOT: 21,
  VERSION: 22,
  LIMITS: 23,
  ARGUMENTS: 24,
  PRODUCER: 25,
  START: 26,
  RECEIPTS: 27,
  SUBSCRIPTION_TYPE: 28,
  PRIORITY: 29,
  OPERATION: 30,
  CLIENT: 31,
  RESUMED: 32,
  HEARTBEAT: 33,
  CLOSED: 34,
  STRATEGY: 35,
  SPARSE: 36,
  FORCE: 37,
  TAKEN: 38,
  SINGLY: 39,
  INSTANCE: 40,
  SOUGHT: 41,
} as const;

export const HEADER_BYTES_MAX = 8192;
export const RANGES_MAX = 400;
export const REASON_CHARACTERS_MAX = 200;
/** The offset of a duplicate that was stored so long ago that the broker has forgotten where. */
export const OFFSET_UNKNOWN = 2n ** 64n - 1n;
const HEADER_LEVELS_MAX = 4;
const RESULT_BYTES_MAX = 1 << 20;
const RESULT_LEVELS_MAX = 8;

/** A fraction in CBOR: the decoder would make a plain number of it, and 1.0 an integer. */
export class Float {
  constructor(readonly value: number) {}
}

export type Uint = number | bigint;
export type Plain = Uint | string | boolean | null | Uint8Array | Float | Plain[] | PlainMap;
export type PlainMap = Map<number | bigint | string, Plain>;
export type Header = Map<number, Plain>;

const TEXT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The library's tokens, without what the library lets pass: fractions, wrong UTF-8, `undefined`. */
class StrictTokens extends Tokenizer {
  override next(): Token {
    const token = super.next();
    if (Type.equals(token.type, Type.float)) {
      return new Token(Type.float, new Float(token.value), token.encodedLength);
    }
    if (Type.equals(token.type, Type.undefined)) {
      throw new Error("undefined is of no kind");
    }
    if (Type.equals(token.type, Type.string) && token.byteValue !== undefined && token.byteValue.length > 0) {
      const bytes = token.byteValue;
      if (!isUtf8(bytes)) {
        throw new Error("text that is not UTF-8");
      }
      if (bytes[0] === 0xef) {
        // the library's decoder drops a byte order mark
        return new Token(Type.string, TEXT.decode(bytes), token.encodedLength);
      }
    }
    return token;
  }
}

const DECODING = {
  allowIndefinite: false,
  allowBigInt: true,
  rejectDuplicateMapKeys: true,
  retainStringBytes: true,
  // `strict` would refuse integers in more bytes than they need, which PROTOCOL.md allows
  strict: false,
  useMaps: true,
};

function decodeMap(bytes: Uint8Array, what: string, levels: number): PlainMap {
  let value: unknown;
  try {
    value = cborDecode(bytes, { ...DECODING, tokenizer: new StrictTokens(bytes, DECODING) });
    if (!(value instanceof Map)) {
      throw new Error("it is no map");
    }
    checkPlain(value as PlainMap, levels);
  } catch (error) {
    // a RangeError is what thousands of levels come to
    const why = error instanceof Error ? error.message : String(error);
    throw new ProtocolError(`${what} is not what PROTOCOL.md allows: ${why}`, "malformed", { cause: error });
  }
  return value as PlainMap;
}

function checkPlain(value: Plain, levels: number): void {
  if (value instanceof Map) {
    if (levels === 0) {
      throw new Error("it is nested too deeply");
    }
    for (const [key, each] of value) {
      if (typeof key !== "number" && typeof key !== "bigint" && typeof key !== "string") {
        throw new Error("a key of a map is neither a number nor text");
      }
      checkPlain(each, levels - 1);
    }
  } else if (Array.isArray(value)) {
    if (levels === 0) {
      throw new Error("it is nested too deeply");
    }
    for (const each of value) {
      if (typeof each === "object") {
        checkPlain(each, levels - 1);
      }
    }
  }
}

// ---- what kind of value a key has ---------------------------------------------------------------------------------

type Kind = "uint" | "text" | "bytes" | "bool" | "uints" | "pairs" | "map" | "arguments" | "version" | "start";

const KINDS: readonly Kind[] = (() => {
  const kinds: Kind[] = new Array(K.SOUGHT + 1).fill("uint");
  const say = (kind: Kind, ...keys: number[]) => {
    for (const key of keys) {
      kinds[key] = kind;
    }
  };
  say("text", K.TOPIC, K.SUBSCRIPTION, K.REASON, K.CODE, K.TEXT, K.ACTION, K.ENDPOINT, K.SUBSCRIPTION_TYPE);
  say("text", K.OPERATION, K.CLIENT, K.STRATEGY, K.INSTANCE);
  say("pairs", K.TIMESTAMPS, K.RANGES, K.RECEIPTS);
  say("bool", K.RESUMED, K.CLOSED, K.SPARSE, K.FORCE, K.SINGLY);
  say("bytes", K.SESSION);
  say("map", K.LIMITS);
  say("arguments", K.ARGUMENTS);
  say("version", K.VERSION);
  say("start", K.START);
  return kinds;
})();

const REQUIRED = new Map<number, readonly number[]>([
  [T.HELLO, [K.VERSION]],
  [T.BYE, []],
  [T.PING, []],
  [T.OPEN_PRODUCER, [K.REF, K.HANDLE, K.TOPIC, K.PRODUCER]],
  [T.PUBLISH, [K.HANDLE, K.SEQUENCE]],
  [T.CLOSE, [K.REF, K.HANDLE]],
  [T.OPEN_CONSUMER, [K.REF, K.HANDLE, K.TOPIC, K.SUBSCRIPTION, K.SUBSCRIPTION_TYPE, K.MESSAGES, K.BYTES]],
  [T.CREDIT, [K.HANDLE, K.MESSAGES, K.BYTES]],
  [T.ACK, [K.HANDLE, K.RANGES]],
  [T.NACK, [K.HANDLE, K.RANGES]],
  [T.ACK_UNTIL, [K.HANDLE, K.OFFSET]],
  [T.REQUEST, [K.REF, K.OPERATION]],
  [T.EXTEND, [K.HANDLE, K.RANGES]],
  [T.WELCOME, [K.VERSION, K.SESSION, K.BOOT, K.LIMITS, K.HEARTBEAT]],
  [T.OPENED, [K.REF, K.HANDLE]],
  [T.RECEIPT, [K.HANDLE, K.RECEIPTS]],
  [T.DELIVER, [K.HANDLE, K.OFFSET, K.COUNT, K.TIMESTAMPS]],
  [T.ERROR, [K.CODE, K.TEXT, K.ACTION]],
  [T.MOVED, [K.REF, K.HANDLE, K.ENDPOINT]],
  [T.RESULT, [K.REF]],
  [T.DONE, [K.REF]],
  [T.PONG, []],
  [T.EVENT, [K.HANDLE, K.CODE]],
]);

function isUint(value: Plain): boolean {
  return (typeof value === "number" || typeof value === "bigint") && value >= 0;
}

function isOfKind(value: Plain, kind: Kind): boolean {
  switch (kind) {
    case "uint":
      return isUint(value);
    case "text":
      return typeof value === "string";
    case "bytes":
      return value instanceof Uint8Array && value.length === 16;
    case "bool":
      return typeof value === "boolean";
    case "uints":
      return Array.isArray(value) && value.every(isUint);
    case "pairs":
      return Array.isArray(value) && value.length % 2 === 0 && value.every(isUint);
    case "map":
      return value instanceof Map;
    case "arguments":
      return value instanceof Map && [...value.keys()].every((key) => typeof key === "string");
    case "version":
      return isUint(value) || isOfKind(value, "uints");
    case "start":
      return isUint(value) || typeof value === "string";
  }
}

/** Decode a header; throws `ProtocolError` where PROTOCOL.md says that it is none. */
export function decodeHeader(frame: Uint8Array): Header {
  if (frame.length === 0 || frame.length > HEADER_BYTES_MAX) {
    throw new ProtocolError(`a header has 1 to ${HEADER_BYTES_MAX} bytes, not ${frame.length}`);
  }
  const map = decodeMap(frame, "a header", HEADER_LEVELS_MAX);
  const type = map.get(K.TYPE);
  if (typeof type !== "number" || type < 0) {
    throw new ProtocolError("a header has no type");
  }
  const required = REQUIRED.get(type);
  if (required === undefined) {
    throw new ProtocolError(`there is no frame of type ${type}`, "unknown-operation");
  }
  for (const [key, value] of map) {
    if (typeof key === "string" || key < 0) {
      throw new ProtocolError("a key of a header is no unsigned integer");
    }
    if (key < KINDS.length && !isOfKind(value, KINDS[key as number] as Kind)) {
      throw new ProtocolError(`key ${key} of a frame of type ${type} holds a value of another kind`);
    }
  }
  for (const key of required) {
    if (!map.has(key)) {
      throw new ProtocolError(`a frame of type ${type} lacks key ${key}`);
    }
  }
  return map as Header;
}

/** The number a header holds; those above 2^53-1 only roughly. */
export function uint(header: Header, key: number, otherwise = 0): number {
  const value = header.get(key);
  return value === undefined ? otherwise : Number(value);
}

/** The number a header holds, for what is to be said again; throws `ProtocolError` above 2^53-1. */
export function exact(header: Header, key: number): number {
  return asExact(header.get(key) as Uint | undefined, key);
}

export function asExact(value: Uint | undefined, key: number): number {
  const number = Number(value ?? 0);
  if (!Number.isSafeInteger(number)) {
    throw new ProtocolError(`key ${key} holds ${value}: this client counts to 2^53-1`);
  }
  return number;
}

export function text(header: Header, key: number): string {
  return (header.get(key) as string | undefined) ?? "";
}

/** Decode the body of a RESULT. */
export function decodeResult(body: Uint8Array): PlainMap {
  if (body.length > RESULT_BYTES_MAX) {
    throw new ProtocolError(`a result has at most ${RESULT_BYTES_MAX} bytes, not ${body.length}`);
  }
  const map = decodeMap(body, "a result", RESULT_LEVELS_MAX);
  for (const key of map.keys()) {
    if (typeof key !== "string") {
      throw new ProtocolError("a key of a result is no text");
    }
  }
  return map;
}

/** What programs see of a result: objects, arrays, numbers (bigints above 2^53-1), text, booleans, null, bytes. */
export function toPlainObject(value: Plain): unknown {
  if (value instanceof Map) {
    // defined, and not assigned: a name may be "__proto__"
    return Object.fromEntries([...value].map(([key, each]) => [String(key), toPlainObject(each)]));
  }
  if (Array.isArray(value)) {
    return value.map(toPlainObject);
  }
  return value instanceof Float ? value.value : value;
}

/** Decode the attributes of one message. */
export function decodeAttributes(bytes: Uint8Array): Record<string, string> {
  const map = decodeMap(bytes, "a message's map of attributes", 1);
  const found: Record<string, string> = {};
  for (const [name, value] of map) {
    if (typeof name !== "string" || typeof value !== "string") {
      throw new ProtocolError("attributes are a map of text to text");
    }
    if (name === "__proto__") {
      Object.defineProperty(found, name, { value, configurable: true, enumerable: true, writable: true });
    } else {
      found[name] = value;
    }
  }
  return found;
}

// ---- encoding -----------------------------------------------------------------------------------------------------

/** What may be said to a broker: what the library would quietly make something else of is refused. */
export type Sendable = Uint | string | boolean | Uint8Array | Sendable[] | Map<number | string, Sendable>;

function checkSendable(value: unknown, what: string): void {
  switch (typeof value) {
    case "number":
      // the library makes a float of every number that is no safe integer
      if (!Number.isSafeInteger(value)) {
        throw invalid(`${what} is ${value}: numbers are whole, and bigints above 2^53-1`);
      }
      return;
    case "bigint":
      if (value >= 2n ** 64n || value < -(2n ** 64n)) {
        throw invalid(`${what} is ${value}: integers have 64 bits`);
      }
      return;
    case "string":
      // the library sends U+FFFD for half a surrogate pair
      if (!value.isWellFormed()) {
        throw invalid(`${what} is not well-formed Unicode: ${JSON.stringify(value)}`);
      }
      return;
    case "boolean":
      return;
    default:
  }
  if (value instanceof Uint8Array) {
    return;
  }
  if (Array.isArray(value)) {
    for (const each of value) {
      checkSendable(each, what);
    }
    return;
  }
  if (value instanceof Map) {
    for (const [key, each] of value) {
      checkSendable(key, what);
      checkSendable(each, `${what}.${key}`);
    }
    return;
  }
  throw invalid(`${what} is ${value === null ? "null" : typeof value}: leave out what has no value`);
}

/** Encode a header; throws `UsageError` for what cannot be said. */
export function encodeHeader(header: Map<number, Sendable>): Uint8Array {
  for (const [key, value] of header) {
    if (typeof value !== "number" || !Number.isSafeInteger(value)) {
      checkSendable(value, `key ${key} of a header`);
    }
  }
  const frame = cborEncode(header);
  if (frame.length > HEADER_BYTES_MAX) {
    throw invalid(`a header of ${frame.length} bytes is over ${HEADER_BYTES_MAX}: the arguments are too long`);
  }
  return frame;
}

/** Encode a header of whole numbers below 2^53 alone, given as key, value, key, value, ...: the frames there are most of. */
export function encodeNumbers(pairs: readonly number[]): Uint8Array {
  const frame = Buffer.allocUnsafe(1 + 6 * pairs.length);
  let at = 0;
  frame[at++] = 0xa0 | (pairs.length >> 1);
  for (const value of pairs) {
    if (value < 24) {
      frame[at++] = value;
    } else if (value < 0x100) {
      frame[at++] = 0x18;
      frame[at++] = value;
    } else if (value < 0x10000) {
      frame[at++] = 0x19;
      at = frame.writeUInt16BE(value, at);
    } else if (value < 0x100000000) {
      frame[at++] = 0x1a;
      at = frame.writeUInt32BE(value, at);
    } else {
      frame[at++] = 0x1b;
      at = frame.writeUInt32BE(Math.floor(value / 0x100000000), at);
      at = frame.writeUInt32BE(value >>> 0, at);
    }
  }
  return frame.subarray(0, at);
}

/** Encode the attributes of one message. */
export function encodeAttributes(attributes: Readonly<Record<string, string>>): Uint8Array {
  const map = new Map<string, string>();
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value !== "string") {
      throw invalid(`attribute ${JSON.stringify(name)} is no text`);
    }
    checkSendable(name, "the name of an attribute");
    checkSendable(value, `attribute ${JSON.stringify(name)}`);
    map.set(name, value);
  }
  return cborEncode(map);
}

/** Make of a program's object what a header's ARGUMENTS may hold; members that are undefined are left out. */
export function toArguments(given: Readonly<Record<string, unknown>>): Map<string, Sendable> {
  const made = new Map<string, Sendable>();
  for (const [name, value] of Object.entries(given)) {
    if (value !== undefined) {
      checkSendable(value, name);
      made.set(name, value as Sendable);
    }
  }
  return made;
}

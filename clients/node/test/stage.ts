// What the tests of the protocol are written with: a session without a socket, and the broker's part, said by hand.

import { readFileSync } from "node:fs";
import { encode } from "cborg";
import { type Frames, Session } from "../src/session.js";
import { decodeHeader, type Header, K, T } from "../src/wire.js";

/** A file of tests/vectors. */
export function vectors<Value>(name: string): Value {
  const folder = new URL("../../../../tests/vectors/", import.meta.url);
  return JSON.parse(readFileSync(new URL(`${name}.json`, folder), "utf8"));
}

export const SECRET = Buffer.from("000102030405060708090a0b0c0d0e0f", "hex");
type Members = Record<number, unknown>;

export class Stage {
  now = 1000;
  readonly session = new Session("test", () => 0.5);

  /** Say HELLO and be welcomed. */
  welcome(more: Members = {}, limits: [number, number][] = []): this {
    this.session.connect(this.now);
    this.heard();
    return this.greet(more, limits);
  }

  greet(more: Members = {}, limits: [number, number][] = []): this {
    const said = new Map<number, number>([
      [1, 4 << 20],
      [2, 8 << 20],
      [3, 100],
      [4, 8 << 20],
      [7, 65_536],
      [8, 64 << 20],
      ...limits,
    ]);
    const welcome = { [K.VERSION]: 1, [K.SESSION]: SECRET, [K.BOOT]: 7, [K.LIMITS]: said, [K.HEARTBEAT]: 5000 };
    this.say(T.WELCOME, { ...welcome, ...more });
    return this;
  }

  /** Say something as the broker would. */
  say(type: number, members: Members = {}, body: Uint8Array[] = []): void {
    const header = new Map<number, unknown>([[K.TYPE, type]]);
    for (const [key, value] of Object.entries(members)) {
      header.set(Number(key), value);
    }
    this.session.receive([Buffer.from(encode(header)), ...body], this.now);
  }

  /** What was said to the broker since the last time. */
  heard(): { header: Header; body: Frames }[] {
    const frames = this.session.outbox.splice(0);
    return frames.map(([first, ...body]) => ({ header: decodeHeader(first as Uint8Array), body }));
  }

  /** The frames of one type among them. */
  heardOf(type: number): { header: Header; body: Frames }[] {
    return this.heard().filter(({ header }) => header.get(K.TYPE) === type);
  }

  /** Let time pass. */
  pass(milliseconds: number): void {
    this.now += milliseconds;
    this.session.tick(this.now);
  }
}

export function lengths(...payloads: string[]): Buffer[] {
  const table = Buffer.alloc(4 * payloads.length);
  payloads.forEach((payload, i) => {
    table.writeUInt32LE(payload.length, 4 * i);
  });
  return [table, Buffer.from(payloads.join(""))];
}

// A broker of one worker that keeps what it is sent, for tests of what touches sockets.

import { encode } from "cborg";
import { Router } from "zeromq";
import { decodeHeader, K, T, uint } from "../src/wire.js";
import { SECRET } from "./stage.js";

export class Broker {
  readonly published: { sequence: number; body: Uint8Array[] }[] = [];
  readonly heard: number[] = [];
  /** Whether a PUBLISH is answered. */
  receipts = true;
  /** The code by which a PUBLISH is refused. */
  refusal: string | null = null;
  /** Where everything lives that is opened here. */
  moved: string | null = null;
  /** Whether the last HELLO named a session. */
  resumed = false;
  private readonly socket = new Router({ linger: 0, sendHighWaterMark: 0, receiveHighWaterMark: 0, sendTimeout: 0 });
  private messages = 0;

  async begin(port = "*"): Promise<this> {
    await this.socket.bind(`tcp://127.0.0.1:${port}`);
    void this.listen();
    return this;
  }

  get endpoint(): string {
    return this.socket.lastEndpoint as string;
  }

  end(): void {
    this.socket.close();
  }

  private async listen(): Promise<void> {
    try {
      for await (const [peer, first, ...body] of this.socket) {
        this.answer(peer as Buffer, first as Buffer, body as Buffer[]);
      }
    } catch {
      // it was closed
    }
  }

  private say(peer: Buffer, type: number, members: Record<number, unknown>, body: Uint8Array[] = []): void {
    const header = new Map<number, unknown>([[K.TYPE, type]]);
    for (const [key, value] of Object.entries(members)) {
      header.set(Number(key), value);
    }
    void this.socket.send([peer, encode(header), ...body]);
  }

  private answer(peer: Buffer, first: Buffer, body: Buffer[]): void {
    const header = decodeHeader(first);
    const type = header.get(K.TYPE) as number;
    this.heard.push(type);
    this.resumed = type === T.HELLO ? header.has(K.SESSION) : this.resumed;
    if (this.moved !== null && (type === T.OPEN_PRODUCER || type === T.OPEN_CONSUMER)) {
      const [ref, handle] = [header.get(K.REF), header.get(K.HANDLE)];
      this.say(peer, T.MOVED, { [K.REF]: ref, [K.HANDLE]: handle, [K.ENDPOINT]: this.moved });
      return;
    }
    const about = { [K.REF]: header.get(K.REF), [K.HANDLE]: header.get(K.HANDLE) };
    switch (type) {
      case T.HELLO: {
        const limits = new Map(
          Object.entries({ 1: 1 << 20, 2: 1 << 20, 3: 4096, 4: 64 << 20 }).map(([k, v]) => [Number(k), v]),
        );
        const said = { [K.VERSION]: 1, [K.SESSION]: SECRET, [K.BOOT]: 1, [K.LIMITS]: limits, [K.HEARTBEAT]: 5000 };
        this.say(peer, T.WELCOME, { ...said, [K.RESUMED]: header.has(K.SESSION) });
        break;
      }
      case T.REQUEST:
        this.say(peer, T.RESULT, { [K.REF]: header.get(K.REF) }, [encode(new Map([["processes", []]]))]);
        break;
      case T.OPEN_PRODUCER:
        this.say(peer, T.OPENED, {
          ...about,
          [K.SEQUENCE]: uint(header, K.SEQUENCE),
          [K.BYTES]: 64 << 20,
          [K.STRATEGY]: "reliable",
        });
        break;
      case T.OPEN_CONSUMER:
        this.say(peer, T.OPENED, { ...about, [K.OFFSET]: 0, [K.STRATEGY]: "reliable" });
        break;
      case T.PUBLISH: {
        const sequence = uint(header, K.SEQUENCE);
        if (this.refusal !== null) {
          const error = { [K.CODE]: this.refusal, [K.TEXT]: "no", [K.ACTION]: "fix", [K.SEQUENCE]: sequence };
          this.say(peer, T.ERROR, { [K.HANDLE]: header.get(K.HANDLE), ...error });
          break;
        }
        this.published.push({ sequence, body });
        if (this.receipts) {
          this.say(peer, T.RECEIPT, { [K.HANDLE]: header.get(K.HANDLE), [K.RECEIPTS]: [sequence, this.messages] });
        }
        this.messages += body.length > 1 ? (body[0] as Buffer).length / 4 : 1;
        break;
      }
      case T.ACK:
      case T.CLOSE:
        if (header.has(K.REF)) {
          this.say(peer, T.DONE, { [K.REF]: header.get(K.REF) });
        }
        break;
      case T.PING:
        this.say(peer, T.PONG, {});
        break;
      default:
    }
  }
}

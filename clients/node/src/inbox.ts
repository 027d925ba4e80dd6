// Request and reply: section 10.6 of PROTOCOL.md, a convention between clients over an ephemeral inbox topic.

import { randomBytes } from "node:crypto";
import type { Outgoing } from "./batch.js";
import type { Reader } from "./consumer.js";
import { ConnectionLostError, IsterError, invalid } from "./errors.js";
import type { Message } from "./message.js";
import type { Producer, Receipt } from "./producer.js";
import { Bell, until, type WaitOptions } from "./waiting.js";

const REPLY_TO = "ister.reply_to";
const CORRELATION_ID = "ister.correlation_id";
const OUTLETS_MAX = 64;
const INBOX_CREDIT = 1024;
const HURRY_MS = 1000;

/** What correspondence asks of the client. */
export interface Host {
  createTopic(topic: string, options: { dispatch: "non-reliable"; ephemeral: 1 }, how: WaitOptions): Promise<unknown>;
  producer(topic: string, options: WaitOptions): Promise<Producer>;
  reader(topic: string, options: WaitOptions & { start: "latest"; creditMessages: number }): Promise<Reader>;
}

/** The topic that replies to this client come to. Gone with its session. */
class Inbox {
  gone = false;
  readonly waiting = new Map<string, { reply: Message | null; bell: Bell }>();

  constructor(
    readonly topic: string,
    readonly reader: Reader,
  ) {
    void this.read();
  }

  private async read(): Promise<void> {
    try {
      for await (const message of this.reader) {
        const asked = this.waiting.get(attribute(message, CORRELATION_ID) ?? "");
        if (asked !== undefined) {
          asked.reply ??= message;
          asked.bell.ring();
        }
      }
    } catch {
      // told below to all who wait
    }
    this.gone = true;
    for (const { bell } of this.waiting.values()) {
      bell.ring();
    }
  }
}

function attribute(message: Message, name: string): string | undefined {
  try {
    return message.attributes[name];
  } catch {
    return undefined; // whoever sent it sent no attributes
  }
}

export class Correspondence {
  private inbox: Promise<Inbox> | null = null;
  private readonly outlets = new Map<string, Promise<Producer>>(); // by topic; least used first

  constructor(private readonly host: Host) {}

  async request(topic: string, message: Outgoing, options: WaitOptions): Promise<Message> {
    const inbox = await this.open(options);
    const id = randomBytes(8).toString("hex");
    const asked = { reply: null as Message | null, bell: new Bell() };
    inbox.waiting.set(id, asked);
    try {
      const attributes = { [REPLY_TO]: inbox.topic, [CORRELATION_ID]: id, ...message.attributes };
      const [receipt] = await this.send(topic, { ...message, attributes }, options);
      receipt.onOver(() => asked.bell.ring());
      return await until(
        asked.bell,
        () => {
          if (asked.reply !== null) {
            return asked.reply;
          }
          const { shipment } = receipt;
          if (shipment?.error) {
            shipment.observed = true;
            throw shipment.error;
          }
          if (inbox.gone) {
            throw new ConnectionLostError(`the session was lost, and with it the reply to a request to ${topic}`);
          }
          return undefined;
        },
        options,
        () => `nobody has answered a request to ${topic}`,
      );
    } finally {
      inbox.waiting.delete(id);
    }
  }

  async reply(to: Message, message: Outgoing, options: WaitOptions): Promise<void> {
    const topic = attribute(to, REPLY_TO);
    if (topic === undefined) {
      throw invalid("this message asks for no reply");
    }
    const attributes: Record<string, string> = { ...message.attributes };
    const id = attribute(to, CORRELATION_ID);
    if (id !== undefined) {
      attributes[CORRELATION_ID] ??= id;
    }
    try {
      await this.send(topic, { ...message, attributes }, options);
    } catch (error) {
      if (!(error instanceof IsterError && (error.code === "unknown-topic" || error.code === "topic-deleted"))) {
        throw error;
      }
      this.outlets.delete(topic); // whoever asked is gone
    }
  }

  /** Send with a producer that is kept for the next message to the topic. (A bare receipt would be awaited.) */
  private async send(topic: string, message: Outgoing, options: WaitOptions): Promise<[Receipt]> {
    let outlet = this.outlets.get(topic);
    this.outlets.delete(topic);
    outlet ??= this.host.producer(topic, options);
    this.outlets.set(topic, outlet);
    for (const [name, other] of this.outlets) {
      if (this.outlets.size <= OUTLETS_MAX) {
        break;
      }
      this.outlets.delete(name);
      other.then((producer) => producer.close({ timeoutMs: HURRY_MS })).catch(() => {});
    }
    try {
      const producer = await outlet;
      await producer.ready(options);
      const { payload, ...rest } = message;
      return [producer.send(payload, rest)];
    } catch (error) {
      // a window that was full for too long is no reason to open another one
      const opened = await outlet.then(
        () => true,
        () => false,
      );
      const patient = error instanceof IsterError && error.action === "retry";
      if (!(opened && patient) && this.outlets.get(topic) === outlet) {
        this.outlets.delete(topic);
      }
      throw error;
    }
  }

  private async open(options: WaitOptions): Promise<Inbox> {
    const before = this.inbox;
    if (before !== null) {
      const inbox = await before.catch(() => null);
      if (inbox !== null && !inbox.gone) {
        return inbox;
      }
      if (this.inbox !== before && this.inbox !== null) {
        return await this.inbox;
      }
    }
    const made = this.make(options);
    this.inbox = made;
    made.catch(() => {
      if (this.inbox === made) {
        this.inbox = null;
      }
    });
    return await made;
  }

  private async make(options: WaitOptions): Promise<Inbox> {
    const topic = `_inbox/${randomBytes(16).toString("hex")}`;
    await this.host.createTopic(topic, { dispatch: "non-reliable", ephemeral: 1 }, options);
    const reader = await this.host.reader(topic, { ...options, start: "latest", creditMessages: INBOX_CREDIT });
    return new Inbox(topic, reader);
  }

  /** Send the replies that were just given. */
  async close(): Promise<void> {
    const outlets = [...this.outlets.values()];
    this.outlets.clear();
    await Promise.allSettled(outlets.map(async (outlet) => (await outlet).flush({ timeoutMs: HURRY_MS })));
  }
}

// What a broker is asked about topics and subscriptions: section 10 of PROTOCOL.md, whose names arguments and answers
// have.

import { EventEmitter } from "node:events";
import type { SubscriptionType } from "./attachment.js";
import { type Start, wirePlace } from "./consumer.js";
import { IsterError } from "./errors.js";
import type { Listed } from "./following.js";
import type { Network } from "./network.js";
import { Request } from "./session.js";
import { Bell, until, type WaitOptions } from "./waiting.js";
import { decodeResult, type PlainMap, toArguments, toPlainObject } from "./wire.js";

/** Options of a topic: the arguments of `topic.create` and `topic.update`. */
export interface TopicOptions {
  dispatch?: "reliable" | "non-reliable";
  durability?: "fsync" | "os" | "cloud";
  retention_ms?: number;
  retention_bytes?: number;
  retention_acknowledged?: boolean | 0 | 1;
  message_ttl_ms?: number;
  dead_letters?: boolean | 0 | 1;
  ephemeral?: boolean | 0 | 1;
}

/** Options of a subscription; PROTOCOL.md, section 10.4, says what they mean and what counts without them. */
export interface SubscriptionOptions {
  ack_timeout_ms?: number;
  backoff_ms_min?: number;
  backoff_ms_max?: number;
  max_deliveries?: number;
  poison?: "dead-letter" | "drop" | "block";
  dead_letter_topic?: string;
  paused?: boolean | 0 | 1;
  buffer_messages_max?: number;
  buffer_bytes_max?: number;
  drop?: "oldest" | "newest";
}

/** What the broker knows of a topic; more members than these come. Integers above 2^53-1 are bigints. */
export interface TopicInfo {
  topic: string;
  strategy: "reliable" | "non-reliable";
  durability: string;
  node: string;
  endpoint: string;
  [member: string]: unknown;
}

/** What the broker knows of a subscription; more members than these come. */
export interface SubscriptionInfo {
  topic: string;
  subscription: string;
  type: SubscriptionType;
  [member: string]: unknown;
}

/** Why messages of a subscription flow, or why they do not. */
export interface Explanation {
  state: "flowing" | "caught-up" | "waiting" | "stopped" | (string & {});
  flowing: boolean;
  reasons: { code: string; text: string; [member: string]: unknown }[];
  numbers: Record<string, unknown>;
  [member: string]: unknown;
}

/** How a broker and its processes are doing. */
export interface Status {
  broker: Record<string, unknown>;
  processes: Record<string, unknown>[];
  [member: string]: unknown;
}

/** How a topic is created. */
export interface CreateTopicOptions extends WaitOptions {
  /** One that is there is as good, whatever its options. */
  existOk?: boolean;
}

/** How a subscription is created. */
export interface CreateSubscriptionOptions extends WaitOptions {
  type?: SubscriptionType;
  /** "latest" without it. */
  start?: Start;
}

/** What became of a connection. */
export interface ConnectionEvent {
  code: "connected" | "lost";
  endpoint: string;
  /** Why it was lost. */
  reason: string;
}

export interface ClientEvents {
  /** There is a session with a worker of the broker, or there is one again. */
  connected: [ConnectionEvent];
  /** A connection was lost; it is made again. */
  lost: [ConnectionEvent];
}

interface Answer {
  members: Record<string, unknown>;
  resent: boolean;
}

/** The part of a client that asks about topics and subscriptions. */
export abstract class Administration extends EventEmitter<ClientEvents> {
  /** @internal */
  protected abstract readonly network: Network;
  /** @internal */
  protected abstract readonly patience: WaitOptions;
  protected abstract check(): void;

  private async ask(operation: string, args: object, options: WaitOptions): Promise<Answer> {
    this.check();
    const bell = new Bell();
    const request = new Request(operation, toArguments(args as Record<string, unknown>), () => bell.ring());
    const { session } = this.network.home;
    session.request(request, this.network.now());
    try {
      const body = await until(
        bell,
        () => {
          if (request.error !== null) {
            throw request.error;
          }
          return request.result ?? undefined;
        },
        { ...this.patience, ...options },
        () => {
          const trouble = request.trouble ?? session.trouble;
          return `${operation} was not answered${trouble === null ? "" : `: ${trouble.message}`}`;
        },
      );
      const members = toPlainObject(decodeResult(body) as PlainMap) as Record<string, unknown>;
      return { members, resent: request.resent };
    } catch (error) {
      session.withdraw(request);
      if (request.resent && error instanceof IsterError) {
        resentFor.add(error);
      }
      throw error;
    }
  }

  private async members<Info>(operation: string, args: object, options: WaitOptions): Promise<Info> {
    return (await this.ask(operation, args, options)).members as Info;
  }

  /** A request that was sent twice may have made it the first time. */
  private async create<Info>(
    operation: string,
    args: object,
    exists: string,
    existOk: boolean,
    show: () => Promise<Info>,
    options: WaitOptions,
  ): Promise<Info> {
    try {
      return await this.members<Info>(operation, args, options);
    } catch (error) {
      if (error instanceof IsterError && error.code === exists && (existOk || resentFor.has(error))) {
        return await show();
      }
      throw error;
    }
  }

  private async remove(operation: string, args: object, gone: string[], options: WaitOptions): Promise<void> {
    try {
      await this.ask(operation, args, options);
    } catch (error) {
      if (!(error instanceof IsterError && gone.includes(error.code) && resentFor.has(error))) {
        throw error;
      }
    }
  }

  private async list<Info>(
    operation: string,
    many: string,
    one: string,
    args: object,
    options: WaitOptions,
  ): Promise<Info[]> {
    const found: Info[] = [];
    for (;;) {
      const last = found[found.length - 1] as Record<string, unknown> | undefined;
      const page = await this.members<Record<string, unknown>>(
        operation,
        { ...args, after: last?.[one] as string | undefined },
        options,
      );
      const entries = page[many] as Info[];
      found.push(...entries);
      if (page.more !== true || entries.length === 0) {
        return found;
      }
    }
  }

  /**
   * Ask the broker for what has no call of its own here, like `topic.verify`: operations, arguments and answers are those
   * of PROTOCOL.md, section 10. What is answered with `retry` is asked again until the time is over.
   */
  operation(operation: string, args: object = {}, how: WaitOptions = {}): Promise<Record<string, unknown>> {
    return this.members(operation, args, how);
  }

  // ---- topics -----------------------------------------------------------------------------------------------------

  /** Create a topic; a reliable one without `dispatch`. */
  createTopic(topic: string, options: TopicOptions = {}, how: CreateTopicOptions = {}): Promise<TopicInfo> {
    const { existOk = false, ...patience } = how;
    const args = { dispatch: "reliable", ...options, topic };
    const show = () => this.topic(topic, patience);
    return this.create<TopicInfo>("topic.create", args, "topic-exists", existOk, show, patience);
  }

  /** Change what a reliable topic keeps. */
  updateTopic(topic: string, options: TopicOptions, how: WaitOptions = {}): Promise<TopicInfo> {
    return this.members<TopicInfo>("topic.update", { ...options, topic }, how);
  }

  /** What the broker knows of a topic. */
  topic(topic: string, how: WaitOptions = {}): Promise<TopicInfo> {
    return this.members<TopicInfo>("topic.show", { topic }, how);
  }

  /** Every topic, by name; ephemeral ones too if they are asked for. */
  topics({ ephemeral, ...how }: WaitOptions & { ephemeral?: boolean } = {}): Promise<TopicInfo[]> {
    const args = ephemeral === true ? { ephemeral: 1 } : {};
    return this.list<TopicInfo>("topic.list", "topics", "topic", args, how);
  }

  /** Delete a topic, its messages and its subscriptions. */
  deleteTopic(topic: string, how: WaitOptions = {}): Promise<void> {
    return this.remove("topic.delete", { topic }, ["unknown-topic"], how);
  }

  /** @internal */
  protected watchTopics(args: object, how: WaitOptions): Promise<{ version: number; topics: Listed[] }> {
    return this.members("topic.watch", args, how);
  }

  // ---- subscriptions ----------------------------------------------------------------------------------------------

  /** Create a subscription without attaching to it. */
  createSubscription(
    topic: string,
    subscription: string,
    options: SubscriptionOptions = {},
    how: CreateSubscriptionOptions = {},
  ): Promise<SubscriptionInfo> {
    const { type = "shared", start, ...patience } = how;
    const args = { ...options, topic, subscription, type, start: start === undefined ? undefined : wirePlace(start) };
    const show = () => this.subscription(topic, subscription, patience);
    return this.create<SubscriptionInfo>("subscription.create", args, "subscription-exists", false, show, patience);
  }

  /** Change options of a subscription, for its present consumers too. */
  updateSubscription(
    topic: string,
    subscription: string,
    options: SubscriptionOptions,
    how: WaitOptions = {},
  ): Promise<SubscriptionInfo> {
    return this.members<SubscriptionInfo>("subscription.update", { ...options, topic, subscription }, how);
  }

  /** What the broker knows of a subscription. */
  subscription(topic: string, subscription: string, how: WaitOptions = {}): Promise<SubscriptionInfo> {
    return this.members<SubscriptionInfo>("subscription.show", { topic, subscription }, how);
  }

  /** Every subscription of a topic, by name. */
  subscriptions(topic: string, how: WaitOptions = {}): Promise<SubscriptionInfo[]> {
    return this.list<SubscriptionInfo>("subscription.list", "subscriptions", "subscription", { topic }, how);
  }

  /** Why messages of a subscription flow, or why they do not. */
  explain(topic: string, subscription: string, how: WaitOptions = {}): Promise<Explanation> {
    return this.members<Explanation>("subscription.explain", { topic, subscription }, how);
  }

  /** Decide what becomes of the messages that block a subscription, and return how many they were. */
  async unblock(
    topic: string,
    subscription: string,
    action: "retry" | "drop" | "dead-letter",
    how: WaitOptions = {},
  ): Promise<number> {
    const args = { topic, subscription, action };
    return (await this.members<{ messages: number }>("subscription.unblock", args, how)).messages;
  }

  /** Move a subscription, and return the offset of the next message; its consumers are told. */
  async seek(topic: string, subscription: string, to: Start, how: WaitOptions = {}): Promise<number> {
    const args = { topic, subscription, to: wirePlace(to) };
    return (await this.members<{ position: number }>("subscription.seek", args, how)).position;
  }

  /** Delete a subscription and its cursor. */
  deleteSubscription(topic: string, subscription: string, how: WaitOptions = {}): Promise<void> {
    const gone = ["unknown-subscription", "unknown-topic"];
    return this.remove("subscription.delete", { topic, subscription }, gone, how);
  }

  /** How the broker and its processes are doing. */
  status(how: WaitOptions = {}): Promise<Status> {
    return this.members<Status>("status", {}, how);
  }
}

/** Errors that answer a request which was sent more than once. */
const resentFor = new WeakSet<IsterError>();

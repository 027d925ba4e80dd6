// The driver of this client: tests/conformance_clients/DRIVER.md says how one works.

import { stdin, stdout } from "node:process";
import { Contents, contentOf, Gathering, type Outgoing } from "../src/batch.js";
import { CLIENT_TEXT, type Client, connect } from "../src/client.js";
import type { Consumer, Receiver, Start } from "../src/consumer.js";
import { IsterError, ProtocolError } from "../src/errors.js";
import {
  type DeadLetter,
  type Message,
  type PatternConsumer,
  type Producer,
  producerId,
  type Receipt,
} from "../src/index.js";
import type { WaitOptions } from "../src/waiting.js";
import { decodeAttributes, decodeHeader, Float } from "../src/wire.js";

const CAPABILITIES = [
  ...["batch", "pipeline", "keys", "attributes", "delivery-time", "timestamps", "attempts", "named-producer"],
  ...["batch-receive", "confirm", "nack", "ack-until", "extend", "reader", "seek", "priority", "force", "options"],
  ...["credit", "window", "events", "admin", "request-reply", "patterns"],
  ...["dead-letters", "taken", "moved", "reconnect", "heartbeat", "orderly-close"],
  ...["cancel", "drop", "codec", "bench"],
];
const TIMEOUT_MS = 10_000;

// biome-ignore lint/suspicious/noExplicitAny: a command is whatever a line of JSON holds
type Given = any;
type Answer = Record<string, unknown>;

class Unsupported extends Error {}

interface Held {
  consumer: Receiver | PatternConsumer;
  messages: Map<string, Message>; // by topic and offset
  late: unknown;
}

const clients = new Map<string, Client>();
const producers = new Map<string, Producer>();
const consumers = new Map<string, Held>();
const receipts = new Map<string, Receipt>();

function named<Value>(table: Map<string, Value>, name: string): Value {
  const found = table.get(name);
  if (found === undefined) {
    throw new Error(`nothing has the name ${name}`);
  }
  return found;
}

function start(given: Given): Start | undefined {
  if (typeof given === "string" && given.startsWith("time:")) {
    return new Date(Number(given.slice(5)));
  }
  return given ?? undefined;
}

function outgoing(message: Given): Outgoing & { sequence: number | null } {
  return {
    payload: Buffer.from(message.payload, "hex"),
    key: message.key ? Buffer.from(message.key, "hex") : null,
    attributes: message.attributes ?? null,
    deliverAt: message.deliver_at_ms ?? null,
    sequence: message.sequence ?? null,
  };
}

function shown(message: Message): Answer {
  return {
    topic: message.topic,
    offset: message.offset,
    payload: message.payload.toString("hex"),
    key: message.key?.toString("hex") ?? null,
    attributes: message.attributes,
    timestamp_ms: message.timestamp.getTime(),
    deliver_at_ms: message.deliverAt?.getTime() ?? null,
    attempt: message.attempt,
  };
}

/** A decoded value, in the notation of tests/vectors. */
function inNotation(value: unknown): unknown {
  if (value instanceof Map) {
    return Object.fromEntries([...value].map(([key, each]) => [String(key), inNotation(each)]));
  }
  if (Array.isArray(value)) {
    return value.map(inNotation);
  }
  if (value instanceof Uint8Array) {
    return { bytes: Buffer.from(value).toString("hex") };
  }
  if (value instanceof Float) {
    return { float: Number.isInteger(value.value) ? value.value.toFixed(1) : String(value.value) };
  }
  return typeof value === "bigint" ? { [value > 0 ? "uint" : "nint"]: String(value) } : value;
}

/** What a broker answered, as JSON can hold it. */
function inJson(_name: string, value: unknown): unknown {
  return typeof value === "bigint" ? Number(value) : value;
}

function decodeBatch({ columns, frames }: Given): Answer {
  const body: Buffer[] = frames.map((frame: string) => Buffer.from(frame, "hex"));
  const table = body[0];
  if (table === undefined) {
    throw new ProtocolError("a batch holds at least one message");
  }
  if (table.length % 4 !== 0) {
    throw new ProtocolError("a length has four bytes", "lengths-mismatch");
  }
  const contents = Contents.cut(columns, table.length / 4, body);
  const messages = Array.from({ length: contents.count }, (_, i) => {
    const told: Answer = { payload: contents.payload(i).toString("hex") };
    const [key, attributes, time] = [contents.key(i), contents.attributeBytes(i), contents.deliverAt(i)];
    if (key !== null) {
      told.key = key.toString("hex");
    }
    if (attributes !== null) {
      told.attributes = decodeAttributes(attributes);
    }
    if (time !== 0) {
      told.deliver_at_ms = time;
    }
    return told;
  });
  return { messages };
}

function encodeBatch({ messages }: Given): Answer {
  const gathering = new Gathering();
  for (const message of messages) {
    gathering.add(contentOf(outgoing(message)));
  }
  const frames = gathering.bodyWithLengths().map((frame) => Buffer.from(frame).toString("hex"));
  return { columns: gathering.columns, frames };
}

async function admin({ client: name, operation, arguments: given }: Given, how: WaitOptions): Promise<unknown> {
  const client = named(clients, name);
  const { topic, subscription, type, start: from, to, action, ...rest } = given;
  switch (operation) {
    case "topic.create":
      return await client.createTopic(topic, rest, how);
    case "topic.update":
      return await client.updateTopic(topic, rest, how);
    case "topic.list":
      return { topics: await client.topics(how) };
    case "topic.show":
      return await client.topic(topic, how);
    case "topic.delete":
      await client.deleteTopic(topic, how);
      return {};
    case "subscription.create":
      return await client.createSubscription(topic, subscription, rest, { type, start: start(from), ...how });
    case "subscription.update":
      return await client.updateSubscription(topic, subscription, rest, how);
    case "subscription.list":
      return { subscriptions: await client.subscriptions(topic, how) };
    case "subscription.show":
      return await client.subscription(topic, subscription, how);
    case "subscription.seek":
      return { position: await client.seek(topic, subscription, start(to) as Start, how) };
    case "subscription.explain":
      return await client.explain(topic, subscription, how);
    case "subscription.unblock":
      return { messages: await client.unblock(topic, subscription, action, how) };
    case "subscription.delete":
      await client.deleteSubscription(topic, subscription, how);
      return {};
    case "status":
      return await client.status(how);
    default:
      throw new Unsupported(`the operation ${operation}`);
  }
}

async function close({ client, producer, consumer }: Given, how: WaitOptions): Promise<void> {
  if (client !== undefined) {
    const closing = named(clients, client);
    clients.delete(client);
    await closing.close(how);
  } else if (producer !== undefined) {
    const closing = named(producers, producer);
    producers.delete(producer);
    await closing.close(how);
  } else {
    const closing = named(consumers, consumer).consumer;
    consumers.delete(consumer);
    await closing.close(how);
  }
}

async function receive({ consumer: name, max = 1, batch = false }: Given, how: WaitOptions): Promise<Answer> {
  const held = named(consumers, name);
  if (held.late !== null) {
    const { late } = held;
    held.late = null;
    throw late;
  }
  const until = performance.now() + (how.timeoutMs ?? 0);
  const taken: Message[] = [];
  try {
    if (batch) {
      taken.push(...(await held.consumer.receiveBatch(max, how)));
    }
    while (!batch && taken.length < max) {
      const timeoutMs = Math.max(0, until - performance.now());
      taken.push(await held.consumer.receive({ ...how, timeoutMs }));
    }
  } catch (error) {
    if (!(error instanceof IsterError && error.code === "timeout")) {
      if (taken.length === 0) {
        throw error;
      }
      held.late = error;
    }
  }
  for (const message of taken) {
    held.messages.set(`${message.topic} ${message.offset}`, message);
  }
  return { messages: taken.map(shown) };
}

function heldAt(held: Held, topic: string, offset: number): Message {
  const message = held.messages.get(`${topic} ${offset}`);
  if (message === undefined) {
    throw new Error(`no message of topic ${topic} and offset ${offset} is held`);
  }
  return message;
}

async function letters(given: Given, how: WaitOptions): Promise<Answer> {
  const { topic, subscription, max: limit, offsets, to } = given;
  const dead = named(clients, given.client).deadLetters(topic, subscription);
  if (given.do === "redrive") {
    return { messages: await dead.redrive({ offsets, to, limit, ...how }) };
  }
  if (given.do === "purge") {
    return { messages: await dead.purge({ limit, ...how }) };
  }
  const found: DeadLetter[] = [];
  if (limit !== undefined) {
    found.push(...(await dead.list({ limit, ...how })));
  } else {
    for await (const letter of dead) {
      found.push(letter);
    }
  }
  const told = found.map(({ payload, key, originOffset, ...rest }) => ({
    ...rest,
    payload: payload.toString("hex"),
    key: key?.toString("hex") ?? null,
    origin_offset: originOffset,
  }));
  return { letters: told };
}

function acknowledge(given: Given): void {
  const held = named(consumers, given.consumer);
  const consumer = held.consumer as Consumer | PatternConsumer;
  const offsets: number[] = given.offsets ?? [given.offset];
  const topic: string = given.topic ?? consumer.topic;
  const messages = offsets.map((offset) => heldAt(held, topic, offset));
  if (given.do === "extend") {
    consumer.extend(messages);
    return;
  }
  if (given.do === "ack_until") {
    for (const [place, message] of held.messages) {
      if (message.topic === topic && message.offset <= given.offset) {
        held.messages.delete(place);
      }
    }
    consumer.ackUntil(messages[0] as Message);
    return;
  }
  for (const offset of offsets) {
    held.messages.delete(`${topic} ${offset}`);
  }
  if (given.do === "ack") {
    consumer.ack(messages);
  } else {
    consumer.nack(messages, { delayMs: given.delay_ms, reason: given.reason });
  }
}

async function benchPublish(given: Given, how: WaitOptions): Promise<Answer> {
  const producer = named(producers, given.producer);
  const { messages, batch } = given;
  const payload = Buffer.alloc(given.message_bytes);
  const began = performance.now();
  if (batch > 0) {
    for (let first = 0; first < messages; first += batch) {
      if (!producer.hasRoom) {
        await producer.ready(how);
      }
      producer.sendBatch(new Array(Math.min(batch, messages - first)).fill(payload));
    }
  } else {
    for (let i = 0; i < messages; i++) {
      if (!producer.hasRoom) {
        await producer.ready(how);
      }
      producer.send(payload);
    }
  }
  await producer.flush(how);
  return { seconds: (performance.now() - began) / 1000 };
}

async function benchReceive(given: Given, how: WaitOptions): Promise<Answer> {
  const consumer = named(consumers, given.consumer).consumer as Consumer;
  const { messages, batch } = given;
  let [count, bytes, began] = [0, 0, 0];
  const signal = AbortSignal.timeout(how.timeoutMs ?? TIMEOUT_MS);
  if (batch === true) {
    for await (const together of consumer.batches(messages, { signal })) {
      began ||= performance.now();
      count += together.length;
      for (const message of together) {
        bytes += message.payload.length;
      }
      consumer.ack(together);
      if (count >= messages) {
        break;
      }
    }
  } else {
    for await (const message of consumer.messages({ signal })) {
      began ||= performance.now();
      bytes += message.payload.length;
      if (message.offset < 0) {
        throw new Error("a message has no offset");
      }
      consumer.ack(message);
      if (++count === messages) {
        break;
      }
    }
  }
  await consumer.flush(how);
  return { seconds: (performance.now() - began) / 1000, bytes };
}

async function benchRoundTrips(given: Given, how: WaitOptions): Promise<Answer> {
  const producer = named(producers, given.producer);
  const consumer = named(consumers, given.consumer).consumer as Consumer;
  const payload = Buffer.alloc(given.message_bytes);
  const took: number[] = [];
  for (let i = 0; i < given.messages; i++) {
    const began = performance.now();
    producer.send(payload);
    const message = await consumer.receive(how);
    took.push(performance.now() - began);
    consumer.ack(message);
  }
  took.sort((one, other) => one - other);
  const at = (part: number) => (took[Math.floor(took.length * part)] as number) * 1000;
  return { p50_us: at(0.5), p99_us: at(0.99) };
}

async function carryOut(given: Given, how: WaitOptions): Promise<Answer> {
  switch (given.do) {
    case "hello":
      return { protocol: 1, language: "node", client: CLIENT_TEXT, capabilities: CAPABILITIES };
    case "decode":
      return { header: inNotation(decodeHeader(Buffer.from(given.frame, "hex"))) };
    case "decode_batch":
      return decodeBatch(given);
    case "encode_batch":
      return encodeBatch(given);
    case "producer_id":
      return { id: String(producerId(given.topic, given.name)) };
    case "connect":
      clients.set(given.client, await connect(given.endpoints, how));
      return {};
    case "drop":
      named(clients, given.client).drop();
      return {};
    case "close":
      await close(given, how);
      return {};
    case "admin":
      return { result: await admin(given, how) };
    case "producer": {
      const { name, window_bytes: windowBytes } = given;
      const producer = await named(clients, given.client).producer(given.topic, { name, windowBytes, ...how });
      producers.set(given.producer, producer);
      return { next_sequence: producer.nextSequence };
    }
    case "publish": {
      const producer = named(producers, given.producer);
      const { payload, ...rest } = outgoing(given.message);
      await producer.ready(how);
      receipts.set(given.receipt, producer.send(payload, rest));
      return {};
    }
    case "publish_batch": {
      const producer = named(producers, given.producer);
      await producer.ready(how);
      receipts.set(given.receipt, producer.sendBatch(given.messages.map(outgoing)));
      return {};
    }
    case "receipt": {
      const receipt = named(receipts, given.receipt);
      try {
        const { offset, count, duplicate } = await receipt.wait(how);
        return { offset, count, duplicate };
      } finally {
        if (receipt.settled) {
          receipts.delete(given.receipt);
        }
      }
    }
    case "flush":
      if (given.producer !== undefined) {
        await named(producers, given.producer).flush(how);
      } else {
        await (named(consumers, given.consumer).consumer as Consumer).flush(how);
      }
      return {};
    case "consumer": {
      const { type, priority, force, options, credit_messages: creditMessages } = given;
      const waitForPlace = given.timeout_ms !== undefined;
      const wanted = {
        type,
        priority,
        force,
        options,
        creditMessages,
        waitForPlace,
        start: start(given.start),
        ...how,
      };
      const client = named(clients, given.client);
      if (/[*>]/.test(given.topic)) {
        const pattern = await client.patternConsumer(given.topic, given.subscription, wanted);
        consumers.set(given.consumer, { consumer: pattern, messages: new Map(), late: null });
        return { position: null };
      }
      const consumer = await client.consumer(given.topic, given.subscription, wanted);
      consumers.set(given.consumer, { consumer, messages: new Map(), late: null });
      return { position: consumer.position };
    }
    case "reader": {
      const wanted = { start: start(given.start), creditMessages: given.credit_messages, ...how };
      const reader = await named(clients, given.client).reader(given.topic, wanted);
      consumers.set(given.consumer, { consumer: reader, messages: new Map(), late: null });
      return { position: reader.position };
    }
    case "receive":
      return await receive(given, how);
    case "ack":
    case "nack":
    case "extend":
    case "ack_until":
      acknowledge(given);
      return {};
    case "seek": {
      const { consumer } = named(consumers, given.consumer);
      return { position: await (consumer as Consumer).seek(start(given.to) as Start, how) };
    }
    case "events":
      if (given.client !== undefined) {
        const told = named(clients, given.client).takeEvents();
        return { events: told.map(({ code }) => ({ code })) };
      }
      return { events: named(consumers, given.consumer).consumer.takeEvents() };
    case "letters":
    case "redrive":
    case "purge":
      return await letters(given, how);
    case "bench_publish":
      return await benchPublish(given, how);
    case "bench_receive":
      return await benchReceive(given, how);
    case "bench_round_trips":
      return await benchRoundTrips(given, how);
    case "request": {
      const { attributes } = given;
      const payload = Buffer.from(given.payload, "hex");
      return {
        message: shown(await named(clients, given.client).request(given.topic, payload, { attributes, ...how })),
      };
    }
    case "reply": {
      const held = named(consumers, given.consumer);
      const message = heldAt(held, held.consumer.topic, given.offset);
      await message.reply(Buffer.from(given.payload, "hex"), { attributes: given.attributes });
      return {};
    }
    default:
      throw new Unsupported(`the command ${given.do}`);
  }
}

async function answer(line: string): Promise<Answer> {
  const given = JSON.parse(line, (_name, value) => value ?? undefined);
  const how: WaitOptions = { timeoutMs: given.timeout_ms ?? TIMEOUT_MS };
  let timer: NodeJS.Timeout | undefined;
  if (given.cancel_after_ms !== undefined) {
    const controller = new AbortController();
    timer = setTimeout(() => controller.abort(), given.cancel_after_ms);
    how.signal = controller.signal;
  }
  try {
    return { id: given.id, ok: await carryOut(given, how) };
  } catch (error) {
    let [code, action] = ["driver-failed", "stop"];
    if (error instanceof IsterError) {
      ({ code, action } = error);
    } else if (error instanceof Unsupported) {
      [code, action] = ["unsupported", "fix"];
    }
    const text =
      error instanceof Error ? (action === "stop" ? (error.stack ?? error.message) : error.message) : `${error}`;
    return { id: given.id, error: { code, action, text } };
  } finally {
    clearTimeout(timer);
  }
}

/** Lines of standard input: readline would end them at other characters too. */
async function* lines(): AsyncGenerator<string> {
  let parts: Buffer[] = [];
  for await (const chunk of stdin as AsyncIterable<Buffer>) {
    let at = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, at)) {
      parts.push(chunk.subarray(at, end));
      yield Buffer.concat(parts).toString("utf8");
      parts = [];
      at = end + 1;
    }
    parts.push(chunk.subarray(at));
  }
}

for await (const line of lines()) {
  stdout.write(`${JSON.stringify(await answer(line), inJson)}\n`);
}
for (const client of clients.values()) {
  await client.close().catch(() => {});
}

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { platform } from "node:process";
import { after, before, describe, it } from "node:test";
import { type Client, connect, IsterError } from "../src/index.js";
import { T } from "../src/wire.js";
import { Broker } from "./broker.js";

const code = (expected: string) => (error: unknown) => error instanceof IsterError && error.code === expected;

describe("a client", { timeout: 60_000 }, () => {
  let broker: Broker;
  let client: Client;

  before(async () => {
    broker = await new Broker().begin();
    client = await connect(broker.endpoint, { timeoutMs: 20_000 });
  });

  after(async () => {
    await client.close();
    broker.end();
  });

  it("sends six hundred batches in one turn: none waits for another in the socket", { timeout: 20_000 }, async () => {
    const producer = await client.producer("orders", { batchBytes: 1 });
    const receipts = Array.from({ length: 600 }, (_, i) => producer.send(`${i}`));
    const offsets = (await Promise.all(receipts)).map(({ offset }) => offset);
    assert.deepEqual(
      offsets,
      Array.from({ length: 600 }, (_, i) => (offsets[0] as number) + i),
    );
    await producer.close();
  });

  it("sends what a buffer held when it was sent, though the program uses it again", async () => {
    const producer = await client.producer("orders");
    broker.published.length = 0;
    const payload = Buffer.alloc(100_000, 1);
    const receipts = [producer.send(payload), producer.sendBatch([payload, payload])];
    payload.fill(2);
    await Promise.all(receipts);
    const sent = Buffer.concat(broker.published.map(({ body }) => body[body.length - 1] as Buffer));
    assert.deepEqual(sent, Buffer.alloc(300_000, 1));
    await producer.close();
  });

  it("gives back every descriptor of the connections that it lost", { skip: platform !== "linux" }, async () => {
    const open = () => readdirSync("/proc/self/fd").length;
    await client.status();
    const atFirst = open();
    for (let i = 0; i < 60; i++) {
      client.drop();
      await client.status();
    }
    // the library closes sockets in a thread of its own
    for (let patience = 0; open() >= atFirst + 30 && patience < 500; patience++) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    assert.ok(open() < atFirst + 30, `${atFirst} were open, and now ${open()}`);
  });

  it("sends again what has no receipt, over a new connection", async () => {
    const producer = await client.producer("orders");
    broker.receipts = false;
    const receipt = producer.send("lost");
    await assert.rejects(receipt.wait({ timeoutMs: 50 }), code("timeout"));
    broker.receipts = true;
    client.takeEvents();
    client.drop();
    assert.equal((await receipt.wait({ timeoutMs: 20_000 })).count, 1);
    assert.deepEqual(
      client.takeEvents().map((event) => event.code),
      ["lost", "connected"],
    );
    await producer.close();
  });

  it("tells of a refusal that nobody awaited at the next flush, and rejects nothing unseen", async () => {
    const producer = await client.producer("orders");
    broker.refusal = "invalid-argument";
    producer.send("refused");
    await assert.rejects(producer.flush(), code("invalid-argument"));
    const seen = producer.send("refused too");
    await assert.rejects(async () => seen, code("invalid-argument"));
    broker.refusal = null;
    await producer.flush(); // that one was told already
    assert.equal((await producer.send("taken")).count, 1);
    await producer.close();
    assert.throws(() => producer.send("late"), code("closed"));
  });

  it("stops waiting when the caller's signal, or time, says so, and goes on as before", async () => {
    const consumer = await client.consumer("orders", "billing");
    const controller = new AbortController();
    const waiting = consumer.receive({ signal: controller.signal });
    controller.abort(new Error("enough"));
    await assert.rejects(waiting, (error) => {
      assert.ok(error instanceof IsterError);
      assert.deepEqual([error.name, error.code, (error.cause as Error).message], ["AbortError", "cancelled", "enough"]);
      return true;
    });
    await assert.rejects(consumer.receive({ signal: controller.signal }), code("cancelled"));
    await assert.rejects(consumer.receive({ signal: AbortSignal.timeout(20) }), code("timeout"));
    await assert.rejects(consumer.receive({ timeoutMs: 20 }), code("timeout"));
    const ended: unknown[] = [];
    const loop = (async () => {
      for await (const message of consumer) {
        ended.push(message);
      }
    })();
    await consumer.close(); // which ends the loop, and rejects nothing
    await loop;
    assert.deepEqual(ended, []);
    await assert.rejects(consumer.receive(), code("closed"));
  });

  it("closes what it has, and says goodbye", async () => {
    const other = await connect(broker.endpoint);
    const producer = await other.producer("orders");
    await other.consumer("orders", "billing");
    const receipt = producer.send("last");
    broker.heard.length = 0;
    await other.close();
    assert.equal(receipt.settled, true);
    while (!broker.heard.includes(T.BYE)) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assert.equal(broker.heard.filter((type) => type === T.CLOSE).length, 2);
    assert.equal(broker.heard.indexOf(T.BYE), broker.heard.length - 1);
    await assert.rejects(other.status(), code("closed"));
    await other.close();
  });

  it("says when it could not be closed in order in the time it was given, and is closed all the same", async () => {
    const other = await connect(broker.endpoint);
    const producer = await other.producer("orders");
    broker.receipts = false;
    const receipt = producer.send("unanswered");
    await assert.rejects(other.close({ timeoutMs: 100 }), code("timeout"));
    broker.receipts = true;
    await assert.rejects(async () => receipt, code("closed"));
    await assert.rejects(other.producer("orders"), code("closed"));
  });

  it("says what is wrong with an endpoint, and when nobody is there", async () => {
    await assert.rejects(connect("nowhere"), code("invalid-argument"));
    await assert.rejects(connect([]), code("invalid-argument"));
    await assert.rejects(connect("tcp://127.0.0.1:9", { timeoutMs: 200 }), (error) => {
      assert.ok(error instanceof IsterError);
      assert.deepEqual([error.code, error.action], ["timeout", "retry"]);
      assert.match(error.message, /no broker at tcp:\/\/127.0.0.1:9: nobody listens/);
      return true;
    });
  });

  it("goes to the next endpoint where nobody is at the first", async () => {
    const other = await connect(["tcp://127.0.0.1:9", broker.endpoint]);
    assert.equal(other.takeEvents()[0]?.endpoint, broker.endpoint);
    await other.close();
  });
});

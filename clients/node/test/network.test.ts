import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type Client, connect, IsterError } from "../src/index.js";
import { T } from "../src/wire.js";
import { Broker } from "./broker.js";

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Two workers, and a client that begins at the first. */
async function scene(run: (first: Broker, second: Broker, client: Client) => Promise<void>): Promise<void> {
  const [first, second] = [await new Broker().begin(), await new Broker().begin()];
  const client = await connect(first.endpoint);
  try {
    await run(first, second, client);
  } finally {
    first.moved = second.moved = null;
    await client.close({ timeoutMs: 5000 }).catch(() => {});
    first.end();
    second.end();
  }
}

describe("a client of a broker with several workers", { timeout: 60_000 }, () => {
  it("goes where MOVED says, over one connection for all that is there", () =>
    scene(async (first, second, client) => {
      first.moved = second.endpoint;
      const [one, two] = [await client.producer("one"), await client.producer("two")];
      const consumer = await client.consumer("one", "all");
      await Promise.all([one.send("1"), two.send("2")]);
      assert.equal(second.published.length, 2);
      assert.deepEqual(first.published, []);
      assert.equal(second.heard.filter((type) => type === T.HELLO).length, 1);
      await consumer.close();
    }));

  it("backs off where it is moved for ever", () =>
    scene(async (first, second, client) => {
      first.moved = second.endpoint;
      second.moved = first.endpoint;
      let [tries, message] = [0, ""];
      while (tries < 40 && !/moved 8 times in a row/.test(message)) {
        // on a machine with much to do, half a second may not be enough for eight moves
        tries++;
        const error = await client.producer("orders", { timeoutMs: 500 }).then(
          () => null,
          (each) => each,
        );
        assert.ok(error instanceof IsterError);
        assert.equal(error.code, "timeout");
        ({ message } = error);
      }
      assert.match(message, /moved 8 times in a row/);
      const opens = [...first.heard, ...second.heard].filter((type) => type === T.OPEN_PRODUCER).length;
      assert.ok(opens <= 10 * tries, `${opens} opens in ${tries} times half a second`);
    }));

  it("asks the first endpoint again where the other does not come back", () =>
    scene(async (first, second, client) => {
      first.moved = second.endpoint;
      const producer = await client.producer("orders");
      await producer.send("1");
      first.moved = null;
      second.end();
      assert.equal((await producer.send("2").wait({ timeoutMs: 30_000 })).count, 1);
      assert.equal(first.published.length, 1);
    }));

  it("resumes the session that it had where it was sent back to", () =>
    scene(async (first, second, client) => {
      first.moved = second.endpoint;
      const producer = await client.producer("orders");
      await producer.send("1");
      const { port } = new URL(second.endpoint);
      second.end();
      const back = new Broker();
      await until(() => first.heard.filter((type) => type === T.OPEN_PRODUCER).length > 2); // it asks, and is sent back
      await back.begin(port);
      try {
        assert.equal((await producer.send("2").wait({ timeoutMs: 30_000 })).count, 1);
        assert.equal(back.resumed, true);
      } finally {
        back.end();
      }
    }));
});

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Contents, contentOf, Gathering, type Outgoing } from "../src/batch.js";
import { IsterError, UsageError } from "../src/errors.js";
import { producerId } from "../src/producerid.js";
import { decodeAttributes } from "../src/wire.js";
import { vectors } from "./stage.js";

interface Told {
  payload: string;
  key?: string;
  attributes?: Record<string, string>;
  deliver_at_ms?: number;
}

interface BatchVector {
  name: string;
  columns: number;
  frames: string[];
  messages?: Told[];
  error?: string;
}

function told(contents: Contents): Told[] {
  return Array.from({ length: contents.count }, (_, i) => {
    const message: Told = { payload: contents.payload(i).toString("hex") };
    const [key, attributes] = [contents.key(i), contents.attributeBytes(i)];
    if (key !== null) {
      message.key = key.toString("hex");
    }
    if (attributes !== null) {
      message.attributes = decodeAttributes(attributes);
    }
    if (contents.deliverAt(i) !== 0) {
      message.deliver_at_ms = contents.deliverAt(i);
    }
    return message;
  });
}

function cut(columns: number, frames: Uint8Array[]): Contents {
  return Contents.cut(columns, Math.floor((frames[0]?.length ?? 0) / 4), frames);
}

describe("batches", () => {
  for (const vector of vectors<BatchVector[]>("batches").filter(({ frames }) => frames.length > 1)) {
    it(`the vector ${vector.name}`, () => {
      const frames = vector.frames.map((frame) => Buffer.from(frame, "hex"));
      if (vector.error !== undefined) {
        assert.throws(
          () => cut(vector.columns, frames),
          (error) => error instanceof IsterError && ["malformed", "lengths-mismatch"].includes(error.code),
        );
        return;
      }
      assert.deepEqual(told(cut(vector.columns, frames)), vector.messages);
      const gathering = new Gathering();
      for (const { payload, key, attributes, deliver_at_ms: deliverAt } of vector.messages ?? []) {
        const message: Outgoing = { payload: Buffer.from(payload, "hex"), attributes, deliverAt };
        gathering.add(contentOf(key === undefined ? message : { ...message, key: Buffer.from(key, "hex") }));
      }
      const body = gathering.bodyWithLengths();
      assert.deepEqual(told(cut(gathering.columns, body)), vector.messages);
      assert.equal(
        gathering.bytes,
        body.reduce((sum, frame) => sum + frame.length, 0),
      );
    });
  }

  it("copies what it is given: the program may use its buffer again", () => {
    const gathering = new Gathering();
    const payload = Buffer.alloc(200, 1);
    gathering.add(contentOf({ payload, key: payload }));
    const body = gathering.bodyWithLengths();
    payload.fill(2);
    assert.deepEqual(cut(gathering.columns, body).payload(0), Buffer.alloc(200, 1));
    assert.deepEqual(cut(gathering.columns, body).key(0), Buffer.alloc(200, 1));
  });

  it("takes text for UTF-8, and a column that begins late for empty before", () => {
    const gathering = new Gathering();
    gathering.add(contentOf({ payload: "grün" }));
    gathering.add(contentOf({ payload: "", key: "ü", deliverAt: new Date(5) }));
    const contents = cut(gathering.columns, gathering.bodyWithLengths());
    assert.equal(contents.payload(0).toString(), "grün");
    assert.equal(contents.key(0), null);
    assert.deepEqual(contents.key(1), Buffer.from("ü"));
    assert.deepEqual([contents.deliverAt(0), contents.deliverAt(1)], [0, 5]);
  });

  it("leaves the length of a message alone out, and no other", () => {
    const gathering = new Gathering();
    gathering.add(contentOf({ payload: "alone" }));
    assert.deepEqual(gathering.body(), [Buffer.from("alone")]);
    gathering.add(contentOf({ payload: "no more" }));
    assert.equal(gathering.body().length, 2);
  });

  it("refuses what is no message", () => {
    for (const message of [{ payload: 5 }, { payload: "", key: [1] }, { payload: "", deliverAt: -1 }]) {
      assert.throws(() => contentOf(message as unknown as Outgoing), UsageError);
    }
    assert.throws(
      () => contentOf({ payload: "", attributes: { a: 1 } as unknown as Record<string, string> }),
      UsageError,
    );
  });

  it("says that a count of billions is none, without making room for them", () => {
    assert.throws(() => Contents.cut(0, 2 ** 52, [Buffer.alloc(4), Buffer.alloc(0)]), IsterError);
  });
});

describe("named producers", () => {
  for (const { name, topic, producer, id } of vectors<Record<string, string>[]>("producer-ids")) {
    it(`the id of ${name}`, () => {
      assert.equal(String(producerId(topic as string, producer as string)), id);
    });
  }
});

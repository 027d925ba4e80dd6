import assert from "node:assert/strict";
import { it } from "node:test";
import { encode } from "cborg";
import { Attachment } from "../src/attachment.js";
import { Publication } from "../src/publication.js";
import { K, T } from "../src/wire.js";
import { lengths, Stage, vectors } from "./stage.js";

/** Numbers that are random, and the same each time. */
function* random(seed: number): Generator<number, never> {
  let state = seed;
  for (;;) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    yield state / 2 ** 32;
  }
}

function deliver(...columns: Buffer[]): Buffer[] {
  const bits = [0, 1, 3][columns.length] ?? 0;
  const header = new Map<number, unknown>([
    [K.TYPE, T.DELIVER],
    [K.HANDLE, 2],
    [K.OFFSET, 5],
    [K.COUNT, 2],
    [K.TIMESTAMPS, [2, 1_700_000_000_000]],
    [K.COLUMNS, bits],
    [K.RANGES, [5, 6, 9, 10]],
  ]);
  return [Buffer.from(encode(header)), ...lengths("one", "three"), ...columns];
}

it("whatever bytes come cost the connection at most", () => {
  const frames: Buffer[][] = vectors<{ frames: string[] }[]>("headers-to-client").map((vector) =>
    vector.frames.map((frame) => Buffer.from(frame, "hex")),
  );
  frames.push(
    deliver(),
    deliver(Buffer.concat(lengths("k", ""))),
    deliver(Buffer.concat(lengths("k", "")), Buffer.concat(lengths("", "\xa0"))),
  );
  const numbers = random(11);
  const one = (most: number): number => Math.floor(numbers.next().value * most);
  const stage = new Stage();
  const publication = new Publication(1, "orders", 1n, { batchBytes: 1000, lingerMs: 1, windowBytes: null });
  const attachment = new Attachment(2, {
    topic: "orders",
    subscription: "all",
    type: "exclusive",
    start: null,
    priority: 0,
    force: false,
    arguments: new Map(),
    creditMessages: null,
    patient: false,
  });
  let [lost, taken] = [0, 0];
  stage.session.attach(publication, stage.now);
  stage.session.attach(attachment, stage.now);
  for (let turn = 0; turn < 5000; turn++) {
    if (stage.session.phase !== "ready") {
      lost++;
      stage.session.connect(stage.now);
      stage.heard();
      stage.greet({ [K.RESUMED]: true });
    }
    for (const { header } of stage.heard()) {
      if (header.get(K.TYPE) === T.OPEN_CONSUMER) {
        stage.say(T.OPENED, { [K.REF]: header.get(K.REF), [K.HANDLE]: 2, [K.OFFSET]: 0, [K.TAKEN]: 0 });
      }
    }
    const message = (frames[one(frames.length)] as Buffer[]).map((frame) => Buffer.from(frame));
    for (let i = one(4); i > 0; i--) {
      const frame = message[one(message.length)] as Buffer;
      if (frame.length > 0) {
        frame[one(frame.length)] = one(256);
      }
    }
    if (one(10) === 0) {
      message.splice(one(message.length), 1);
    }
    stage.session.receive(message, stage.now);
    stage.pass(one(50));
    for (let found = attachment.takeOne(stage.now); found !== null; found = attachment.takeOne(stage.now)) {
      assert.ok(found.payload.length <= 8 && Number.isSafeInteger(found.offset));
      attachment.ack(found, () => stage.now);
      taken++;
    }
    if (attachment.phase === "closed" || publication.phase === "closed" || stage.session.phase === "ended") {
      break; // an error that says so came through
    }
  }
  assert.ok(lost > 100 && taken > 10, `${lost} connections were lost, ${taken} messages came through`);
});

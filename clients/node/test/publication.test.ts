import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { contentOf } from "../src/batch.js";
import { ConnectionLostError } from "../src/errors.js";
import { Place, Publication, type PublicationOptions } from "../src/publication.js";
import { K, OFFSET_UNKNOWN, T } from "../src/wire.js";
import { Stage } from "./stage.js";

const HANDLE = 1;

class Scene extends Stage {
  readonly publication: Publication;
  readonly places: Place[] = [];

  constructor(options: Partial<PublicationOptions> = {}) {
    super();
    const all = { batchBytes: 1000, lingerMs: 1, windowBytes: null, ...options };
    this.publication = new Publication(HANDLE, "orders", 77n, all);
    this.session.attach(this.publication, this.now);
  }

  opened(sequence = 0, more: Record<number, unknown> = {}): this {
    const [open] = this.heardOf(T.OPEN_PRODUCER);
    const ref = open?.header.get(K.REF);
    const answer = { [K.REF]: ref, [K.HANDLE]: HANDLE, [K.SEQUENCE]: sequence, [K.STRATEGY]: "reliable" };
    this.say(T.OPENED, { ...answer, [K.BYTES]: 8 << 20, ...more });
    return this;
  }

  send(payload: string, sequence: number | null = null): Place {
    const place = new Place(1);
    this.publication.take(place, contentOf({ payload }), sequence, () => this.now);
    this.places.push(place);
    return place;
  }

  receipt(sequence: number, offset: number | bigint): void {
    this.say(T.RECEIPT, { [K.HANDLE]: HANDLE, [K.RECEIPTS]: [sequence, offset] });
  }

  refuse(code: string, action: string, sequence?: number, more: Record<number, unknown> = {}): void {
    const about = sequence === undefined ? {} : { [K.SEQUENCE]: sequence };
    this.say(T.ERROR, { [K.HANDLE]: HANDLE, [K.CODE]: code, [K.TEXT]: code, [K.ACTION]: action, ...about, ...more });
  }

  /** The numbers of what was published since the last look. */
  published(): unknown[] {
    return this.heardOf(T.PUBLISH).map(({ header }) => header.get(K.SEQUENCE));
  }

  /** End a turn of the program. */
  turn(): this {
    this.session.tick(this.now);
    return this;
  }

  errors(): (string | undefined)[] {
    return this.places.map(({ shipment }) => (shipment?.over ? (shipment.error?.code ?? "stored") : undefined));
  }
}

describe("a producer", () => {
  it("sends what one turn of the program brings as one batch", () => {
    const scene = new Scene().welcome().opened();
    for (const payload of ["one", "two", "three"]) {
      scene.send(payload);
    }
    assert.deepEqual(scene.published(), []);
    const [batch, ...rest] = scene.turn().heardOf(T.PUBLISH);
    assert.deepEqual(rest, []);
    assert.equal(Buffer.from(batch?.body[1] as Uint8Array).toString(), "onetwothree");
    scene.receipt(0, 10);
    assert.deepEqual(
      scene.places.map(({ shipment, index }) => (shipment?.first ?? 0) + index),
      [10, 11, 12],
    );
  });

  it("gathers while a batch is on its way, until that is answered or the linger is over", () => {
    const scene = new Scene({ lingerMs: 5 }).welcome().opened();
    scene.send("first");
    scene.turn();
    assert.deepEqual(scene.published(), [0]);
    scene.send("second");
    scene.send("third");
    scene.turn();
    assert.deepEqual(scene.published(), []);
    scene.receipt(0, 0);
    assert.deepEqual(scene.published(), [1]);
    scene.send("fourth");
    scene.turn().pass(5);
    assert.deepEqual(scene.published(), [3]);
  });

  it("cuts batches at their size", () => {
    const scene = new Scene({ batchBytes: 100 }).welcome().opened();
    for (let i = 0; i < 10; i++) {
      scene.send("x".repeat(30));
    }
    assert.deepEqual(scene.published(), [0, 2, 4, 6]);
  });

  it("never has more bytes out than the window, and takes what waits in order", () => {
    const scene = new Scene({ lingerMs: 0 }).welcome().opened(0, { [K.BYTES]: 300 });
    for (let i = 0; i < 20; i++) {
      scene.send(`${i}`.padEnd(50, "x"));
    }
    assert.equal(scene.publication.hasRoom, false);
    const sizes = new Map<number, number>();
    const texts: string[] = [];
    for (let turn = 0; turn < 50 && scene.errors().includes(undefined); turn++) {
      for (const { header, body } of scene.turn().heardOf(T.PUBLISH)) {
        sizes.set(
          header.get(K.SEQUENCE) as number,
          body.reduce((sum, frame) => sum + frame.length, 0),
        );
        texts.push(
          ...(Buffer.from(body[body.length - 1] as Uint8Array)
            .toString()
            .match(/.{50}/g) ?? []),
        );
      }
      const out = [...sizes.values()].reduce((sum, size) => sum + size, 0);
      assert.ok(out <= 300, `${out} bytes are out`);
      const [first] = sizes.keys();
      if (first !== undefined) {
        sizes.delete(first);
        scene.receipt(first, first);
      }
    }
    assert.deepEqual(
      texts.map((text) => Number.parseInt(text, 10)),
      Array.from({ length: 20 }, (_, i) => i),
    );
    assert.equal(scene.publication.hasRoom, true);
  });

  it("never has more batches out than the limits allow", () => {
    const scene = new Scene({ batchBytes: 10 }).welcome({}, [[3, 2]]).opened();
    for (let i = 0; i < 6; i++) {
      scene.send("0123456789");
    }
    assert.deepEqual(scene.turn().published(), [0, 1]);
    scene.receipt(0, 0);
    assert.deepEqual(scene.published(), [2]);
  });

  it("sends again, byte for byte, what has no receipt when the connection was lost", () => {
    const scene = new Scene({ batchBytes: 10, lingerMs: 0 }).welcome().opened();
    for (let i = 0; i < 4; i++) {
      scene.send("0123456789");
    }
    const before = scene.turn().heardOf(T.PUBLISH);
    scene.receipt(0, 0);
    scene.session.lost(new ConnectionLostError("cut"));
    scene.send("meanwhile");
    scene.session.connect(scene.now);
    scene.greet({ [K.RESUMED]: true });
    const [open] = scene.heardOf(T.OPEN_PRODUCER);
    assert.deepEqual([open?.header.get(K.SEQUENCE), open?.header.get(K.PRODUCER)], [1, 77]);
    scene.say(T.OPENED, { [K.REF]: open?.header.get(K.REF), [K.HANDLE]: HANDLE, [K.SEQUENCE]: 1, [K.BYTES]: 1000 });
    const again = scene.heardOf(T.PUBLISH);
    assert.deepEqual(again.slice(0, 3), before.slice(1));
    for (const sequence of [1, 2, 3]) {
      scene.receipt(sequence, sequence);
      scene.receipt(sequence, 99); // a second one says nothing
    }
    scene.turn();
    scene.receipt(4, 4);
    assert.deepEqual(
      scene.places.map(({ shipment }) => shipment?.first),
      [0, 1, 2, 3, 4],
    );
  });

  it("skips a batch that is refused for good once all before it are resolved, and sends the later ones again", () => {
    const scene = new Scene({ batchBytes: 10, lingerMs: 0 }).welcome().opened();
    for (let i = 0; i < 3; i++) {
      scene.send("0123456789");
    }
    assert.deepEqual(scene.published(), [0, 1, 2]);
    scene.refuse("invalid-argument", "fix", 1);
    assert.deepEqual(scene.heardOf(T.OPEN_PRODUCER), []);
    scene.receipt(0, 0);
    const [open] = scene.heardOf(T.OPEN_PRODUCER);
    assert.equal(open?.header.get(K.SEQUENCE), 2);
    scene.say(T.OPENED, { [K.REF]: open?.header.get(K.REF), [K.HANDLE]: HANDLE, [K.SEQUENCE]: 2, [K.BYTES]: 1000 });
    assert.deepEqual(scene.published(), [2]);
    scene.receipt(2, 1);
    assert.deepEqual(scene.errors(), ["stored", "invalid-argument", "stored"]);
    assert.equal(scene.publication.refused?.error?.code, "invalid-argument");
  });

  it("opens again, and sends all again, after a refusal that asks for it", () => {
    for (const [code, action] of [
      ["busy", "retry"],
      ["unknown-handle", "fix"],
      ["sequence-gap", "retry"],
    ] as const) {
      const scene = new Scene({ batchBytes: 10, lingerMs: 0 }).welcome().opened();
      scene.send("0123456789");
      scene.send("0123456789");
      scene.heard();
      scene.refuse(code, action, 0);
      scene.refuse("sequence-gap", "retry", 1);
      scene.pass(200);
      const [open] = scene.heardOf(T.OPEN_PRODUCER);
      assert.equal(open?.header.get(K.SEQUENCE), 0);
      scene.say(T.OPENED, { [K.REF]: open?.header.get(K.REF), [K.HANDLE]: HANDLE, [K.SEQUENCE]: 0, [K.BYTES]: 1000 });
      assert.deepEqual(scene.published(), [0, 1]);
    }
  });

  it("fails everything where the whole producer is refused", () => {
    const scene = new Scene().welcome().opened();
    scene.send("one");
    scene.turn();
    scene.send("two");
    scene.refuse("producer-fenced", "stop", undefined, { [K.CLOSED]: true });
    assert.deepEqual(scene.errors(), ["producer-fenced", "producer-fenced"]);
    assert.equal(scene.publication.phase, "closed");
  });

  it("goes on at the number that the broker says, and does not send again what was stored before", () => {
    const scene = new Scene().welcome().opened(5);
    assert.equal(scene.publication.nextSequence, 5);
    const stored = scene.send("four", 4);
    assert.deepEqual([stored.shipment?.over, stored.shipment?.first], [true, null]);
    scene.send("five", 5);
    scene.turn();
    assert.deepEqual(scene.published(), [5]);
  });

  it("leaves numbers out once all before them are resolved", () => {
    const scene = new Scene().welcome().opened();
    scene.send("zero", 0);
    scene.turn();
    scene.send("seven", 7);
    assert.deepEqual(scene.published(), [0]);
    scene.receipt(0, 0);
    const [open] = scene.heardOf(T.OPEN_PRODUCER);
    assert.equal(open?.header.get(K.SEQUENCE), 7);
    scene.say(T.OPENED, { [K.REF]: open?.header.get(K.REF), [K.HANDLE]: HANDLE, [K.SEQUENCE]: 7, [K.BYTES]: 1000 });
    assert.deepEqual(scene.turn().published(), [7]);
  });

  it("has no offset for a duplicate whose place is forgotten", () => {
    const scene = new Scene().welcome().opened();
    const place = scene.send("again");
    scene.turn();
    scene.receipt(0, OFFSET_UNKNOWN);
    assert.deepEqual([place.shipment?.over, place.shipment?.first, place.shipment?.error], [true, null, null]);
  });

  it("tells the broker when it is closed, also while it is being opened", () => {
    const open = new Scene().welcome().opened();
    open.publication.close();
    assert.equal(open.heardOf(T.CLOSE).length, 1);
    assert.equal(open.publication.phase, "closing");
    const opening = new Scene().welcome();
    opening.publication.close();
    assert.equal(opening.heardOf(T.CLOSE).length, 1);
    assert.equal(opening.publication.phase, "closed");
  });

  it("that is closed with something unanswered lets nobody wait for it", () => {
    for (const lost of [false, true]) {
      const scene = new Scene().welcome().opened();
      scene.send("unanswered");
      scene.turn();
      scene.publication.close();
      assert.deepEqual(scene.errors(), [undefined]);
      const [close] = scene.heardOf(T.CLOSE);
      if (lost) {
        scene.session.lost(new ConnectionLostError("cut"));
      } else {
        scene.say(T.DONE, { [K.REF]: close?.header.get(K.REF) });
      }
      assert.deepEqual(scene.errors(), ["closed"]);
    }
  });

  it("that is closed while there is no connection is closed after the next WELCOME that resumes", () => {
    const scene = new Scene().welcome().opened();
    scene.session.lost(new ConnectionLostError("cut"));
    scene.publication.close();
    scene.session.detach(scene.publication);
    scene.session.connect(scene.now);
    scene.greet({ [K.RESUMED]: true });
    assert.equal(scene.heardOf(T.CLOSE)[0]?.header.get(K.HANDLE), HANDLE);
  });
});

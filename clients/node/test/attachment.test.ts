import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Attachment, type AttachmentOptions, joined } from "../src/attachment.js";
import { ConnectionLostError } from "../src/errors.js";
import type { Message } from "../src/message.js";
import { decodeHeader, K, T } from "../src/wire.js";
import { lengths, Stage } from "./stage.js";

const HANDLE = 1;

class Scene extends Stage {
  readonly attachment: Attachment;
  held: Message[] = [];

  constructor(options: Partial<AttachmentOptions> = {}) {
    super();
    this.attachment = new Attachment(HANDLE, {
      topic: "orders",
      subscription: "billing",
      type: "exclusive",
      start: null,
      priority: 0,
      force: false,
      arguments: new Map(),
      creditMessages: 10,
      patient: false,
      ...options,
    });
    this.session.attach(this.attachment, this.now);
  }

  opened(more: Record<number, unknown> = {}): this {
    const [open] = this.heardOf(T.OPEN_CONSUMER);
    const answer = { [K.REF]: open?.header.get(K.REF), [K.HANDLE]: HANDLE, [K.OFFSET]: 0 };
    this.say(T.OPENED, { ...answer, [K.STRATEGY]: "reliable", ...more });
    return this;
  }

  deliver(first: number, payloads: string[], more: Record<number, unknown> = {}): void {
    const count = payloads.length;
    const header = {
      [K.HANDLE]: HANDLE,
      [K.OFFSET]: first,
      [K.COUNT]: count,
      [K.TIMESTAMPS]: [count, 1_700_000_000_000],
    };
    this.say(T.DELIVER, { ...header, ...more }, lengths(...payloads));
  }

  /** Take so many messages as a program would; returns their offsets. */
  take(most: number): number[] {
    const taken: Message[] = [];
    while (taken.length < most) {
      const message = this.attachment.takeOne(this.now);
      if (message === null) {
        break;
      }
      taken.push(message);
    }
    this.held.push(...taken);
    return taken.map(({ offset }) => offset);
  }

  ack(...offsets: number[]): void {
    for (const offset of offsets) {
      const message = this.held.findLast((each) => each.offset === offset);
      this.attachment.ack(message as Message, () => this.now);
    }
  }

  /** The ranges of ACKs since the last look. */
  acknowledged(): unknown[] {
    return this.heardOf(T.ACK).map(({ header }) => header.get(K.RANGES));
  }

  reconnect(resumed: boolean, more: Record<number, unknown> = {}): this {
    this.session.lost(new ConnectionLostError("cut"));
    this.session.connect(this.now);
    this.heard();
    return this.greet({ [K.RESUMED]: resumed, ...more });
  }

  event(code: string, more: Record<number, unknown> = {}): void {
    this.say(T.EVENT, { [K.HANDLE]: HANDLE, [K.CODE]: code, ...more });
  }
}

describe("a consumer", () => {
  it("is given what was delivered, in order, with what lies beside it", () => {
    const scene = new Scene().welcome().opened();
    scene.deliver(5, ["a", "b"], { [K.ATTEMPT]: 2 });
    assert.deepEqual(scene.take(3), [5, 6]);
    assert.deepEqual(
      scene.held.map((message) => [message.text(), message.attempt, message.timestamp.getTime(), message.key]),
      [
        ["a", 2, 1_700_000_000_000, null],
        ["b", 2, 1_700_000_000_000, null],
      ],
    );
  });

  it("never has more credit than it was told to, and gives it back for what was taken alone", () => {
    const scene = new Scene().welcome();
    let granted = scene.heard().reduce((sum, { header }) => sum + ((header.get(K.MESSAGES) as number) ?? 0), 0);
    assert.equal(granted, 10);
    const scene2 = new Scene().welcome().opened();
    let [delivered, taken] = [0, 0];
    while (taken < 100) {
      while (delivered < granted) {
        scene2.deliver(delivered++, ["x"]);
      }
      taken += scene2.take(3).length;
      for (const { header } of scene2.heardOf(T.CREDIT)) {
        granted += header.get(K.MESSAGES) as number;
      }
      assert.ok(granted <= taken + 10, `${granted} were asked for, ${taken} taken`);
    }
  });

  it("follows the program's pace without a fixed credit", () => {
    const scene = new Scene({ creditMessages: null, type: "shared" }).welcome();
    let granted = scene.heard().reduce((sum, { header }) => sum + ((header.get(K.MESSAGES) as number) ?? 0), 0);
    assert.equal(granted, 2);
    const quick = new Scene({ creditMessages: null, type: "shared" }).welcome().opened();
    let [delivered, taken] = [0, 0];
    let most = 0;
    for (let turn = 0; turn < 2000; turn++) {
      while (delivered < granted) {
        quick.deliver(delivered++, ["x"]);
      }
      taken += quick.take(1).length;
      quick.now += 0.1;
      granted += quick.heardOf(T.CREDIT).reduce((sum, { header }) => sum + (header.get(K.MESSAGES) as number), 0);
      most = Math.max(most, granted - taken);
    }
    assert.ok(most > 500, `at most ${most} were kept ready for a program that takes ten a millisecond`);
    for (let turn = 0; turn < 100; turn++) {
      while (delivered < granted) {
        quick.deliver(delivered++, ["x"]);
      }
      taken += quick.take(1).length;
      quick.now += 1000; // now it takes a second for each
      granted += quick.heardOf(T.CREDIT).reduce((sum, { header }) => sum + (header.get(K.MESSAGES) as number), 0);
    }
    granted = Math.max(granted, delivered);
    for (let turn = 0; turn < 20_000 && granted - taken > 2; turn++) {
      taken += quick.take(1).length;
      quick.now += 1000;
      granted += quick.heardOf(T.CREDIT).reduce((sum, { header }) => sum + (header.get(K.MESSAGES) as number), 0);
      while (delivered < granted) {
        quick.deliver(delivered++, ["x"]);
      }
    }
    assert.ok(granted - taken <= 2, `${granted - taken} wait for a program that takes a second for each`);
  });

  it("gathers acknowledgments for some milliseconds, and joins them", () => {
    const scene = new Scene().welcome().opened();
    scene.deliver(0, ["a", "b", "c", "d"]);
    scene.take(4);
    scene.ack(0, 1, 3);
    assert.deepEqual(scene.acknowledged(), []);
    scene.pass(5);
    assert.deepEqual(scene.acknowledged(), [[0, 2, 3, 4]]);
  });

  it("is settled when DONE covers everything, and asks for it once", () => {
    const scene = new Scene().welcome().opened();
    scene.deliver(0, ["a", "b"]);
    scene.take(2);
    scene.ack(0, 1);
    scene.attachment.sendAcks({ confirm: true });
    scene.attachment.sendAcks({ confirm: true });
    const [ack, ...rest] = scene.heardOf(T.ACK);
    assert.deepEqual(rest, []);
    assert.equal(scene.attachment.settled, false);
    scene.say(T.DONE, { [K.REF]: ack?.header.get(K.REF) });
    assert.equal(scene.attachment.settled, true);
  });

  it("splits more ranges than a frame may have, with the REF on the last", () => {
    const scene = new Scene({ creditMessages: 2000 }).welcome().opened();
    scene.deliver(0, new Array(1700).fill("x"));
    scene.take(1700);
    scene.held
      .filter(({ offset }) => offset % 2 === 0)
      .reverse()
      .forEach((message) => {
        scene.attachment.ack(message, () => scene.now);
      });
    scene.attachment.sendAcks({ confirm: true });
    const acks = scene.heardOf(T.ACK);
    const ranges = acks.map(({ header }) => (header.get(K.RANGES) as number[]).length / 2);
    assert.equal(
      ranges.reduce((sum, count) => sum + count),
      850,
    );
    assert.ok(ranges.every((count) => count <= 400));
    assert.deepEqual(
      acks.map(({ header }) => header.has(K.REF)),
      acks.map((_, i) => i === acks.length - 1),
    );
  });

  it("sends unconfirmed acknowledgments twice over a resumed session: before it opens again, and after", () => {
    const scene = new Scene().welcome().opened();
    scene.deliver(0, ["a", "b", "c"]);
    scene.take(2);
    scene.ack(0);
    scene.pass(5);
    scene.ack(1);
    scene.reconnect(true);
    const [first, open, ...rest] = scene.heard();
    assert.deepEqual([first?.header.get(K.TYPE), first?.header.get(K.RANGES)], [T.ACK, [0, 2]]);
    assert.equal(open?.header.get(K.TYPE), T.OPEN_CONSUMER);
    assert.deepEqual(rest, []);
    scene.say(T.OPENED, {
      [K.REF]: open?.header.get(K.REF),
      [K.HANDLE]: HANDLE,
      [K.OFFSET]: 3,
      [K.STRATEGY]: "reliable",
    });
    assert.deepEqual(scene.acknowledged(), [[0, 2]]);
    assert.equal(scene.attachment.forgotten, false);
    assert.deepEqual(scene.take(1), []); // what waited is dropped: it comes again
  });

  it("sends none after a session that was forgotten, or of a subscription that was made anew", () => {
    for (const [resumed, instance] of [
      [false, "one"],
      [true, "two"],
    ] as const) {
      const scene = new Scene().welcome().opened({ [K.INSTANCE]: "one" });
      scene.deliver(0, ["a", "b"]);
      scene.take(2);
      scene.ack(0);
      scene.reconnect(resumed);
      scene.heard();
      scene.session.lost(new ConnectionLostError("cut"));
      scene.session.connect(scene.now);
      scene.greet({ [K.RESUMED]: resumed });
      scene.opened({ [K.INSTANCE]: instance });
      scene.ack(1);
      scene.pass(10);
      assert.deepEqual(scene.acknowledged(), []);
      assert.equal(scene.attachment.forgotten, true);
    }
  });

  it("drops what it holds when the subscription is moved, and gives the credit back", () => {
    const scene = new Scene().welcome().opened();
    scene.deliver(0, ["a", "b", "c"]);
    scene.deliver(3, ["d"]);
    scene.take(1);
    scene.heard();
    scene.event("sought", { [K.OFFSET]: 2 });
    assert.equal(scene.heardOf(T.CREDIT)[0]?.header.get(K.MESSAGES), 4);
    scene.ack(0);
    scene.pass(5);
    assert.deepEqual(scene.acknowledged(), []);
    assert.equal(scene.attachment.forgotten, false); // nothing comes again that was not meant to
    scene.deliver(2, ["c"]);
    assert.deepEqual(scene.take(2), [2]);
  });

  it("is given the messages of a delivery with gaps at their offsets", () => {
    const scene = new Scene().welcome().opened();
    scene.deliver(4, ["a", "b", "c"], { [K.RANGES]: [4, 5, 7, 9] });
    assert.deepEqual(scene.take(3), [4, 7, 8]);
  });

  it("costs the connection where a delivery does not hold what it says", () => {
    for (const more of [
      { [K.COUNT]: 2 },
      { [K.TIMESTAMPS]: [2, 0] },
      { [K.RANGES]: [0, 2] },
      { [K.RANGES]: [1, 2] },
      { [K.COLUMNS]: 1 },
      { [K.OFFSET]: 2n ** 63n }, // an acknowledgment of it could not be said
      { [K.OFFSET]: 2n ** 53n, [K.RANGES]: [2n ** 53n, 2n ** 53n + 1n] },
    ]) {
      const scene = new Scene().welcome().opened();
      scene.deliver(0, ["a"], more);
      assert.equal(scene.session.phase, "idle");
      assert.deepEqual(scene.take(1), []);
    }
  });

  it("costs the connection where it is opened at an offset that no number can hold", () => {
    const scene = new Scene({ type: "reader", start: "earliest" }).welcome().opened({ [K.OFFSET]: 2n ** 60n });
    assert.equal(scene.session.phase, "idle");
  });

  it("gives up at once what somebody else has, unless it is patient", () => {
    for (const patient of [false, true]) {
      const scene = new Scene({ patient }).welcome();
      const [open] = scene.heardOf(T.OPEN_CONSUMER);
      const busy = { [K.CODE]: "subscription-busy", [K.TEXT]: "taken", [K.ACTION]: "retry" };
      scene.say(T.ERROR, { [K.REF]: open?.header.get(K.REF), [K.HANDLE]: HANDLE, ...busy });
      scene.pass(500);
      assert.equal(scene.attachment.error?.code, patient ? undefined : "subscription-busy");
      assert.equal(scene.heardOf(T.OPEN_CONSUMER).length, patient ? 1 : 0);
    }
  });

  it("says FORCE once", () => {
    const scene = new Scene({ force: true }).welcome();
    const [first] = scene.heardOf(T.OPEN_CONSUMER);
    assert.equal(first?.header.get(K.FORCE), true);
    scene.say(T.OPENED, { [K.REF]: first?.header.get(K.REF), [K.HANDLE]: HANDLE, [K.OFFSET]: 0 });
    scene.reconnect(true);
    assert.equal(scene.heardOf(T.OPEN_CONSUMER)[0]?.header.has(K.FORCE), false);
  });

  it("does not ask for options again that somebody changed meanwhile", () => {
    const scene = new Scene({ arguments: new Map([["max_deliveries", 3]]) }).welcome().opened();
    scene.reconnect(false);
    const [open] = scene.heardOf(T.OPEN_CONSUMER);
    const changed = { [K.CODE]: "subscription-options", [K.TEXT]: "", [K.ACTION]: "fix" };
    scene.say(T.ERROR, { [K.REF]: open?.header.get(K.REF), [K.HANDLE]: HANDLE, ...changed });
    scene.pass(500);
    assert.equal(scene.heardOf(T.OPEN_CONSUMER)[0]?.header.has(K.ARGUMENTS), false);
  });

  it("sends a REASON and a DELAY with what it gives back, and no DELAY for the back-off", () => {
    const scene = new Scene().welcome().opened();
    scene.deliver(0, ["a", "b"]);
    scene.take(2);
    scene.attachment.nack(scene.held, 0, "bad");
    scene.attachment.nack(scene.held, null, "");
    const [first, second] = scene.heardOf(T.NACK);
    assert.deepEqual([first?.header.get(K.RANGES), first?.header.get(K.DELAY)], [[0, 2], 0]);
    assert.equal(first?.header.get(K.REASON), "bad");
    assert.deepEqual([second?.header.has(K.DELAY), second?.header.has(K.REASON)], [false, false]);
  });

  it("gives no credit back for what came before it opened again, though a reader goes on with it (9.4-9)", () => {
    const scene = new Scene({ type: "reader" });
    scene.welcome();
    scene.opened();
    scene.deliver(0, ["a", "b", "c", "d", "e", "f", "g", "h"]);
    assert.equal(scene.attachment.takeSome(3, scene.now)?.length, 3);
    scene.reconnect(true);
    scene.opened();
    scene.heard();
    assert.equal(scene.attachment.takeSome(10, scene.now)?.length, 5);
    assert.deepEqual(scene.heardOf(T.CREDIT), []);
    scene.deliver(8, ["i", "j", "k", "l", "m", "n", "o", "p"]);
    assert.equal(scene.attachment.takeSome(10, scene.now)?.length, 8);
    scene.attachment.takeSome(10, scene.now);
    const given = scene.heardOf(T.CREDIT).map(({ header }) => header.get(K.MESSAGES) as number);
    assert.equal(
      given.reduce((sum, each) => sum + each, 0),
      8,
    );
  });

  it("says of which moves it has heard", () => {
    for (const [counted, first, then] of [
      [0, undefined, 1],
      [3, 3, 4],
      [undefined, undefined, undefined],
    ] as const) {
      const again = new Scene();
      again.welcome();
      const [open] = again.session.outbox.slice(-1);
      assert.equal(decodeHeader(open?.[0] as Uint8Array).get(K.SOUGHT), 0);
      const talk = new Scene().welcome() as Scene;
      talk.opened(counted === undefined ? {} : { [K.SOUGHT]: counted });
      talk.deliver(0, ["a", "b"]);
      talk.take(2);
      talk.heard();
      talk.ack(0);
      talk.attachment.ackUntil(talk.held[1] as Message, () => talk.now);
      talk.attachment.sendAcks();
      talk.attachment.nack([talk.held[1] as Message], null, "");
      talk.attachment.extend([talk.held[1] as Message]);
      const said = talk.heard().map(({ header }) => [header.get(K.TYPE), header.get(K.SOUGHT)]);
      assert.deepEqual(
        said,
        [T.ACK_UNTIL, T.ACK, T.NACK, T.EXTEND].map((type) => [type, first]),
      );
      talk.event("sought", counted === undefined ? {} : { [K.SOUGHT]: counted + 1 });
      talk.deliver(0, ["a"]);
      talk.take(1);
      talk.heard();
      talk.ack(0);
      talk.attachment.sendAcks();
      assert.deepEqual(
        talk.heardOf(T.ACK).map(({ header }) => header.get(K.SOUGHT)),
        [then],
      );
    }
  });
});

describe("a consumer that tells what its program takes", () => {
  it("says so before it hands a message out, with the acknowledgments first", () => {
    const scene = new Scene().welcome().opened({ [K.TAKEN]: 0 });
    scene.deliver(0, ["a", "b"]);
    scene.take(1);
    assert.equal(scene.heardOf(T.CREDIT)[0]?.header.get(K.TAKEN), 1);
    scene.ack(0);
    scene.now += 100; // the program takes long over each
    scene.take(1);
    assert.deepEqual(
      scene.heard().map(({ header }) => [header.get(K.TYPE), header.get(K.TAKEN)]),
      [
        [T.ACK, undefined],
        [T.CREDIT, 2],
      ],
    );
  });

  it("says it for many at once where the program is quick", () => {
    const scene = new Scene({ creditMessages: 5000 }).welcome().opened({ [K.TAKEN]: 0 });
    scene.deliver(0, new Array(4000).fill("x"));
    for (let i = 0; i < 4000; i++) {
      scene.take(1);
      scene.now += 0.001;
    }
    assert.ok(scene.heardOf(T.CREDIT).length < 50);
  });

  it("hands one that is delivered SINGLY out when the broker knows, and the one behind it too", () => {
    const scene = new Scene().welcome().opened({ [K.TAKEN]: 0 });
    scene.deliver(0, ["a", "b"], { [K.SINGLY]: true });
    scene.deliver(2, ["c", "d"]);
    for (const [taken, offset] of [
      [1, 0],
      [2, 1],
      [3, 2],
    ]) {
      assert.deepEqual(scene.take(1), []);
      assert.deepEqual(scene.take(1), []);
      const [asked, ...rest] = scene.heardOf(T.CREDIT);
      assert.deepEqual(rest, []);
      assert.equal(asked?.header.get(K.TAKEN), taken);
      scene.say(T.DONE, { [K.REF]: asked?.header.get(K.REF) });
      assert.deepEqual(scene.take(1), [offset]);
    }
    assert.deepEqual(scene.take(1), [3]);
  });

  it("drops what is recalled, goes on counting behind it, and gives credit when the program asks", () => {
    const scene = new Scene().welcome().opened({ [K.TAKEN]: 0 });
    scene.deliver(0, ["a", "b", "c"]);
    scene.take(1);
    scene.heard();
    scene.event("recalled");
    assert.deepEqual(scene.heard(), []);
    scene.now += 50;
    assert.deepEqual(scene.take(1), []);
    assert.equal(scene.heardOf(T.CREDIT)[0]?.header.get(K.MESSAGES), 10);
    scene.deliver(1, ["b"]);
    scene.take(1);
    assert.equal(scene.heardOf(T.CREDIT)[0]?.header.get(K.TAKEN), 4);
  });

  it("gives back with its blame everything in hand", () => {
    const scene = new Scene().welcome().opened({ [K.TAKEN]: 0 });
    scene.deliver(0, ["a", "b"]);
    scene.take(1);
    scene.attachment.blame("TypeError: no");
    const [nack] = scene.heardOf(T.NACK);
    assert.deepEqual([nack?.header.get(K.RANGES), nack?.header.get(K.TAKEN)], [[], 1]);
  });
});

describe("a reader", () => {
  const reader = { type: "reader", start: "earliest" } as const;

  it("opens again at the first message that it has not handed out, and acknowledges nothing", () => {
    const scene = new Scene(reader).welcome().opened();
    scene.deliver(0, ["a"]);
    scene.deliver(1, ["b"]);
    scene.take(1);
    scene.ack(0);
    scene.reconnect(false);
    const heard = scene.heard();
    assert.deepEqual(
      heard.map(({ header }) => header.get(K.TYPE)),
      [T.OPEN_CONSUMER],
    );
    assert.equal(heard[0]?.header.get(K.START), 1);
  });

  it("ends as at topic-deleted where it finds another topic of that name", () => {
    const scene = new Scene(reader).welcome().opened({ [K.INSTANCE]: "one" });
    scene.reconnect(false);
    scene.opened({ [K.INSTANCE]: "two" });
    assert.equal(scene.attachment.error?.code, "topic-deleted");
    assert.equal(scene.heardOf(T.CLOSE).length, 1);
  });
});

it("ranges that touch or overlap are joined", () => {
  assert.deepEqual(
    joined([
      [5, 6],
      [0, 2],
      [2, 3],
      [1, 2],
    ]),
    [
      [0, 3],
      [5, 6],
    ],
  );
});

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { encode } from "cborg";
import { ClosedError, ConnectionLostError } from "../src/errors.js";
import { Request } from "../src/session.js";
import { K, T } from "../src/wire.js";
import { SECRET, Stage } from "./stage.js";

function asked(stage: Stage, operation = "status"): Request {
  const request = new Request(operation, new Map(), () => {});
  stage.session.request(request, stage.now);
  return request;
}

describe("a session", () => {
  it("says HELLO, and nothing else before WELCOME", () => {
    const stage = new Stage();
    stage.session.connect(stage.now);
    asked(stage);
    const [hello, ...rest] = stage.heard();
    assert.equal(hello?.header.get(K.TYPE), T.HELLO);
    assert.deepEqual(hello?.header.get(K.VERSION), [1]);
    assert.deepEqual(rest, []);
    stage.greet();
    assert.equal(stage.heardOf(T.REQUEST).length, 1);
  });

  it("resumes with the secret that it was told", () => {
    const stage = new Stage().welcome();
    stage.session.lost(new ConnectionLostError("cut"));
    stage.session.connect(stage.now);
    assert.deepEqual(Buffer.from(stage.heard()[0]?.header.get(K.SESSION) as Uint8Array), SECRET);
  });

  it("uses no REF twice in a session that another connection had", () => {
    const first = new Stage().welcome();
    asked(first);
    const before = first.session.lastRef;
    const second = new Stage();
    second.session.inherit(SECRET, [7], before);
    second.welcome({ [K.RESUMED]: true });
    asked(second);
    const said = second.heard().map(({ header }) => [header.get(K.TYPE), header.get(K.REF)]);
    assert.deepEqual(said, [
      [T.CLOSE, before + 1], // of what was left open there
      [T.REQUEST, before + 2],
    ]);
  });

  it("forgets it at session-expired, and not at hello-required", () => {
    for (const [code, secret] of [
      ["hello-required", SECRET],
      ["session-expired", undefined],
    ] as const) {
      const stage = new Stage().welcome();
      stage.say(T.ERROR, { [K.CODE]: code, [K.TEXT]: "", [K.ACTION]: "retry" });
      assert.equal(stage.session.phase, "idle");
      stage.session.connect(stage.now);
      const said = stage.heard()[0]?.header.get(K.SESSION) as Uint8Array | undefined;
      assert.deepEqual(said && Buffer.from(said), secret);
    }
  });

  it("asks again what has no answer, under another REF", () => {
    const stage = new Stage().welcome();
    const request = asked(stage);
    const before = stage.heardOf(T.REQUEST)[0]?.header.get(K.REF);
    stage.session.lost(new ConnectionLostError("cut"));
    stage.welcome({ [K.RESUMED]: true });
    const after = stage.heardOf(T.REQUEST)[0]?.header.get(K.REF) as number;
    assert.notEqual(after, before);
    assert.equal(request.resent, true);
    stage.say(T.RESULT, { [K.REF]: after }, [encode(new Map([["a", 1]]))]);
    assert.deepEqual([request.done, request.error], [true, null]);
  });

  it("asks again after a back-off where the answer is retry", () => {
    const stage = new Stage().welcome();
    const request = asked(stage);
    const ref = stage.heardOf(T.REQUEST)[0]?.header.get(K.REF);
    stage.say(T.ERROR, { [K.REF]: ref, [K.CODE]: "unavailable", [K.TEXT]: "", [K.ACTION]: "retry" });
    assert.equal(request.trouble?.code, "unavailable");
    stage.pass(10);
    assert.deepEqual(stage.heardOf(T.REQUEST), []);
    stage.pass(100);
    assert.equal(stage.heardOf(T.REQUEST).length, 1);
  });

  it("fails a question for good where the answer is fix, by the code of the broker", () => {
    const stage = new Stage().welcome();
    const request = asked(stage);
    const ref = stage.heardOf(T.REQUEST)[0]?.header.get(K.REF);
    stage.say(T.ERROR, { [K.REF]: ref, [K.CODE]: "unknown-topic", [K.TEXT]: "none", [K.ACTION]: "fix" });
    assert.deepEqual([request.error?.code, request.error?.action], ["unknown-topic", "fix"]);
  });

  it("waits for nobody after an error about the whole connection: all is asked anew", () => {
    const stage = new Stage().welcome();
    const request = asked(stage);
    stage.say(T.ERROR, { [K.CODE]: "malformed", [K.TEXT]: "", [K.ACTION]: "fix" });
    assert.equal(stage.session.phase, "idle");
    stage.welcome();
    assert.equal(stage.heardOf(T.REQUEST).length, 1);
    assert.equal(request.done, false);
  });

  it("sends one PING a heartbeat, and is lost after three heartbeats of silence", () => {
    const stage = new Stage().welcome({ [K.HEARTBEAT]: 1000 });
    stage.pass(999);
    assert.deepEqual(stage.heard(), []);
    stage.pass(1);
    assert.equal(stage.heardOf(T.PING).length, 1);
    stage.pass(1500);
    assert.deepEqual(stage.heard(), []);
    stage.pass(500);
    assert.equal(stage.session.phase, "idle");
    assert.match(stage.session.trouble?.message ?? "", /silent for 3000 ms/);
  });

  it("takes any frame for a sign of life", () => {
    const stage = new Stage().welcome({ [K.HEARTBEAT]: 1000 });
    stage.pass(1000);
    stage.say(T.DONE, { [K.REF]: 12_345 });
    stage.pass(999);
    assert.equal(stage.session.phase, "ready");
  });

  it("gives up a greeting without an answer after three seconds", () => {
    const stage = new Stage();
    stage.session.connect(stage.now);
    stage.pass(3000);
    assert.equal(stage.session.phase, "idle");
  });

  it("ends where the broker has no version in common", () => {
    const stage = new Stage();
    stage.session.connect(stage.now);
    const request = asked(stage);
    stage.say(T.ERROR, { [K.CODE]: "unsupported-version", [K.TEXT]: "", [K.ACTION]: "stop" });
    assert.equal(stage.session.phase, "ended");
    assert.equal(request.error?.code, "unsupported-version");
  });

  it("says BYE at the end, and fails what waits", () => {
    const stage = new Stage().welcome();
    const request = asked(stage);
    stage.heard();
    stage.session.end(new ClosedError("the client"));
    assert.equal(stage.heardOf(T.BYE).length, 1);
    assert.equal(request.error?.code, "closed");
  });

  it("loses the connection over what breaks the document, and acts on none of it", () => {
    for (const frames of [
      [],
      [Buffer.alloc(0)],
      [Buffer.from("a10003", "hex")],
      [Buffer.from("a2001828010100", "hex")],
    ]) {
      const stage = new Stage().welcome();
      stage.session.receive(frames, stage.now);
      assert.equal(stage.session.phase, "idle");
    }
  });
});

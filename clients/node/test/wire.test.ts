import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { decode, encode } from "cborg";
import { IsterError, ProtocolError, UsageError } from "../src/errors.js";
import {
  decodeAttributes,
  decodeHeader,
  decodeResult,
  encodeAttributes,
  encodeHeader,
  encodeNumbers,
  Float,
  K,
  T,
  toArguments,
  toPlainObject,
} from "../src/wire.js";
import { vectors } from "./stage.js";

interface HeaderVector {
  name: string;
  frames: string[];
  header?: Record<string, unknown>;
  error?: string;
}

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(" ", ""), "hex");

function refused(error: string, what: () => unknown): void {
  assert.throws(what, (thrown) => thrown instanceof IsterError && thrown.code === error);
}

describe("headers, by the vectors", () => {
  for (const name of ["headers-to-client", "headers-to-broker"]) {
    for (const vector of vectors<HeaderVector[]>(name)) {
      // what is wrong in a client's frame that its broker alone can know is not this codec's to find
      const ours = name === "headers-to-client" && vector.name !== "clients-type";
      it(`${name}: ${vector.name}`, () => {
        const frame = hex(vector.frames[0] ?? "");
        if (vector.error !== undefined) {
          if (ours) {
            refused(vector.error, () => decodeHeader(frame));
          }
          return;
        }
        assert.deepEqual(
          [...decodeHeader(frame).keys()].sort(),
          Object.keys(vector.header ?? {})
            .map(Number)
            .sort(),
        );
      });
    }
  }

  it("every frame of every transcript that somebody can read is read", () => {
    const steps = vectors<{ steps: { frames?: string[]; frame?: string | null }[] }>("transcript-whole-conversation");
    const frames = steps.steps.filter((step) => step.frames !== undefined && step.frame !== null);
    assert.ok(frames.length > 10);
    for (const { frames: [first] = [] } of frames) {
      decodeHeader(hex(first as string));
    }
  });
});

describe("what the CBOR library takes for something else", () => {
  it("a float that is whole is no integer", () => {
    assert.equal(decode(hex("f93c00")), 1); // cborg 6.1.5: the same number as 01
    refused("malformed", () => decodeHeader(hex("a2 00 18 29 01 f93c00")));
    const unknown = decodeHeader(hex("a2 00 18 29 19 0fa0 f93c00")).get(4000);
    assert.ok(unknown instanceof Float); // in a key that nobody knows it may be
    assert.equal(toPlainObject(unknown as Float), 1);
  });

  it("integers in more bytes than they need are integers", () => {
    assert.throws(() => decode(hex("1801"), { strict: true })); // cborg 6.1.5: "strict" refuses them
    assert.equal(decodeHeader(hex("a2 00 1b 0000000000000029 01 1801")).get(K.REF), 1);
  });

  it("text that is not UTF-8 is refused, not mended", () => {
    assert.equal(decode(hex("61ff")), "\ufffd"); // cborg 6.1.5
    refused("malformed", () => decodeHeader(hex("a4 00 18 25 10 6162 11 61ff 12 63666978")));
    refused("malformed", () => decodeAttributes(hex("a1 6161 63eda080")));
  });

  it("a byte order mark at the beginning of text is kept", () => {
    assert.equal(decode(encode("\ufeffa")), "a"); // cborg 6.1.5
    assert.deepEqual(decodeAttributes(encodeAttributes({ "\ufeffa": "\ufeffb" })), { "\ufeffa": "\ufeffb" });
  });

  it("undefined and tags are refused", () => {
    assert.equal(decode(hex("f7")), undefined); // cborg 6.1.5
    refused("malformed", () => decodeHeader(hex("a2 00 18 29 01 f7")));
    refused("malformed", () => decodeHeader(hex("a2 00 18 29 19 0fa0 f7")));
    refused("malformed", () => decodeHeader(hex("a2 00 18 29 01 c24101")));
  });

  it("thousands of levels are refused like five", () => {
    refused("malformed", () => decodeHeader(hex("a2 00 18 29 19 0fa0 81 81 81 81 00")));
    refused("malformed", () =>
      decodeHeader(Buffer.concat([hex("a200182919 0fa0"), Buffer.alloc(8000, 0x81), hex("00")])),
    );
    const deep = Buffer.concat([hex("a1 6161"), Buffer.alloc(500_000, 0x81), hex("00")]);
    refused("malformed", () => decodeResult(deep));
  });

  it("numbers that it would send as floats, or as U+FFFD, are not sent", () => {
    assert.equal(encode(2 ** 53)[0], 0xfa); // cborg 6.1.5: a float
    assert.throws(() => encodeHeader(new Map([[K.REF, 2 ** 53]])), UsageError);
    assert.throws(() => encodeHeader(new Map([[K.REF, 1.5]])), UsageError);
    assert.throws(() => encodeHeader(new Map([[K.REF, Number.NaN]])), UsageError);
    assert.throws(() => encodeHeader(new Map([[K.TEXT, "\ud800"]])), UsageError);
    assert.throws(() => encodeAttributes({ colour: "\udfff" }), UsageError);
    assert.throws(() => toArguments({ pause: null }), UsageError); // it would be sent as null
    assert.deepEqual([...toArguments({ pause: undefined, limit: 5 })], [["limit", 5]]); // and this as undefined
  });

  it("bigints above 2^53-1 are sent and read as the integers they are", () => {
    const most = 2n ** 64n - 1n;
    const frame = encodeHeader(
      new Map<number, number | bigint>([
        [K.TYPE, T.PONG],
        [K.BOOT, most],
      ]),
    );
    assert.equal(decodeHeader(frame).get(K.BOOT), most);
    assert.equal(decodeHeader(frame).get(K.TYPE), T.PONG);
  });
});

describe("the codec", () => {
  it("writes frames of numbers as the library would, to a reader", () => {
    const most = Number.MAX_SAFE_INTEGER;
    for (const value of [0, 23, 24, 255, 256, 65_535, 65_536, 2 ** 32 - 1, 2 ** 32, 2 ** 40 + 5, most]) {
      const frame = encodeNumbers([K.TYPE, T.PUBLISH, K.HANDLE, 1, K.SEQUENCE, value]);
      assert.equal(
        Buffer.from(frame).toString("hex"),
        Buffer.from(
          encode(
            new Map([
              [0, 5],
              [2, 1],
              [5, value],
            ]),
          ),
        ).toString("hex"),
      );
    }
  });

  it("keeps an attribute that is called __proto__", () => {
    const attributes = JSON.parse('{"__proto__": "x", "größe": "ü", "": ""}');
    const found = decodeAttributes(encodeAttributes(attributes));
    assert.deepEqual(Object.entries(found).sort(), Object.entries(attributes).sort()); // the library sorts keys
    assert.equal(Object.getPrototypeOf(found), Object.prototype);
  });

  it("refuses a header over 8192 bytes, in both directions", () => {
    assert.throws(
      () =>
        encodeHeader(
          new Map<number, number | string>([
            [K.TYPE, 12],
            [K.TEXT, "x".repeat(8192)],
          ]),
        ),
      UsageError,
    );
    assert.throws(() => decodeHeader(Buffer.alloc(8193)), ProtocolError);
  });

  it("says of a wrong result and of wrong attributes that they are malformed", () => {
    refused("malformed", () => decodeResult(hex("80")));
    refused("malformed", () => decodeResult(hex("a1 01 01")));
    refused("malformed", () => decodeAttributes(hex("a1 6161 01")));
    assert.deepEqual(toPlainObject(decodeResult(hex("a2 6161 20 6162 fb3ff8000000000000"))), { a: -1, b: 1.5 });
  });
});

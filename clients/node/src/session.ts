// The client's side of a session with one worker: messages in, messages out. Section 7 of PROTOCOL.md. Pure: no
// socket, clock or timer lives here; times are milliseconds of the caller's clock.
//
// Invariants
// - nothing but HELLO is sent before WELCOME, and nothing after the end
// - a question is answered once, or asked again over the next connection, or failed by the end of the session
// - at most one PING is on its way

import { BrokerError, ConnectionLostError, type IsterError, ProtocolError } from "./errors.js";
import { decodeHeader, encodeHeader, encodeNumbers, type Header, K, type Sendable, T, text, uint } from "./wire.js";

export const PROTOCOL_VERSION = 1;
const GREETING_MS = 3000;
const HEARTBEAT_LEAST_MS = 50;
const BACK_OFF_FIRST_MS = 50;
const BACK_OFF_LAST_MS = 2000;
export const NEVER = Number.POSITIVE_INFINITY;

/** The wait before another try, which doubles; `jitter` is from 0 to 1. */
export function backOffMs(failures: number, jitter: number): number {
  const whole = Math.min(BACK_OFF_FIRST_MS * 2 ** Math.min(failures, 16), BACK_OFF_LAST_MS);
  return whole * (0.5 + jitter);
}

/** What WELCOME says; section 12. */
export interface Limits {
  messageBytesMax: number;
  batchBytesMax: number;
  batchesInFlightMax: number;
  windowBytes: number;
  creditMessagesMax: number;
  creditBytesMax: number;
}

export type Frames = Uint8Array[];
/** What a frame's answer, or a frame for a handle, is given to. */
export type Answer = (header: Header, body: Frames, now: number) => void;
export type SessionPhase = "idle" | "greeting" | "ready" | "ended";

/** A producer's or consumer's side of the conversation. */
export interface Handle {
  readonly handle: number;
  session: Session | null;
  /** WELCOME came: open (again). */
  onReady(resumed: boolean, now: number): void;
  /** The connection is gone, and with it what was on the wire. */
  onLost(reason: IsterError): void;
  onFrame(header: Header, body: Frames, now: number): void;
  /** Open again at that time, for this reason. */
  postpone(error: IsterError, due: number): void;
  fail(error: IsterError): void;
  tick(now: number): void;
  /** When `tick` is wanted next. */
  deadline(): number;
}

/** One REQUEST, kept over lost connections until it is answered. */
export class Request {
  result: Uint8Array | null = null;
  error: IsterError | null = null;
  done = false;
  /** It was sent more than once, and may have been carried out twice. */
  resent = false;
  /** Why it is being tried again. */
  trouble: IsterError | null = null;
  failures = 0;
  due = 0;

  constructor(
    readonly operation: string,
    readonly args: Map<string, Sendable>,
    private readonly changed: () => void,
  ) {}

  finish(result: Uint8Array | null, error: IsterError | null): void {
    if (!this.done) {
      this.done = true;
      this.result = result;
      this.error = error;
      this.changed();
    }
  }
}

const ACTIONS = ["retry", "fix", "stop"];

/** The error that a header holds. */
export function errorOf(header: Header): BrokerError {
  const action = text(header, K.ACTION);
  return new BrokerError(
    text(header, K.CODE),
    ACTIONS.includes(action) ? (action as "retry") : "stop",
    text(header, K.TEXT),
  );
}

export class Session {
  phase: SessionPhase = "idle";
  readonly outbox: Frames[] = [];
  readonly handles = new Map<number, Handle>();
  limits: Limits = {
    messageBytesMax: 1 << 20,
    batchBytesMax: 1 << 20,
    batchesInFlightMax: 1,
    windowBytes: 1 << 20,
    creditMessagesMax: 65_536,
    creditBytesMax: 1 << 30,
  };
  secret: Uint8Array | null = null;
  /** Why the connection was last lost, or refused. */
  trouble: IsterError | null = null;
  /** Something is in the outbox. */
  onOutput: () => void = () => {};
  /** Something is due at that time, perhaps sooner than anything before. */
  onDue: (at: number) => void = () => {};
  /** The phase is another one. */
  onPhase: () => void = () => {};
  onMoved: (handle: Handle, endpoint: string) => void = () => {};

  private refs = 0;
  private answers = new Map<number, Answer>();
  private waiting: Request[] = [];
  private asked = new Map<number, Request>();
  private readonly departed = new Set<number>(); // handles closed while there was nobody to tell
  private heartbeat = 5000;
  private greeted = 0;
  private spoken = 0;
  private heard = 0;
  private pinged: number | null = null;

  /** `client` is a text for people; `jitter` returns random numbers from 0 to 1. */
  constructor(
    private readonly client: string,
    readonly jitter: () => number,
  ) {}

  private enter(phase: SessionPhase): void {
    this.phase = phase;
    this.onPhase();
  }

  // ---- the connection ---------------------------------------------------------------------------------------------

  /** There is a new socket: say HELLO. */
  connect(now: number): void {
    if (this.phase !== "idle") {
      return;
    }
    this.phase = "greeting";
    this.outbox.length = 0;
    this.pinged = null;
    this.greeted = this.spoken = this.heard = now;
    const hello = new Map<number, Sendable>([
      [K.TYPE, T.HELLO],
      [K.VERSION, [PROTOCOL_VERSION]],
      [K.CLIENT, this.client],
    ]);
    if (this.secret !== null) {
      hello.set(K.SESSION, this.secret);
    }
    this.emit(hello);
    this.onDue(now + GREETING_MS);
  }

  /** The socket is gone, or as good as gone. */
  lost(reason: IsterError): void {
    if (this.phase !== "greeting" && this.phase !== "ready") {
      return;
    }
    this.trouble = reason;
    this.outbox.length = 0;
    this.answers.clear();
    for (const request of this.asked.values()) {
      request.resent = true;
      request.trouble = reason;
      request.due = 0;
      this.waiting.push(request);
    }
    this.asked.clear();
    this.phase = "idle";
    for (const handle of [...this.handles.values()]) {
      handle.onLost(reason);
    }
    this.onPhase();
  }

  /** The next HELLO goes to a worker that has never heard of this session, or gave us that secret. */
  forget(secret: Uint8Array | null = null): void {
    this.secret = secret;
  }

  /** The last REF that was used. */
  get lastRef(): number {
    return this.refs;
  }

  /** Continue with a session that another connection to this worker had; those handles are open in it, and REFs up to
   * that one were used. */
  inherit(secret: Uint8Array, handles: Iterable<number>, lastRef: number): void {
    this.secret = secret;
    this.refs = Math.max(this.refs, lastRef);
    for (const handle of handles) {
      this.departed.add(handle);
    }
  }

  /** Say BYE and be done; whatever still waits fails. */
  end(reason: IsterError): void {
    if (this.phase === "ended") {
      return;
    }
    if (this.phase === "ready") {
      this.emit(new Map([[K.TYPE, T.BYE]]));
    }
    this.trouble = reason;
    this.enter("ended");
    this.failAll(reason);
  }

  private failAll(reason: IsterError): void {
    this.answers.clear();
    const requests = [...this.asked.values(), ...this.waiting];
    this.asked.clear();
    this.waiting = [];
    for (const request of requests) {
      request.finish(null, reason);
    }
    for (const handle of [...this.handles.values()]) {
      handle.fail(reason);
    }
  }

  // ---- speaking ---------------------------------------------------------------------------------------------------

  emit(header: Map<number, Sendable>): void {
    this.outbox.push([encodeHeader(header)]);
    this.onOutput();
  }

  /** The same for a header of numbers alone. */
  emitNumbers(pairs: readonly number[], body: Frames = []): void {
    this.outbox.push([encodeNumbers(pairs), ...body]);
    this.onOutput();
  }

  /** A new REF, whose answer is given to the function; a lost connection drops it. */
  expect(answer: Answer): number {
    this.answers.set(++this.refs, answer);
    return this.refs;
  }

  /** Take a producer or consumer in; it opens at once, or when WELCOME comes. */
  attach(handle: Handle, now: number): void {
    handle.session = this;
    this.handles.set(handle.handle, handle);
    this.departed.delete(handle.handle);
    if (this.phase === "ready") {
      handle.onReady(false, now);
    } else if (this.phase === "ended") {
      handle.fail(this.trouble ?? new ConnectionLostError("the session is over"));
    }
  }

  /** Let go of a producer or consumer; one that the broker could not be told of is told of later. */
  detach(handle: Handle): void {
    if (this.handles.delete(handle.handle) && this.phase !== "ready") {
      this.departed.add(handle.handle);
    }
  }

  request(request: Request, now: number): void {
    if (this.phase === "ended") {
      request.finish(null, this.trouble ?? new ConnectionLostError("the session is over"));
      return;
    }
    this.waiting.push(request);
    this.sendRequests(now);
  }

  /** Nobody waits for it any more. */
  withdraw(request: Request): void {
    this.waiting = this.waiting.filter((each) => each !== request);
    for (const [ref, each] of this.asked) {
      if (each === request) {
        this.asked.delete(ref);
        this.answers.delete(ref);
      }
    }
  }

  private sendRequests(now: number): void {
    if (this.phase !== "ready" || this.waiting.length === 0) {
      return;
    }
    const later: Request[] = [];
    const waiting = this.waiting;
    this.waiting = later;
    for (const request of waiting) {
      if (request.due > now) {
        later.push(request);
        this.onDue(request.due);
        continue;
      }
      const ref = this.expect((header, body, at) => this.onResult(ref, header, body, at));
      this.asked.set(ref, request);
      const header = new Map<number, Sendable>([
        [K.TYPE, T.REQUEST],
        [K.REF, ref],
        [K.OPERATION, request.operation],
      ]);
      if (request.args.size > 0) {
        header.set(K.ARGUMENTS, request.args);
      }
      this.emit(header);
    }
  }

  private onResult(ref: number, header: Header, body: Frames, now: number): void {
    const request = this.asked.get(ref);
    this.asked.delete(ref);
    if (request === undefined) {
      return;
    }
    const kind = header.get(K.TYPE);
    if (kind === T.ERROR) {
      const error = errorOf(header);
      if (error.action === "retry") {
        request.trouble = error;
        request.due = now + backOffMs(request.failures++, this.jitter());
        this.waiting.push(request);
        this.onDue(request.due);
      } else {
        request.finish(null, error);
      }
    } else if (kind === T.RESULT && body.length === 1) {
      request.finish(body[0] as Uint8Array, null);
    } else {
      request.finish(null, new ProtocolError(`a frame of type ${kind} answered a request`));
    }
  }

  // ---- listening --------------------------------------------------------------------------------------------------

  /** Take in one message from the socket; a broken one costs the connection. */
  receive(frames: Frames, now: number): void {
    this.heard = now;
    this.pinged = null;
    try {
      const header = decodeHeader(frames[0] ?? new Uint8Array());
      this.dispatch(header, frames.slice(1), now);
    } catch (error) {
      if (!(error instanceof ProtocolError)) {
        throw error;
      }
      this.lost(error);
    }
  }

  private dispatch(header: Header, body: Frames, now: number): void {
    const kind = header.get(K.TYPE) as number;
    if (kind < T.WELCOME) {
      throw new ProtocolError(`a broker does not send frames of type ${kind}`);
    }
    if (kind === T.WELCOME) {
      this.onWelcome(header, now);
      return;
    }
    if (this.phase === "greeting") {
      if (kind === T.ERROR) {
        this.onRefused(errorOf(header));
      }
      return; // an answer to what an earlier socket said
    }
    if (this.phase !== "ready") {
      return;
    }
    if (kind === T.ERROR) {
      const code = text(header, K.CODE);
      if (code === "hello-required" || code === "session-expired") {
        if (code === "session-expired") {
          this.forget();
        }
        this.lost(errorOf(header));
        return;
      }
    }
    if (header.has(K.REF)) {
      const ref = uint(header, K.REF);
      const answer = this.answers.get(ref);
      if (answer !== undefined) {
        this.answers.delete(ref);
        answer(header, body, now);
        return;
      }
      if (kind !== T.ERROR) {
        return;
      }
    }
    if (header.has(K.HANDLE)) {
      this.handles.get(uint(header, K.HANDLE))?.onFrame(header, body, now);
    } else if (kind === T.ERROR && !header.has(K.REF)) {
      // about the whole connection: nobody can say what will never be answered, so all is asked again over the next
      this.lost(errorOf(header));
    }
  }

  private onWelcome(header: Header, now: number): void {
    if (this.phase !== "greeting") {
      throw new ProtocolError("a WELCOME that nobody asked for");
    }
    if (header.get(K.VERSION) !== PROTOCOL_VERSION) {
      throw new ProtocolError("the broker chose a version of the protocol that was not offered");
    }
    const resumed = header.get(K.RESUMED) === true;
    this.secret = Uint8Array.from(header.get(K.SESSION) as Uint8Array); // and not the whole message it came in
    this.heartbeat = Math.max(HEARTBEAT_LEAST_MS, uint(header, K.HEARTBEAT));
    const said = header.get(K.LIMITS) as Map<number, unknown>;
    const limit = (key: number, otherwise: number): number => {
      const value = said.get(key);
      return typeof value === "number" || typeof value === "bigint" ? Math.max(1, Number(value)) : otherwise;
    };
    this.limits = {
      messageBytesMax: limit(1, 1 << 20),
      batchBytesMax: limit(2, 1 << 20),
      batchesInFlightMax: limit(3, 1),
      windowBytes: limit(4, 1 << 20),
      creditMessagesMax: limit(7, 65_536),
      creditBytesMax: limit(8, 1 << 30),
    };
    this.trouble = null;
    this.phase = "ready";
    if (resumed) {
      for (const handle of this.departed) {
        const ref = this.expect(() => {});
        this.emitNumbers([K.TYPE, T.CLOSE, K.REF, ref, K.HANDLE, handle]);
      }
    }
    this.departed.clear();
    this.onPhase();
    for (const handle of [...this.handles.values()]) {
      handle.onReady(resumed, now);
    }
    this.sendRequests(now);
    this.onDue(now + this.heartbeat);
  }

  /** HELLO was answered by an error. */
  private onRefused(error: BrokerError): void {
    if (error.action === "retry") {
      this.forget();
      this.lost(error);
    } else {
      this.trouble = error;
      this.enter("ended");
      this.failAll(error);
    }
  }

  // ---- time -------------------------------------------------------------------------------------------------------

  /** Something was sent: no heartbeat is needed for a while. */
  spoke(now: number): void {
    this.spoken = now;
  }

  /** Do what is due: heartbeats, tries again, and what producers and consumers gathered. */
  tick(now: number): void {
    if (this.phase === "greeting") {
      if (now - this.greeted >= GREETING_MS) {
        this.lost(new ConnectionLostError(`no welcome within ${GREETING_MS} ms`));
      }
      return;
    }
    if (this.phase !== "ready") {
      return;
    }
    if (this.pinged !== null) {
      if (now - this.pinged >= 2 * this.heartbeat) {
        this.lost(new ConnectionLostError(`the broker has been silent for ${Math.round(now - this.heard)} ms`));
        return;
      }
    } else if (now - Math.min(this.spoken, this.heard) >= this.heartbeat) {
      this.pinged = this.spoken = now;
      this.emitNumbers([K.TYPE, T.PING]);
    }
    this.sendRequests(now);
    for (const handle of [...this.handles.values()]) {
      handle.tick(now);
    }
  }

  /** When `tick` is wanted next. */
  deadline(): number {
    if (this.phase === "greeting") {
      return this.greeted + GREETING_MS;
    }
    if (this.phase !== "ready") {
      return NEVER;
    }
    let due = (this.pinged ?? Math.min(this.spoken, this.heard)) + this.heartbeat * (this.pinged === null ? 1 : 2);
    for (const request of this.waiting) {
      due = Math.min(due, request.due);
    }
    for (const handle of this.handles.values()) {
      due = Math.min(due, handle.deadline());
    }
    return due;
  }
}

// One worker's socket, its back-off and its timer. What frames mean is in session.ts.
//
// Invariants
// - a socket that has lost its peer is closed, and never left to reconnect: it would lose messages in silence
// - nothing is read from, or sent to, a socket that was given up
// - one timer is armed, for the earliest thing that is due

import { Dealer, type Observer } from "zeromq";
import { ConnectionLostError, type IsterError, UsageError } from "./errors.js";
import { backOffMs, type Frames, NEVER, Session } from "./session.js";

const FAREWELL_MS = 500;
const REHOME_FAILURES = 3;
const TIMER_MAX_MS = 3_600_000;

/** What connections ask of the client. */
export interface Owner {
  readonly clientText: string;
  now(): number;
  jitter(): number;
  /** A broker has come, or gone. */
  onUp(connection: Connection): void;
  onDown(connection: Connection, why: IsterError | null): void;
  /** An endpoint does not come back: ask the first ones where its producers and consumers are. */
  rehome(connection: Connection): void;
  /** Something has changed for whoever waits for a session. */
  changed(): void;
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export class Connection {
  readonly session: Session;
  /** Its producers and consumers are being taken elsewhere; then it is closed. */
  leaving = false;
  started = false;
  closed = false;
  private socket: Dealer | null = null;
  private timer: NodeJS.Timeout | undefined;
  private timerAt = NEVER;
  private soon = false;
  private at = 0;
  private due = 0;
  private failures = 0;
  private up = false;

  /** `first`: one of those that the program named; it is asked again for ever. */
  constructor(
    private readonly owner: Owner,
    readonly endpoints: readonly string[],
    readonly first: boolean,
  ) {
    this.session = new Session(owner.clientText, () => owner.jitter());
    this.session.onOutput = () => this.send();
    this.session.onDue = (at) => this.wantAt(at);
    this.session.onPhase = () => this.onPhase();
  }

  get endpoint(): string {
    return this.endpoints[this.at] as string;
  }

  // ---- the socket -------------------------------------------------------------------------------------------------

  /** Open a socket and say HELLO. Throws `UsageError` where the endpoint is none. */
  connect(): void {
    this.started = true;
    const socket = new Dealer({
      linger: 0,
      // Windows and credit bound what is queued; a high-water mark would drop or block. With a time-out of 0 as well, a
      // send is done when the call returns: the library refuses a second one while one is waiting.
      sendHighWaterMark: 0,
      receiveHighWaterMark: 0,
      sendTimeout: 0,
      ipv6: true,
      reconnectInterval: 50,
      reconnectMaxInterval: 1000,
      heartbeatInterval: 5000,
      heartbeatTimeout: 15_000,
    });
    this.socket = socket; // which the garbage collection would close
    let monitor: Observer;
    try {
      monitor = socket.events;
    } catch (error) {
      // its name is an address in memory, which one that is still being closed may have had
      this.session.trouble = new ConnectionLostError(`no monitor: ${reason(error)}`, { cause: error });
      this.hangUp();
      return;
    }
    void this.watch(socket, monitor);
    try {
      socket.connect(this.endpoint);
    } catch (error) {
      this.closeSocket(0);
      throw new UsageError("invalid-argument", `cannot connect to ${JSON.stringify(this.endpoint)}: ${reason(error)}`);
    }
    this.session.connect(this.owner.now());
    void this.listen(socket);
  }

  private async listen(socket: Dealer): Promise<void> {
    try {
      while (this.socket === socket) {
        const frames = (await socket.receive()) as Frames;
        if (this.socket === socket) {
          this.session.receive(frames, this.owner.now());
        }
      }
    } catch (error) {
      if (this.socket === socket) {
        this.session.lost(
          new ConnectionLostError(`the socket to ${this.endpoint}: ${reason(error)}`, { cause: error }),
        );
      }
    }
  }

  private async watch(socket: Dealer, monitor: Observer): Promise<void> {
    try {
      // To its end, also when the socket was given up: the library gives a monitor's descriptors, and its name, back
      // when "end" has been read, and not in `monitor.close()`.
      for await (const { type } of monitor) {
        if (this.socket !== socket) {
          continue;
        }
        if (type === "disconnect" || type.startsWith("handshake:error")) {
          this.session.lost(new ConnectionLostError(`the connection to ${this.endpoint} broke`));
        } else if (type === "connect:retry" && this.session.phase === "greeting") {
          this.session.lost(new ConnectionLostError(`nobody listens at ${this.endpoint}`));
        }
      }
    } catch {
      // it was closed with its socket; silence tells of what it would have
    }
  }

  private send(): void {
    const { socket, session } = this;
    if (socket === null || session.outbox.length === 0) {
      return;
    }
    const frames = session.outbox.splice(0);
    session.spoke(this.owner.now());
    try {
      for (const each of frames) {
        socket.send(each).catch((error: unknown) => this.onSendFailed(socket, error));
      }
    } catch (error) {
      queueMicrotask(() => this.onSendFailed(socket, error)); // whoever speaks is in the middle of something
    }
  }

  private onSendFailed(socket: Dealer, error: unknown): void {
    if (this.socket === socket) {
      this.session.lost(new ConnectionLostError(`the socket to ${this.endpoint}: ${reason(error)}`, { cause: error }));
    }
  }

  private closeSocket(lingerMs: number): void {
    const { socket } = this;
    this.socket = null;
    if (socket !== null) {
      socket.linger = lingerMs;
      socket.close();
    }
  }

  private onPhase(): void {
    if (this.session.phase === "idle") {
      this.hangUp();
    } else if (this.session.phase === "ready") {
      this.failures = 0;
      this.up = true;
      this.owner.onUp(this);
    } else if (this.session.phase === "ended") {
      clearTimeout(this.timer);
      this.timerAt = NEVER;
      if (!this.closed) {
        this.closeSocket(0); // the broker refused
      }
    }
    this.owner.changed();
  }

  /** Close the socket and choose when, and where, to try again. */
  private hangUp(): void {
    const { owner, session } = this;
    this.closeSocket(0);
    if (this.up) {
      this.up = false;
      owner.onDown(this, session.trouble);
    }
    this.due = owner.now() + backOffMs(this.failures, owner.jitter());
    if (this.failures > 0 && this.endpoints.length > 1) {
      this.at = (this.at + 1) % this.endpoints.length;
      session.forget();
    }
    this.failures++;
    if (!this.first && this.failures > REHOME_FAILURES) {
      owner.rehome(this);
      return;
    }
    this.wantAt(this.due);
  }

  /** Say BYE, and give everything back. */
  close(error: IsterError): void {
    if (this.closed) {
      return;
    }
    this.closed = true;
    const greeted = this.session.phase === "ready";
    this.session.end(error); // which sends BYE
    clearTimeout(this.timer);
    this.timerAt = NEVER;
    this.closeSocket(greeted ? FAREWELL_MS : 0);
    this.up = false;
  }

  // ---- time -------------------------------------------------------------------------------------------------------

  private wantAt(at: number): void {
    if (at >= this.timerAt || at === NEVER || this.closed) {
      return;
    }
    const wait = at - this.owner.now();
    if (wait > 0) {
      this.arm(at, wait);
    } else if (!this.soon) {
      this.soon = true;
      queueMicrotask(() => {
        this.soon = false;
        this.service();
      });
    }
  }

  private arm(at: number, wait: number): void {
    clearTimeout(this.timer);
    this.timerAt = at;
    this.timer = setTimeout(() => this.onTimer(), Math.min(Math.ceil(wait), TIMER_MAX_MS));
  }

  private onTimer(): void {
    this.timerAt = NEVER;
    this.service();
  }

  private service(): void {
    if (this.closed || this.session.phase === "ended") {
      return;
    }
    const now = this.owner.now();
    if (this.session.phase === "idle") {
      if (now >= this.due) {
        this.tryToConnect();
      } else {
        this.wantAt(this.due);
      }
      return;
    }
    this.session.tick(now);
    const due = this.session.deadline();
    if (due < this.timerAt) {
      this.arm(due, Math.max(1, due - now));
    }
  }

  private tryToConnect(): void {
    try {
      this.connect();
    } catch (error) {
      this.session.trouble = error as IsterError;
      this.hangUp();
    }
  }
}

// A client's connections: one for the endpoints that the program named, and one for each that MOVED led to.

import type { Attachment } from "./attachment.js";
import { Connection, type Owner } from "./connection.js";
import { ConnectionLostError, type IsterError } from "./errors.js";
import type { Publication } from "./publication.js";
import type { Handle, Session } from "./session.js";
import type { WaitOptions } from "./waiting.js";

const MOVES_MAX = 8;
const MOVES_WITHIN_MS = 1000;

/** What a program holds: closed with the client. */
export interface User {
  close(options: WaitOptions): Promise<void>;
  /** The program ends by this error. */
  blame?(error: unknown): void;
  /** The program ends. */
  part?(): void;
}

/** A session that was given up, and may go on. */
interface Left {
  secret: Uint8Array;
  handles: number[]; // are open in it
  lastRef: number;
}

export class Network implements Owner {
  readonly home: Connection;
  closed = false;
  /** By handle. */
  readonly users = new Map<number, User>();
  onUp: (connection: Connection) => void = () => {};
  onDown: (connection: Connection, why: IsterError | null) => void = () => {};
  changed: () => void = () => {};
  private readonly connections = new Set<Connection>();
  private readonly moves = new Map<number, { hops: number; last: number }>();
  private readonly left = new Map<string, Left>(); // sessions given up, by endpoint
  private handles = 0;

  constructor(
    endpoints: readonly string[],
    readonly clientText: string,
    private readonly clock: () => number = () => performance.now(),
    readonly jitter: () => number = Math.random,
  ) {
    this.home = new Connection(this, endpoints, true);
    this.home.session.onMoved = (handle, endpoint) => this.follow(this.home, handle, endpoint);
    this.connections.add(this.home);
  }

  now(): number {
    return this.clock();
  }

  get all(): Connection[] {
    return [...this.connections];
  }

  /** A number that no other producer or consumer of this client has. */
  nextHandle(): number {
    return ++this.handles;
  }

  attach(handle: Handle): void {
    this.home.session.attach(handle, this.now());
  }

  release(handle: Publication | Attachment): void {
    handle.session?.detach(handle);
    this.moves.delete(handle.handle);
    this.users.delete(handle.handle);
  }

  private at(endpoint: string): Connection {
    for (const connection of this.connections) {
      if (!connection.closed && !connection.leaving && connection.endpoint === endpoint) {
        return connection;
      }
    }
    const connection = new Connection(this, [endpoint], false);
    connection.session.onMoved = (handle, target) => this.follow(connection, handle, target);
    const left = this.left.get(endpoint);
    if (left !== undefined) {
      this.left.delete(endpoint);
      connection.session.inherit(left.secret, left.handles, left.lastRef);
    }
    this.connections.add(connection);
    return connection;
  }

  /** Take a producer or consumer to where it lives. */
  private follow(from: Connection, handle: Handle, endpoint: string): void {
    const now = this.now();
    const trail = this.moves.get(handle.handle);
    const hops = trail !== undefined && now - trail.last < MOVES_WITHIN_MS ? trail.hops + 1 : 1;
    this.moves.set(handle.handle, { hops, last: now });
    if (hops > MOVES_MAX) {
      const error = new ConnectionLostError(`moved ${MOVES_MAX} times in a row, lastly to ${endpoint}`);
      handle.postpone(error, now + MOVES_WITHIN_MS);
      return;
    }
    const there = this.at(endpoint);
    this.take(handle, from.session, there.session, new ConnectionLostError(`moved to ${endpoint}`));
    if (!there.started) {
      try {
        there.connect();
      } catch (error) {
        there.close(error as IsterError);
        this.connections.delete(there);
      }
    }
  }

  private take(handle: Handle, from: Session, to: Session, why: IsterError): void {
    from.handles.delete(handle.handle);
    handle.onLost(why);
    to.attach(handle, this.now());
  }

  rehome(from: Connection): void {
    const { session } = from;
    if (session.secret !== null) {
      // if things are there after all, its session is resumed: else that would hold an Exclusive consumer's place
      const { secret, lastRef } = session;
      this.left.set(from.endpoint, { secret, lastRef, handles: [...session.handles.keys()] });
    }
    from.leaving = true;
    for (const handle of [...session.handles.values()]) {
      this.moves.delete(handle.handle);
      this.take(handle, session, this.home.session, new ConnectionLostError(`${from.endpoint} does not come back`));
    }
    this.connections.delete(from);
    from.close(new ConnectionLostError(`${from.endpoint} does not come back`));
  }

  /** Lose every connection without a word. */
  drop(): void {
    for (const { session } of this.all) {
      session.lost(new ConnectionLostError("the program cut it"));
    }
  }

  close(error: IsterError): void {
    if (!this.closed) {
      this.closed = true;
      for (const connection of this.connections) {
        connection.close(error);
      }
    }
  }
}

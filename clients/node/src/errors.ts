// What can go wrong, as one small tree:
//
//   IsterError               code, action (retry, fix, stop), message
//   ├── BrokerError          the broker said so; PROTOCOL.md, section 11, has the codes
//   ├── ConnectionLostError  "connection-lost": the broker cannot be reached, or lost what this was about
//   ├── ProtocolError        "malformed", "lengths-mismatch": the broker sent what PROTOCOL.md does not allow
//   ├── UsageError           "invalid-argument", "message-too-large", ...: refused here, before the broker is asked
//   ├── ClosedError          "closed": the client, producer or consumer was closed here
//   ├── TimeoutError         "timeout": the time that the caller gave is over
//   └── CancelledError       "cancelled": the caller's AbortSignal says so; its reason is the cause

/** What to do about an error: the same again after a while; something in the call; nothing. */
export type Action = "retry" | "fix" | "stop";

/** Whatever a broker answered, or what happened on this side. Programs may compare `code`, which is stable. */
export class IsterError extends Error {
  override name = "IsterError";

  constructor(
    readonly code: string,
    readonly action: Action,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** The broker refused something. */
export class BrokerError extends IsterError {
  override name = "BrokerError";
}

/** The broker cannot be reached, or no longer knows what this was about. */
export class ConnectionLostError extends IsterError {
  override name = "ConnectionLostError";

  constructor(message: string, options?: ErrorOptions) {
    super("connection-lost", "retry", message, options);
  }
}

/** The broker sent something that PROTOCOL.md does not allow. */
export class ProtocolError extends IsterError {
  override name = "ProtocolError";

  constructor(message: string, code = "malformed", options?: ErrorOptions) {
    super(code, "stop", message, options);
  }
}

/** The call is wrong; the broker was not asked. */
export class UsageError extends IsterError {
  override name = "UsageError";

  constructor(code: string, message: string) {
    super(code, "fix", message);
  }
}

/** The client, producer or consumer was closed here. */
export class ClosedError extends IsterError {
  override name = "ClosedError";

  constructor(what: string) {
    super("closed", "stop", `${what} is closed`);
  }
}

/** The time that the caller gave is over. What was waited for goes on. */
export class TimeoutError extends IsterError {
  override name = "TimeoutError";

  constructor(message: string, options?: ErrorOptions) {
    super("timeout", "retry", message, options);
  }
}

/** The caller's AbortSignal was aborted. What was waited for goes on. */
export class CancelledError extends IsterError {
  override name = "AbortError";

  constructor(message: string, options?: ErrorOptions) {
    super("cancelled", "retry", message, options);
  }
}

/** @internal */
export function invalid(message: string): UsageError {
  return new UsageError("invalid-argument", message);
}

// Waiting until something is so: with a time, with an AbortSignal, or for as long as it takes.

import { CancelledError, TimeoutError } from "./errors.js";

/** How long a call may wait. What it waits for goes on when the caller stops waiting. */
export interface WaitOptions {
  /** Stops waiting: the call rejects with `CancelledError`, or `TimeoutError` if the signal is that of a time. */
  signal?: AbortSignal | undefined;
  /** Stops waiting after so many milliseconds: the call rejects with `TimeoutError`. */
  timeoutMs?: number | undefined;
}

/** Rings whenever something has changed; whoever waits looks then. */
export class Bell {
  private readonly listeners = new Set<() => void>();

  ring(): void {
    for (const listener of [...this.listeners]) {
      listener();
    }
  }

  add(listener: () => void): void {
    this.listeners.add(listener);
  }

  remove(listener: () => void): void {
    this.listeners.delete(listener);
  }
}

function aborted(signal: AbortSignal, what: () => string): Error {
  const { reason } = signal;
  if (reason instanceof Error && reason.name === "TimeoutError") {
    return new TimeoutError(what(), { cause: reason });
  }
  return new CancelledError(what(), { cause: reason });
}

/**
 * Wait until `look` returns something; it looks again whenever the bell rings. What it throws is what the promise is
 * rejected with. `what` says what was waited for.
 */
export function until<Found>(
  bell: Bell,
  look: () => Found | undefined,
  options: WaitOptions,
  what: () => string,
): Promise<Found> {
  const { signal, timeoutMs } = options;
  return new Promise<Found>((resolve, reject) => {
    if (signal?.aborted) {
      reject(aborted(signal, what));
      return;
    }
    const first = look();
    if (first !== undefined) {
      resolve(first);
      return;
    }
    let timer: NodeJS.Timeout | undefined;
    const stop = () => {
      bell.remove(again);
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
    };
    const again = () => {
      try {
        const found = look();
        if (found !== undefined) {
          stop();
          resolve(found);
        }
      } catch (error) {
        stop();
        reject(error);
      }
    };
    const onAbort = () => {
      stop();
      reject(aborted(signal as AbortSignal, what));
    };
    bell.add(again);
    signal?.addEventListener("abort", onAbort, { once: true });
    if (timeoutMs !== undefined && timeoutMs !== Number.POSITIVE_INFINITY) {
      timer = setTimeout(
        () => {
          stop();
          reject(new TimeoutError(`${what()} (after ${timeoutMs} ms)`));
        },
        Math.min(Math.max(0, timeoutMs), 2 ** 31 - 1),
      );
    }
  });
}

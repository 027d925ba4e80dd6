// How many messages a consumer has ready for its program: as many as it processes in half a second. Pure.
//
// The program's pace is what it takes in a round, divided by the time it was busy: from when it was handed something
// until it asked for more, and while messages had arrived and waited for it. Time spent waiting for messages does not
// count. A round is a window's worth of messages (at most a thousand), or half a second of work.
//
// Invariants
// - a window is from 1 to `most`, and grows at most `GROWTH` times per round
// - a slow program holds no more than its pace, after the round in which it became slow

export const WINDOW_SHARED = 2; // one to work on, and one that is ready: what others are there for is left to them
export const WINDOW_ALONE = 100; // nobody else waits for it
export const WINDOW_MOST = 65_536;
const HOLD_MS = 500;
// So much work is handed out at a time where the broker is told of it: a fast program costs a word for thousands of
// messages, and one that takes longer over a message has that one alone in hand.
const AT_ONCE_MS = 4;
const AT_ONCE_MAX = 16_384;
const GROWTH = 4;
// Who takes batches may pay for each batch, not for each message: larger ones are then a better pace, and the window
// grows; smaller ones are a worse one, and it goes back. Where the pace does not depend on it, it goes on shrinking.
const BETTER = 1.3;
const WORSE = 0.75;
const LARGER = 1.5;
const SMALLER = 0.67;
const ROUND_MAX = 1024; // messages in a round, however large the window: the pace is known by then
const LEAST_MS = 1e-3; // what a clock may not see

/** One program's pace, and the window that follows from it. Times are milliseconds. */
export class Pace {
  window: number;
  /** How many messages are handed out at a time. */
  atOnce = 1;
  private began: number | null = null; // since when the program has been busy with what it was handed
  private done = Number.NEGATIVE_INFINITY; // when it last asked for more
  private busy = 0;
  private taken = 0;
  private last = 0; // how many it was handed last
  private fits = 0; // so many would have been a moment's work, by what it was handed last
  private batches = 0; // pieces of work, as the program sees it: a batch, or a single message
  private paceBefore = 0;
  private sizeBefore = 0;

  constructor(
    start: number,
    private readonly most: number,
  ) {
    this.window = Math.min(start, most);
  }

  /** The program wants more: what it was handed is done. */
  asked(now: number): void {
    if (this.began !== null) {
      const took = Math.max(now - this.began, LEAST_MS);
      this.busy += took;
      this.began = null;
      this.lookAtMoment(took);
    }
    this.done = now;
    if (this.taken > 0 && (this.taken >= Math.min(this.window, ROUND_MAX) || this.busy >= HOLD_MS)) {
      this.endRound();
    }
  }

  /** Say how many messages are a moment's work; that the machine did something else once is not a sign. */
  private lookAtMoment(took: number): void {
    const before = this.fits;
    this.fits = (this.last * AT_ONCE_MS) / took;
    if (this.fits >= this.atOnce) {
      this.atOnce = Math.floor(Math.min(this.fits, GROWTH * this.atOnce, AT_ONCE_MAX));
    } else if (before < this.atOnce) {
      this.atOnce = Math.max(1, Math.floor(this.fits));
    }
  }

  /** The program was handed so many messages, which came at that time; `together`: as one batch. */
  handed(count: number, came: number, now: number, together: boolean): void {
    const waitedSince = this.began ?? Math.max(came, this.done);
    this.busy += Math.max(0, now - waitedSince);
    this.taken += count;
    this.batches += together ? 1 : count;
    this.last = count;
    this.began = now;
  }

  private endRound(): void {
    const pace = this.taken / Math.max(this.busy, LEAST_MS);
    const size = this.taken / this.batches;
    let window = pace * HOLD_MS;
    if (window < this.taken && this.taken > this.batches) {
      const paid = size > LARGER * this.sizeBefore && pace > BETTER * this.paceBefore;
      const missed = size < SMALLER * this.sizeBefore && pace < WORSE * this.paceBefore;
      window = paid || missed ? 2 * this.window : Math.max(window, this.window / 2);
    }
    this.window = Math.max(1, Math.floor(Math.min(window, GROWTH * this.window, this.most)));
    this.paceBefore = pace;
    this.sizeBefore = size;
    this.busy = 0;
    this.taken = 0;
    this.batches = 0;
  }
}

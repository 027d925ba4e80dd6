package example.ister;

/**
 * How fast one program works messages off, and what follows from it: how many it should have ready,
 * and how many it is handed at a time. It knows no clock: times are nanoseconds.
 *
 * <p>The pace is what the program takes in a round, divided by the time that it was busy: from when
 * it was handed something until it asks for more, and while messages waited for it. A round is as
 * many messages as it should have ready, a thousand at most, or half a second of work.
 */
final class Pace {
  /** Of a consumer that shares: one message to work on, and one that is ready. */
  static final int FIRST_SHARED = 2;

  static final int FIRST_ALONE = 100;
  private static final long HOLD = 500 * Session.MS; // so much work should be ready

  /**
   * So much work is handed out at a time where the broker is told: a fast program costs a report
   * for thousands of messages, and one that takes longer has in hand what it works on, and no more.
   */
  private static final long AT_ONCE = 4 * Session.MS;

  private static final int AT_ONCE_MOST = 16_384;
  private static final int GROWTH = 4;
  private static final int ROUND_MOST = 1024;
  private static final long CLOCK_STEP = 1_000; // nothing takes less

  // A program that takes batches may spend its time by the batch: larger ones improve its pace, and
  // smaller ones make it worse. Then more should be ready, although it takes longer to work off.
  private static final double BETTER = 1.3;
  private static final double WORSE = 0.75;
  private static final double LARGER = 1.5;
  private static final double SMALLER = 0.67;

  private final long most;
  private long window;
  private int atOnce = 1;
  private boolean busy;
  private long since; // when it was handed something, if it is busy
  private long done = Long.MIN_VALUE; // when it asked last
  private long worked;
  private long taken;
  private long last; // how many it was handed
  private double fits; // so many of those would have taken AT_ONCE
  private long calls;
  private double paceBefore;
  private double sizeBefore;

  Pace(long first, long most) {
    this.most = most;
    window = Math.min(first, most);
  }

  /** How many messages should be ready. */
  long window() {
    return window;
  }

  /** How many messages are handed out at a time. */
  int atOnce() {
    return atOnce;
  }

  /** The program asks for more: it is done with what it had. */
  void asked(long now) {
    if (busy) {
      long took = Math.max(now - since, CLOCK_STEP);
      worked += took;
      busy = false;
      look(took);
    }
    done = now;
    if (taken > 0 && (taken >= Math.min(window, ROUND_MOST) || worked >= HOLD)) {
      endRound();
    }
  }

  /** What it took last says how much fits; one pause of the machine alone does not count. */
  private void look(long took) {
    double before = fits;
    fits = (double) last * AT_ONCE / took;
    if (fits >= atOnce) {
      atOnce = (int) Math.min(fits, Math.min((long) GROWTH * atOnce, AT_ONCE_MOST));
    } else if (before < atOnce) {
      atOnce = Math.max(1, (int) fits);
    }
  }

  /** The program is handed messages that came at a time, as one batch or each by itself. */
  void handed(long count, long came, long now, boolean together) {
    long waited = busy ? since : Math.max(came, done);
    worked += Math.max(0, now - waited);
    taken += count;
    calls += together ? 1 : count;
    last = count;
    busy = true;
    since = now;
  }

  private void endRound() {
    double pace = (double) taken / Math.max(worked, CLOCK_STEP);
    double wanted = pace * HOLD;
    double size = (double) taken / calls;
    if (wanted < taken && taken > calls) {
      boolean paid = size > LARGER * sizeBefore && pace > BETTER * paceBefore;
      boolean missed = size < SMALLER * sizeBefore && pace < WORSE * paceBefore;
      wanted = paid || missed ? 2.0 * window : Math.max(wanted, window / 2.0);
    }
    window = Math.max(1, Math.min((long) Math.min(wanted, (double) GROWTH * window), most));
    paceBefore = pace;
    sizeBefore = size;
    worked = 0;
    taken = 0;
    calls = 0;
  }
}

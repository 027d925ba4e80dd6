package example.ister;

import java.util.concurrent.atomic.AtomicInteger;

/**
 * Messages of one delivery that the program may take without the client's lock; each goes to one
 * thread.
 */
final class Handful extends AtomicInteger {
  private static final long serialVersionUID = 1L;

  /** One that is empty. */
  static final Handful NONE = new Handful(null, 0, 0);

  private final transient Delivery delivery;
  private final int end;

  Handful(Delivery delivery, int first, int end) {
    super(first);
    this.delivery = delivery;
    this.end = end;
  }

  /** The next message; null where nothing is left. */
  Message take() {
    if (get() >= end) {
      return null;
    }
    int index = getAndIncrement();
    return index < end ? delivery.message(index) : null;
  }

  /** How many were not taken. */
  int left() {
    return Math.max(0, end - get());
  }

  /** Takes back what nobody has taken, and returns how many that were. */
  int takeBack() {
    return Math.max(0, end - getAndSet(end));
  }
}

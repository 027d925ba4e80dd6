package example.ister;

import java.util.Arrays;

/** Half-open ranges of offsets, flat: first, end, first, end, ... */
final class Spans {
  private long[] flat = new long[4];
  private int used;

  void add(long offset) {
    if (used > 0 && flat[used - 1] == offset) {
      flat[used - 1]++;
    } else {
      append(offset, offset + 1);
    }
  }

  private void append(long first, long end) {
    if (used == flat.length) {
      flat = Arrays.copyOf(flat, 2 * used);
    }
    flat[used++] = first;
    flat[used++] = end;
  }

  void addAll(Spans other) {
    for (int i = 0; i < other.used; i += 2) {
      append(other.flat[i], other.flat[i + 1]);
    }
  }

  /** How many ranges they are. */
  int size() {
    return used / 2;
  }

  boolean isEmpty() {
    return used == 0;
  }

  /** The ranges from one number on, at most so many, as a header has them. */
  long[] part(int from, int most) {
    return Arrays.copyOfRange(flat, 2 * from, Math.min(used, 2 * (from + most)));
  }

  /** Drops the first so many ranges. */
  void drop(int ranges) {
    int gone = Math.min(used, 2 * ranges);
    System.arraycopy(flat, gone, flat, 0, used - gone);
    used -= gone;
  }

  /** Drops the last so many ranges. */
  void dropLast(int ranges) {
    used -= Math.min(used, 2 * ranges);
  }

  Spans last() {
    Spans found = new Spans();
    found.append(flat[used - 2], flat[used - 1]);
    return found;
  }
}

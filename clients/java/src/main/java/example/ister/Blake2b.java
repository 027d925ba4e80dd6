package example.ister;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** BLAKE2b (RFC 7693) with a digest of 8 bytes and no key: the Java library has none. */
final class Blake2b {
  private static final int BLOCK = 128;
  private static final int DIGEST = 8;
  private static final int ROUNDS = 12;
  private static final long[] IV = {
    0x6a09e667f3bcc908L, 0xbb67ae8584caa73bL, 0x3c6ef372fe94f82bL, 0xa54ff53a5f1d36f1L,
    0x510e527fade682d1L, 0x9b05688c2b3e6c1fL, 0x1f83d9abfb41bd6bL, 0x5be0cd19137e2179L,
  };
  private static final String[] SIGMA = {
    "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8",
        "905724afe1bc683d",
    "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5",
        "a2847615fb9e3cd0",
  };

  private Blake2b() {}

  /** The digest as a little-endian number. */
  static long digest(byte[] data) {
    long[] state = IV.clone();
    state[0] ^= 0x01010000L ^ DIGEST;
    int blocks = Math.max(1, (data.length + BLOCK - 1) / BLOCK);
    for (int block = 0; block < blocks; block++) {
      int at = block * BLOCK;
      int length = Math.min(BLOCK, data.length - at);
      ByteBuffer words = ByteBuffer.allocate(BLOCK).order(ByteOrder.LITTLE_ENDIAN);
      words.put(data, at, length);
      compress(state, words, at + length, block == blocks - 1);
    }
    return state[0];
  }

  private static void compress(long[] state, ByteBuffer words, long count, boolean last) {
    long[] v = new long[16];
    System.arraycopy(state, 0, v, 0, 8);
    System.arraycopy(IV, 0, v, 8, 8);
    v[12] ^= count;
    if (last) {
      v[14] = ~v[14];
    }
    for (int round = 0; round < ROUNDS; round++) {
      String order = SIGMA[round % SIGMA.length];
      for (int i = 0; i < 8; i++) {
        long x = words.getLong(8 * Character.digit(order.charAt(2 * i), 16));
        long y = words.getLong(8 * Character.digit(order.charAt(2 * i + 1), 16));
        int slant = i / 4; // the columns, then the diagonals
        int b = 4 + (i + slant) % 4;
        int c = 8 + (i + 2 * slant) % 4;
        int d = 12 + (i + 3 * slant) % 4;
        mix(v, i % 4, b, c, d, x, y);
      }
    }
    for (int i = 0; i < 8; i++) {
      state[i] ^= v[i] ^ v[i + 8];
    }
  }

  private static void mix(long[] v, int a, int b, int c, int d, long x, long y) {
    v[a] += v[b] + x;
    v[d] = Long.rotateRight(v[d] ^ v[a], 32);
    v[c] += v[d];
    v[b] = Long.rotateRight(v[b] ^ v[c], 24);
    v[a] += v[b] + y;
    v[d] = Long.rotateRight(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = Long.rotateRight(v[b] ^ v[c], 63);
  }
}

// The id of a named producer: BLAKE2b (RFC 7693) with a digest of 8 bytes. Node's own BLAKE2b has a digest of 64 bytes,
// and a shorter one is another hash, not a part of it. Pure.

const MASK = (1n << 64n) - 1n;
const DIGEST_BYTES = 8;
const BLOCK_BYTES = 128;

const IV = [
  0x6a09e667f3bcc908n,
  0xbb67ae8584caa73bn,
  0x3c6ef372fe94f82bn,
  0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n,
  0x9b05688c2b3e6c1fn,
  0x1f83d9abfb41bd6bn,
  0x5be0cd19137e2179n,
];

const SIGMA = [
  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
  [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
  [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
  [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
  [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
  [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
  [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
  [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
  [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
  [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

// which words of the state a round mixes: the columns, then the diagonals
const MIXED = [
  [0, 4, 8, 12],
  [1, 5, 9, 13],
  [2, 6, 10, 14],
  [3, 7, 11, 15],
  [0, 5, 10, 15],
  [1, 6, 11, 12],
  [2, 7, 8, 13],
  [3, 4, 9, 14],
] as const;

function rotated(value: bigint, right: bigint): bigint {
  return ((value >> right) | (value << (64n - right))) & MASK;
}

function compress(hash: bigint[], block: Buffer, bytes: number, last: boolean): void {
  const words = Array.from({ length: 16 }, (_, i) => block.readBigUInt64LE(8 * i));
  const v = [...hash, ...IV];
  const word = (i: number): bigint => v[i] as bigint;
  v[12] = word(12) ^ BigInt(bytes);
  if (last) {
    v[14] = word(14) ^ MASK;
  }
  for (let round = 0; round < 12; round++) {
    const order = SIGMA[round % 10] as number[];
    MIXED.forEach(([a, b, c, d], i) => {
      const x = words[order[2 * i] as number] as bigint;
      const y = words[order[2 * i + 1] as number] as bigint;
      v[a] = (word(a) + word(b) + x) & MASK;
      v[d] = rotated(word(d) ^ word(a), 32n);
      v[c] = (word(c) + word(d)) & MASK;
      v[b] = rotated(word(b) ^ word(c), 24n);
      v[a] = (word(a) + word(b) + y) & MASK;
      v[d] = rotated(word(d) ^ word(a), 16n);
      v[c] = (word(c) + word(d)) & MASK;
      v[b] = rotated(word(b) ^ word(c), 63n);
    });
  }
  for (let i = 0; i < 8; i++) {
    hash[i] = (hash[i] as bigint) ^ word(i) ^ word(i + 8);
  }
}

function blake2b8(data: Uint8Array): bigint {
  const hash = [...IV];
  hash[0] = (hash[0] as bigint) ^ BigInt(0x01010000 ^ DIGEST_BYTES);
  const blocks = Math.max(1, Math.ceil(data.length / BLOCK_BYTES));
  for (let i = 0; i < blocks; i++) {
    const block = Buffer.alloc(BLOCK_BYTES);
    block.set(data.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES));
    compress(hash, block, Math.min((i + 1) * BLOCK_BYTES, data.length), i === blocks - 1);
  }
  return hash[0] as bigint;
}

/** The id that a producer of this name has, in every language. */
export function producerId(topic: string, name: string): bigint {
  return blake2b8(Buffer.from(`${topic}\0${name}`)) >> 1n || 1n;
}

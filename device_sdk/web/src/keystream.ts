/**
 * The one pseudo-random generator of fedrecon: the AES-256-CTR keystream (fedrecon.wire.keystream).
 *
 * For a seed and a purpose it is AES-256-CTR over zeros with the key SHA-256(seed || purpose in ASCII) and an all-zero
 * initial counter block of 128 bits; word i is bytes 4i to 4i + 3, little-endian.
 */

import { type Bytes, cryptography } from "./digests.js";

const BLOCK_BYTES = 16;
const WORD_BYTES = 4;
const SEED_BYTES = 32;

/** Returns words `start` to `start + count - 1` of the keystream. */
export async function words(seed: Bytes, purpose: string, start: number, count: number): Promise<Uint32Array> {
  if (seed.length !== SEED_BYTES) {
    throw new RangeError(`a keystream seed has ${SEED_BYTES} bytes, not ${seed.length}`);
  }
  const named = new TextEncoder().encode(purpose);
  const material = new Uint8Array(seed.length + named.length);
  material.set(seed);
  material.set(named, seed.length);
  const subtle = cryptography();
  const key = await subtle.importKey("raw", await subtle.digest("SHA-256", material), "AES-CTR", false, ["encrypt"]);
  const first = start * WORD_BYTES;
  const counter = new Uint8Array(BLOCK_BYTES);
  new DataView(counter.buffer).setBigUint64(8, BigInt(Math.floor(first / BLOCK_BYTES)));
  const skipped = first % BLOCK_BYTES;
  const zeros = new Uint8Array(skipped + count * WORD_BYTES);
  const stream = new DataView(await subtle.encrypt({ name: "AES-CTR", counter, length: 128 }, key, zeros));
  return Uint32Array.from({ length: count }, (_, place) => stream.getUint32(skipped + place * WORD_BYTES, true));
}

/** Returns numbers in [0, 1): `word * 2^-32` for every word. */
export async function uniform(seed: Bytes, purpose: string, start: number, count: number): Promise<Float64Array> {
  return Float64Array.from(await words(seed, purpose, start, count), (word) => word * 2 ** -32);
}

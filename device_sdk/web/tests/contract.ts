/**
 * The contract's arithmetic that pages do not need yet, written in a second language from `aggregator.proto`,
 * `common.proto` and `docs/protocol.md` alone: if the known answers hold here, those pages say enough.
 */

import { type Bytes, fromHex } from "../src/digests.js";
import { uniform, words } from "../src/keystream.js";

const PRIME = (1n << 256n) + 297n;
const COEFFICIENT_BYTES = 49;
const SHARE_BYTES = 33;
const METRIC_SCALE = 2 ** 20;
/** PKCS #8 (RFC 8410) of an Ed25519 or X25519 key, up to its 32 bytes. */
const ED25519_PREFIX = "302e020100300506032b657004220420";
const X25519_PREFIX = "302e020100300506032b656e04220420";
const BASE_POINT = "09".padEnd(64, "0");

const { subtle } = globalThis.crypto;

export function join(...parts: readonly (Uint8Array | string)[]): Bytes {
  const read = parts.map((part) => (typeof part === "string" ? new TextEncoder().encode(part) : part));
  return Uint8Array.from(read.flatMap((part) => [...part]));
}

export async function sha256(content: Bytes): Promise<Bytes> {
  return new Uint8Array(await subtle.digest("SHA-256", content));
}

export async function hmac(key: Bytes, content: Bytes): Promise<Bytes> {
  const imported = await subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await subtle.sign("HMAC", imported, content));
}

export async function sign(secret: Bytes, message: Bytes): Promise<Bytes> {
  const key = await subtle.importKey("pkcs8", join(fromHex(ED25519_PREFIX), secret), "Ed25519", false, ["sign"]);
  return new Uint8Array(await subtle.sign("Ed25519", key, message));
}

export async function publicKey(secret: Bytes): Promise<Bytes> {
  return agree(secret, fromHex(BASE_POINT));
}

async function agree(secret: Bytes, other: Bytes): Promise<Bytes> {
  const own = await subtle.importKey("pkcs8", join(fromHex(X25519_PREFIX), secret), "X25519", false, ["deriveBits"]);
  const theirs = await subtle.importKey("raw", other, "X25519", false, []);
  return new Uint8Array(await subtle.deriveBits({ name: "X25519", public: theirs }, own, 256));
}

/** `item(x)`: the length of x in 4 bytes, then x. */
export function item(content: Uint8Array | string): Bytes {
  const bytes = join(content);
  return join(little(BigInt(bytes.length), 4), bytes);
}

export const integer = (number: number): Bytes => item(little(BigInt(number), 8));

export function real(number: number): Bytes {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, number, true);
  return item(new Uint8Array(view.buffer));
}

/** Returns a number in so many bytes, little-endian. */
export function little(number: bigint, bytes: number): Bytes {
  return Uint8Array.from({ length: bytes }, (_, place) => Number((number >> BigInt(8 * place)) & 255n));
}

function fromLittle(content: Uint8Array): bigint {
  return content.reduceRight((number, byte) => (number << 8n) | BigInt(byte), 0n);
}

/** What two members know together: `fedrecon mask 1` over their mask keys, `fedrecon share 1` over their share keys. */
export async function derive(
  label: string,
  context: Bytes,
  members: readonly [number, number],
  secret: Bytes,
  other: Bytes,
): Promise<Bytes> {
  const [first, second] = [...members].sort((one, another) => one - another) as [number, number];
  const info = join(label, context, little(BigInt(first), 4), little(BigInt(second), 4));
  const key = await subtle.importKey("raw", await agree(secret, other), "HKDF", false, ["deriveBits"]);
  const salt = new Uint8Array(0);
  return new Uint8Array(await subtle.deriveBits({ name: "HKDF", hash: "SHA-256", salt, info }, key, 256));
}

/** The value at a point of the polynomial whose value at 0 is the secret. */
export function share(secret: Bytes, threshold: number, entropy: Bytes, point: number): Bytes {
  let value = 0n;
  for (let power = threshold - 1; power > 0; power--) {
    const start = (power - 1) * COEFFICIENT_BYTES;
    value = (value + fromLittle(entropy.slice(start, start + COEFFICIENT_BYTES))) * BigInt(point);
  }
  return little((value + fromLittle(secret)) % PRIME, SHARE_BYTES);
}

export async function seal(key: Bytes, context: Bytes, from: number, to: number, shares: Bytes): Promise<Bytes> {
  const direction = join(little(BigInt(from), 4), little(BigInt(to), 4));
  const imported = await subtle.importKey("raw", key, "AES-GCM", false, ["encrypt"]);
  const algorithm = { name: "AES-GCM", iv: nonceOf(direction), additionalData: join(context, direction) };
  return new Uint8Array(await subtle.encrypt(algorithm, imported, shares));
}

function nonceOf(direction: Bytes): Bytes {
  return join(direction, new Uint8Array(4));
}

/** Opens what the other side sealed: the share of its mask key, then the share of its seed. */
export async function open(key: Bytes, context: Bytes, from: number, to: number, sealed: Bytes): Promise<Bytes> {
  const direction = join(little(BigInt(from), 4), little(BigInt(to), 4));
  const imported = await subtle.importKey("raw", key, "AES-GCM", false, ["decrypt"]);
  const algorithm = { name: "AES-GCM", iv: nonceOf(direction), additionalData: join(context, direction) };
  return new Uint8Array(await subtle.decrypt(algorithm, imported, sealed));
}

export async function verify(publicHalf: Bytes, signature: Bytes, message: Bytes): Promise<boolean> {
  const key = await subtle.importKey("raw", publicHalf, "Ed25519", false, ["verify"]);
  return subtle.verify("Ed25519", key, signature, message);
}

/** One attempt of one round. */
export interface Round {
  readonly task: string;
  readonly round: number;
  readonly attempt: number;
}

/** What a device signs when it joins. */
export function keysMessage(round: Round, sessionDigest: Bytes, shareKey: Bytes, maskKey: Bytes): Bytes {
  const numbers = [round.round, round.attempt].map(integer);
  const keys = [sessionDigest, shareKey, maskKey].map(item);
  return join(item("fedrecon secure sum keys 1"), item(round.task), ...numbers, ...keys);
}

/** A member of a roster. */
export interface Member {
  readonly share_key: Bytes;
  readonly mask_key: Bytes;
  readonly device_key: Bytes;
  readonly session_digest: Bytes;
}

/** The digest of a roster, its members in order of their indices. */
export async function rosterDigest(members: readonly Member[]): Promise<Bytes> {
  const entries = members.map(({ share_key, mask_key, device_key, session_digest }, index) =>
    join(integer(index), ...[share_key, mask_key, device_key, session_digest].map(item)),
  );
  return sha256(join(item("fedrecon secure sum roster 1"), integer(members.length), ...entries));
}

/** What all members of a group must have been told alike. */
export interface Told extends Round, Agreement {
  readonly kind: number;
  readonly group: Bytes;
  readonly server_nonce: Bytes;
  readonly plan_digest: Bytes;
  readonly checkpoint_digest: Bytes;
  readonly members: number;
  readonly neighbours: number;
  readonly threshold: number;
  readonly roster_digest: Bytes;
}

/** The context of a masked sum. */
export async function contextOf(told: Told): Promise<Bytes> {
  const segments = told.segments.map((segment) =>
    join(integer(segment.elements), real(segment.bound), item(segment.row_set ?? new Uint8Array(0))),
  );
  return sha256(
    join(
      item("fedrecon secure sum context 2"),
      item(told.task),
      ...[told.round, told.attempt, told.kind].map(integer),
      ...[told.group, told.server_nonce, told.plan_digest, told.checkpoint_digest].map(item),
      ...[told.members, told.neighbours, told.threshold].map(integer),
      ...[told.ring_bits, told.maximum_reports, told.maximum_weight].map(integer),
      integer(told.segments.length),
      ...segments,
      integer(told.metric_bounds.length),
      ...told.metric_bounds.map(real),
      item(told.roster_digest),
    ),
  );
}

/** What a member says of its self-mask seed. */
export async function seedCommitment(context: Bytes, member: number, seed: Bytes): Promise<Bytes> {
  return sha256(join(item("fedrecon secure sum seed 1"), item(context), integer(member), item(seed)));
}

/** What is signed, or goes into a MAC, for one call. */
export async function callTranscript(method: string, nonce: Bytes, body: Bytes): Promise<Bytes> {
  return join("fedrecon call 1\0", method, "\0", nonce, await sha256(body));
}

/** What a device signs to be enrolled. */
export async function enrolmentTranscript(deviceKey: Bytes, challenge: Bytes, attestation: Bytes): Promise<Bytes> {
  return join("fedrecon enrolment 1\0", deviceKey, await sha256(challenge), await sha256(attestation));
}

/** A vector's shape: bytes of a body element, how many, and entries of the tail. */
export interface Shape {
  readonly ring_bits: number;
  readonly elements: number;
  readonly tail_entries: number;
}

/** The mask of a seed: the first bytes of its keystream. */
export async function mask(seed: Bytes, shape: Shape): Promise<Bytes> {
  const length = (shape.elements * shape.ring_bits) / 8 + shape.tail_entries * 8;
  const drawn = await words(seed, "mask", 0, Math.ceil(length / 4));
  return join(...Array.from(drawn, (word) => little(BigInt(word), 4))).slice(0, length);
}

/** Adds a vector to another, or subtracts it: elements modulo 2^ring_bits, tail entries modulo 2^64. */
export function add(vector: Bytes, other: Bytes, sign: 1n | -1n, shape: Shape): Bytes {
  const width = shape.ring_bits / 8;
  const parts: Bytes[] = [];
  for (let start = 0; start < vector.length; ) {
    const bytes = start < shape.elements * width ? width : 8;
    const end = start + bytes;
    const whole = fromLittle(vector.slice(start, end)) + sign * fromLittle(other.slice(start, end));
    parts.push(little(BigInt.asUintN(8 * bytes, whole), bytes));
    start += bytes;
  }
  return join(...parts);
}

/** How reports become integers: `SecureSum` and layout of an assignment. */
export interface Agreement {
  readonly segments: readonly { readonly elements: number; readonly bound: number; readonly row_set?: Bytes }[];
  readonly metric_bounds: readonly number[];
  readonly maximum_reports: number;
  readonly maximum_weight: number;
  readonly ring_bits: number;
}

/** The vector of a report. */
export async function quantise(
  updates: readonly (readonly number[])[],
  examples: number,
  metricSums: readonly number[],
  agreed: Agreement,
  seed: Bytes,
): Promise<Bytes> {
  const limit = Math.floor((2 ** (agreed.ring_bits - 1) - 1) / agreed.maximum_reports);
  const weight = Math.min(examples, agreed.maximum_weight);
  const count = agreed.segments.reduce((whole, segment) => whole + segment.elements, 0);
  const drawn = await uniform(seed, "rounding", 0, count);
  const parts: Bytes[] = [];
  let place = 0;
  agreed.segments.forEach(({ elements, bound }, number) => {
    const most = agreed.maximum_weight * bound;
    for (let element = 0; element < elements; element++, place++) {
      const value = clip(weight * Math.fround(updates[number]![element]!), most) * (limit / most);
      const rounded = clip(Math.floor(value + drawn[place]!), limit);
      parts.push(little(BigInt.asUintN(agreed.ring_bits, BigInt(rounded)), agreed.ring_bits / 8));
    }
  });
  const metricLimit = ((1n << 63n) - 1n) / BigInt(agreed.maximum_reports);
  const sums = metricSums.map((sum, number) => {
    const scaled = BigInt(roundedToEven(clip(sum, examples * agreed.metric_bounds[number]!) * METRIC_SCALE));
    return scaled > metricLimit ? metricLimit : scaled < -metricLimit ? -metricLimit : scaled;
  });
  const tail = [BigInt(weight), 1n, ...sums].map((entry) => little(BigInt.asUintN(64, entry), 8));
  return join(...parts, ...tail);
}

function clip(number: number, most: number): number {
  return Math.min(Math.max(number, -most), most);
}

function roundedToEven(number: number): number {
  const near = Math.round(number);
  return Math.abs(number % 1) === 0.5 && near % 2 !== 0 ? near - 1 : near;
}

/** What is signed, sealed, shared, masked and rounded: the known answers hold in a second language. */

import { readFile } from "node:fs/promises";

import { expect, test } from "vitest";

import { type Bytes, fromHex, toHex } from "../src/digests.js";
import * as contract from "./contract.js";

const folder = new URL("../../../protos/vectors/", import.meta.url);
const vectors = async (name: string) => JSON.parse(await readFile(new URL(`${name}.json`, folder), "utf8"));
const wire = await vectors("wire");
const identity = await vectors("identity");
const sums = await vectors("secure_sum");
const context = fromHex(sums.contexts[0].context);
const bytesOf = (from: Record<string, string>, ...names: string[]): any =>
  Object.fromEntries(names.map((name) => [name, fromHex(from[name]!)]));
const SHAPE = {
  ring_bits: sums.contexts[0].ring_bits as number,
  elements: sums.contexts[0].segments.reduce((whole: number, each: { elements: number }) => whole + each.elements, 0),
  tail_entries: 2 + sums.contexts[0].metric_bounds.length,
};

test("reports become their published integers", async () => {
  for (const each of wire.fixed_point) {
    const seed = fromHex(each.rounding_seed);
    const vector = await contract.quantise(each.updates, each.examples, each.metric_sums, each, seed);
    expect(toHex(vector)).toBe(each.vector);
  }
});

test("calls are signed and proved over their published bytes", async () => {
  for (const each of [identity.check_in, identity.upload]) {
    const transcript = await contract.callTranscript(each.method, fromHex(each.nonce), fromHex(each.body));
    expect(toHex(transcript)).toBe(each.transcript);
  }
  const seed = fromHex(identity.device_seed);
  expect(toHex(await contract.sign(seed, fromHex(identity.check_in.transcript)))).toBe(identity.check_in.signature);
  const { session_key, transcript, mac } = identity.upload;
  expect(toHex(await contract.hmac(fromHex(session_key), fromHex(transcript)))).toBe(mac);
  const [challenge, attestation] = [identity.enrolment.challenge, identity.enrolment.attestation].map(fromHex);
  const enrolment = await contract.enrolmentTranscript(fromHex(identity.device_key), challenge!, attestation!);
  expect(toHex(enrolment)).toBe(identity.enrolment.transcript);
  expect(toHex(await contract.sign(seed, enrolment))).toBe(identity.enrolment.signature);
});

test("members' keys, and the signatures over them, are the published ones", async () => {
  for (const each of sums.keys) {
    expect(toHex(await contract.publicKey(fromHex(each.share_secret)))).toBe(each.share_key);
    expect(toHex(await contract.publicKey(fromHex(each.mask_secret)))).toBe(each.mask_key);
    const sessionDigest = await contract.sha256(fromHex(each.session));
    const message = contract.keysMessage(each, sessionDigest, fromHex(each.share_key), fromHex(each.mask_key));
    expect(toHex(message)).toBe(each.message);
    expect(toHex(await contract.sign(fromHex(each.device_secret), message))).toBe(each.signature);
    expect(await contract.verify(fromHex(each.device_key), fromHex(each.signature), message)).toBe(true);
  }
});

test("the roster has its published digest", async () => {
  const members = sums.keys.map(async (each: Record<string, string>) => ({
    ...bytesOf(each, "share_key", "mask_key", "device_key"),
    session_digest: await contract.sha256(fromHex(each["session"]!)),
  }));
  expect(toHex(await contract.rosterDigest(await Promise.all(members)))).toBe(sums.roster_digest);
});

test("contexts are the published ones", async () => {
  const names = ["group", "server_nonce", "plan_digest", "checkpoint_digest", "roster_digest"];
  for (const each of sums.contexts) {
    const segments = each.segments.map((segment: { row_set?: string }) => ({
      ...segment,
      row_set: fromHex(segment.row_set ?? ""),
    }));
    const told = { ...each, ...bytesOf(each, ...names), segments } as contract.Told;
    expect(toHex(await contract.contextOf(told))).toBe(each.context);
  }
});

test("pairs agree on their published seeds and keys", async () => {
  for (const each of sums.pairs) {
    const [one, other] = each.members as [number, number];
    for (const [from, to] of [
      [one, other],
      [other, one],
    ] as const) {
      const [own, theirs] = [sums.keys[from], sums.keys[to]];
      const masks = [fromHex(own.mask_secret), fromHex(theirs.mask_key)] as const;
      const shares = [fromHex(own.share_secret), fromHex(theirs.share_key)] as const;
      expect(toHex(await contract.derive("fedrecon mask 1", context, each.members, ...masks))).toBe(each.mask_seed);
      expect(toHex(await contract.derive("fedrecon share 1", context, each.members, ...shares))).toBe(each.share_key);
    }
  }
});

test("secrets are shared and sealed as published", async () => {
  for (const each of sums.shares) {
    for (const [point, expected] of Object.entries(each.shares)) {
      const made = contract.share(fromHex(each.secret), each.threshold, fromHex(each.entropy), Number(point));
      expect(toHex(made)).toBe(expected);
    }
  }
  for (const each of sums.sealed_shares) {
    const [own, theirs] = [sums.keys[each.from], sums.keys[each.to]];
    const keys = [fromHex(own.share_secret), fromHex(theirs.share_key)] as const;
    const key = await contract.derive("fedrecon share 1", context, [each.from, each.to], ...keys);
    const both = contract.join(fromHex(each.key_share), fromHex(each.seed_share));
    expect(toHex(await contract.seal(key, context, each.from, each.to, both))).toBe(each.ciphertext);
    expect(toHex(await contract.open(key, context, each.from, each.to, fromHex(each.ciphertext)))).toBe(toHex(both));
  }
  for (const each of sums.seed_commitments) {
    const commitment = await contract.seedCommitment(fromHex(each.context), each.member, fromHex(each.seed));
    expect(toHex(commitment)).toBe(each.commitment);
  }
});

test("masks are the published ones, hide the published vectors, and cancel in their sum", async () => {
  for (const each of sums.masks) {
    expect(toHex(await contract.mask(fromHex(each.seed), each))).toBe(each.mask);
  }
  for (const each of sums.masked_vectors) {
    const own = sums.seed_commitments.find((one: { member: number }) => one.member === each.member);
    let vector = contract.add(fromHex(each.vector), await contract.mask(fromHex(own.seed), SHAPE), 1n, SHAPE);
    for (const pair of sums.pairs) {
      if (pair.members.includes(each.member)) {
        const sign = each.member === Math.min(...pair.members) ? 1n : -1n;
        vector = contract.add(vector, await contract.mask(fromHex(pair.mask_seed), SHAPE), sign, SHAPE);
      }
    }
    expect(toHex(vector)).toBe(each.masked);
  }
  let sum = sums.masked_vectors
    .map((each: { masked: string }) => fromHex(each.masked))
    .reduce((one: Bytes, other: Bytes) => contract.add(one, other, 1n, SHAPE));
  expect(toHex(sum)).toBe(sums.sum.masked);
  for (const each of sums.seed_commitments) {
    sum = contract.add(sum, await contract.mask(fromHex(each.seed), SHAPE), -1n, SHAPE);
  }
  expect(toHex(sum)).toBe(sums.sum.plain);
});

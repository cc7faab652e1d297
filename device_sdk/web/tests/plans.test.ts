/** Plans that must not run, and work that cannot be done. */

import { readFile } from "node:fs/promises";

import { afterAll, beforeAll, expect, test } from "vitest";

import type { Bytes } from "../src/digests.js";
import { readManifest } from "../src/manifests.js";
import { Plan } from "../src/plans.js";
import { readSafetensors } from "../src/tensors.js";
import { openPlan, refused } from "./checks.js";

const folder = new URL("../../../protos/vectors/", import.meta.url);
const read = async (name: string): Promise<Bytes> => new Uint8Array(await readFile(new URL(name, folder)));
const blob = (digest: string) => read(`films-gradient/blobs/${digest}`);
const mine = { item: ["film-1", "film-2"], rating: [5, 1] };
const seeds = { initial: new Uint8Array(32), split: new Uint8Array(32) };
const work = { split: "SPLIT_RULE_ALTERNATE_EXAMPLES" };

let plan: Plan;
let manifest: Bytes;

beforeAll(async () => {
  plan = await openPlan(read, "films-gradient");
  manifest = await read("films-gradient/manifest.json");
});

afterAll(() => plan.close());

test("a plan of somebody, or of nobody, is refused before anything is fetched", async () => {
  const never = () => Promise.reject(new Error("fetched"));
  const signature = JSON.parse(new TextDecoder().decode(await read("films-gradient/signature.json")));
  await refused(() => Plan.load(manifest, never, { trustedPlans: ["ab".repeat(32)], signature }), "UNTRUSTED_PLAN");
  await refused(() => Plan.load(manifest, never, { trustedPlans: ["ab".repeat(32)] }), "UNTRUSTED_PLAN");
});

test("a part that is not what its digest says is refused", async () => {
  const spoilt = async (digest: string) => (await blob(digest)).map((byte, place) => (place === 40 ? byte ^ 1 : byte));
  await refused(() => Plan.load(manifest, spoilt), "DAMAGED_BLOB");
});

test("a manifest of a later format, and one that is none, are refused", () => {
  for (const text of ['{"format": 2, "name": "later"}', "{", "null"]) {
    expect(() => readManifest(new TextEncoder().encode(text))).toThrow(/format|cannot be read/);
  }
});

test("a checkpoint of another plan is refused", async () => {
  const checkpoint = await read("films-gradient/manifest.json");
  await refused(() => Plan.load(manifest, blob, { checkpoint }), "UNUSABLE_PLAN");
});

test("a file of tensors that is cut off anywhere is refused", async () => {
  const digest = readManifest(manifest).initial_checkpoint!.digest;
  const whole = await blob(Buffer.from(digest, "base64").toString("hex"));
  expect(readSafetensors(whole).size).toBe(2);
  for (let length = 0; length < whole.length; length += 7) {
    expect(() => readSafetensors(whole.slice(0, length))).toThrow();
  }
});

test("numbers of 16 bits are read as the numbers that they stand for", () => {
  const halves = { 0x3c00: 1, 0xc000: -2, 0x3555: 0.333251953125, 0x7bff: 65504, 0x0400: 2 ** -14, 0x0001: 2 ** -24 };
  const stored = Uint16Array.from(Object.keys(halves), Number);
  const header = JSON.stringify({ x: { dtype: "F16", shape: [stored.length], data_offsets: [0, stored.byteLength] } });
  const length = new Uint8Array(new BigUint64Array([BigInt(header.length)]).buffer);
  const file = Buffer.concat([length, new TextEncoder().encode(header), new Uint8Array(stored.buffer)]);
  const read = readSafetensors(new Uint8Array(file)).get("x")!;
  expect(read.type).toBe("float32");
  expect([...(read.data as Float32Array)]).toEqual(Object.keys(halves).map((bits) => halves[bits as never]));
});

test("too few examples, wrong settings and unknown splits are refused", async () => {
  await refused(() => plan.train(mine, { ...work, minimum_examples: 3 }, seeds), "TOO_FEW_EXAMPLES");
  await refused(() => plan.train({ item: ["film-1"], rating: [1] }, work, seeds), "TOO_FEW_EXAMPLES");
  await refused(() => plan.train({}, work, seeds), "TOO_FEW_EXAMPLES");
  await refused(() => plan.train(mine, {}, seeds), "UNUSABLE_PLAN");
  await refused(() => plan.train(mine, { ...work, hyperparameters: { nothing: 1 } }, seeds), "UNUSABLE_PLAN");
  await refused(() => plan.train(mine, { ...work, hyperparameters: { "update.rate": 9 } }, seeds), "UNUSABLE_PLAN");
});

test("no examples leave local parameters as they begin", async () => {
  const local = await plan.reconstruct({});
  expect(local.get("user_vector")!.data).toHaveLength(4);
  expect(Math.max(...(local.get("user_vector")!.data as Float32Array).map(Math.abs))).toBeLessThanOrEqual(0.05);
});

/** Files with random bytes changed: readers refuse them in their own words, or read them, and never break. */

import { readFile } from "node:fs/promises";

import { expect, test } from "vitest";

import type { Bytes } from "../src/digests.js";
import { FedreconError } from "../src/errors.js";
import { readManifest } from "../src/manifests.js";
import { metadataOf } from "../src/metadata.js";
import { Plan } from "../src/plans.js";
import { readSafetensors } from "../src/tensors.js";
import { readVocabulary } from "../src/vocabulary.js";

const folder = new URL("../../../protos/vectors/", import.meta.url);
const read = async (name: string): Promise<Bytes> => new Uint8Array(await readFile(new URL(name, folder)));
const INPUTS = 2_000;

/** Mulberry32: the same numbers in every run. */
function numbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function damaged(content: Bytes, draw: () => number): Bytes {
  const copy = content.slice(0, draw() < 0.2 ? Math.floor(draw() * content.length) : content.length);
  for (let change = 0; change < 1 + draw() * 4 && copy.length > 0; change++) {
    copy[Math.floor(draw() * Math.min(copy.length, 2_000))] = Math.floor(draw() * 256);
  }
  return copy;
}

async function checkpoint(): Promise<Bytes> {
  const { initial_checkpoint } = readManifest(await read("films-gradient/manifest.json"));
  return read(`films-gradient/blobs/${Buffer.from(initial_checkpoint!.digest, "base64").toString("hex")}`);
}

const readers: Record<string, [() => Promise<Bytes>, (content: Bytes) => unknown]> = {
  vocabularies: [() => read("films-gradient.items"), readVocabulary],
  metadata: [() => read("films-gradient.onnx"), (content) => metadataOf(content, "the file")],
  checkpoints: [checkpoint, readSafetensors],
  manifests: [() => read("films-gradient/manifest.json"), readManifest],
};

test.each(Object.keys(readers))("damaged %s are refused in words, or read", async (name) => {
  const [load, reader] = readers[name]!;
  const content = await load();
  const draw = numbers(7);
  let refusals = 0;
  for (let input = 0; input < INPUTS; input++) {
    const bytes = damaged(content, draw);
    try {
      reader(bytes);
    } catch (error) {
      expect(error).toBeInstanceOf(FedreconError);
      refusals++;
    }
  }
  expect(refusals).toBeGreaterThan(0);
});

test("a manifest whose parts are something else is refused in words", async () => {
  const whole = JSON.parse(new TextDecoder().decode(await read("films-gradient/manifest.json")));
  const blob = (digest: string) => read(`films-gradient/blobs/${digest}`);
  for (const key of ["parameters", "fields", "graphs", "vocabularies", "initial_checkpoint"]) {
    for (const value of [5, "text", [null], { a: null }, { digest: "%" }]) {
      const content = new TextEncoder().encode(JSON.stringify({ ...whole, [key]: value }));
      const error = await Plan.load(content, blob)
        .then((plan) => plan.reconstruct({ item: ["film-1"], rating: [3] }))
        .then(
          () => "it ran",
          (refusal: unknown) => refusal,
        );
      expect(error, `${key}: ${JSON.stringify(value)}`).toBeInstanceOf(FedreconError);
    }
  }
});

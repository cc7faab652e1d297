/**
 * Known answers of `protos/vectors`, as checks that node and browsers run alike.
 *
 * A check returns the largest difference of a real number from what is expected, relative to the larger of 1 and the
 * largest number expected beside it; what must be equal and is not, it throws.
 */

import type { LocalWork } from "../src/bench.js";
import { type Bytes, digestOf, fromBase64, fromHex, toHex } from "../src/digests.js";
import { words } from "../src/keystream.js";
import type { LocalParameters } from "../src/local_parameters.js";
import { initialLocals, type Manifest, type PlanSignature, verifyPlan } from "../src/manifests.js";
import { Plan } from "../src/plans.js";
import { Recommender } from "../src/recommender.js";
import { order, split } from "../src/schedules.js";
import { readSafetensors } from "../src/tensors.js";
import { numbersOf } from "../src/values.js";
import { readVocabulary } from "../src/vocabulary.js";

/** Gives the bytes of a file of `protos/vectors`. */
export type Read = (name: string) => Promise<Bytes>;
export type Check = (read: Read) => Promise<number>;

/** Real numbers may differ by so much. */
export const TOLERANCE = 1e-5;

export const checks: Readonly<Record<string, Check>> = {
  "the keystream gives its published words": keystreams,
  "digests are the published ones": digests,
  "initial locals give their published values": initials,
  "splits are the published ones": splits,
  "schedules are the published ones": schedules,
  "plan signatures are the published ones, and no others": signatures,
  "safetensors files are read as their library wrote them": tensors,
  "vocabularies are read as they were written": vocabularies,
  "recommenders give the Python SDK's answers": recommendations,
  "plans train as the Python SDK does": training,
  "plans recommend as their recommenders do": scoring,
  "plans give torch's recorded answers": recorded,
};

async function keystreams(read: Read): Promise<number> {
  for (const each of (await json(read, "wire.json")).keystream) {
    const drawn = await words(fromHex(each.seed), each.purpose, each.start, each.words.length);
    equal([...drawn], each.words, "words");
  }
  return 0;
}

async function digests(read: Read): Promise<number> {
  for (const each of (await json(read, "wire.json")).digests) {
    equal(await digestOf(fromHex(each.content)), each.sha256, "digest");
  }
  return 0;
}

async function initials(read: Read): Promise<number> {
  for (const each of (await json(read, "wire.json")).initial_locals) {
    const parameters = each.parameters.map((parameter: object) => ({
      ...parameter,
      placement: "PLACEMENT_LOCAL",
      dtype: "DTYPE_FLOAT32",
    }));
    const made = await initialLocals({ format: 1, name: "", parameters } as Manifest, new Map(), fromHex(each.seed));
    for (const parameter of each.parameters) {
      const expected = Array.from(parameter.values as number[], Math.fround);
      equal(numbersOf(made.get(parameter.name)!), expected, parameter.name);
    }
  }
  return 0;
}

async function splits(read: Read): Promise<number> {
  for (const each of (await json(read, "wire.json")).splits) {
    const made = await split(each.examples, each.rule, each.batch_size, each.support_fraction, fromHex(each.seed));
    equal(made, { support: each.support, query: each.query }, each.rule);
  }
  return 0;
}

async function schedules(read: Read): Promise<number> {
  for (const each of (await json(read, "wire.json")).schedules) {
    const made = order(each.positions, each);
    equal(made.order.dims, [each.order.length, each.batch_size], "extents");
    equal(numbersOf(made.order), each.order.flat(), "order");
    equal(numbersOf(made.mask), each.mask.flat(), "mask");
  }
  return 0;
}

async function signatures(read: Read): Promise<number> {
  const base64 = (hex: string) => btoa(String.fromCharCode(...fromHex(hex)));
  for (const each of (await json(read, "wire.json")).plan_signatures) {
    const signature: PlanSignature = {
      publisher_key: base64(each.publisher_key),
      signature: base64(each.signature),
    };
    await verifyPlan(each.plan_digest, signature, [each.publisher_key]);
    const another = each.plan_digest.replace(/^./, (digit: string) => (digit === "0" ? "1" : "0"));
    await refused(() => verifyPlan(another, signature, [each.publisher_key]), "UNTRUSTED_PLAN");
    await refused(() => verifyPlan(each.plan_digest, signature, []), "UNTRUSTED_PLAN");
  }
  return 0;
}

async function tensors(read: Read): Promise<number> {
  const stored = { float32: "float32", int64: "int64", bool: "bool" } as const;
  for (const each of (await json(read, "formats.json")).tensors) {
    const found = readSafetensors(fromHex(each.file));
    for (const [name, expected] of Object.entries<any>(each.tensors)) {
      const values = found.get(name)!;
      equal(values.type, stored[expected.type as "int64"], `type of ${name}`);
      equal(values.dims, expected.shape, `extents of ${name}`);
      equal(numbersOf(values), expected.values.map(Number), name);
    }
  }
  return 0;
}

async function vocabularies(read: Read): Promise<number> {
  for (const each of (await json(read, "formats.json")).vocabularies) {
    const { name, version, keys, titles, retired } = readVocabulary(fromHex(each.content));
    const expected = [each.name, each.version, each.keys, each.titles, each.retired_rows];
    equal([name, version, keys, titles, [...retired]], expected, each.name);
  }
  return 0;
}

async function recommendations(read: Read): Promise<number> {
  let largest = 0;
  const open = new Opened((name) => openRecommender(read, name));
  for (const each of (await json(read, "recommendations.json")).cases) {
    const recommender = await open.get(each.file);
    equal(recommender.unknownKeys(each.examples), each.unknown_keys, "unknown keys");
    largest = Math.max(largest, localDifference(await recommender.reconstruct(each.examples), each.local));
    const scores = await recommender.predict(each.examples, recommender.items.keys);
    equal(scores.map((score) => score === null), each.scores.map((score: unknown) => score === null), "retired items");
    largest = Math.max(largest, difference(scores.map(Number), each.scores.map(Number)));
    const best = await recommender.recommend(each.examples, each.best.length, { exclude: each.exclude });
    equal(best.map(({ key, title }) => [key, title]), each.best.map((one: any) => [one.key, one.title]), "the best");
    largest = Math.max(largest, difference(best.map(({ score }) => score), each.best.map((one: any) => one.score)));
  }
  await open.close();
  return largest;
}

async function training(read: Read): Promise<number> {
  let largest = 0;
  const open = new Opened((name) => openPlan(read, name));
  for (const each of (await json(read, "training.json")).cases) {
    const plan = await open.get(each.plan);
    const seeds = { initial: fromHex(each.initial_seed), split: fromHex(each.split_seed) };
    const made = await plan.train(each.examples, each.work as LocalWork, seeds);
    equal(made.examples, each.query_examples, "query examples");
    largest = Math.max(largest, localDifference(made.localParameters, each.local));
    largest = Math.max(largest, difference(made.metricSums, each.metric_sums));
    equal([...made.updates.keys()].sort(), Object.keys(each.updates).sort(), "updated parameters");
    for (const [name, expected] of Object.entries<any>(each.updates)) {
      const update = made.updates.get(name)!;
      equal(update.rows, expected.rows, `rows of ${name}`);
      largest = Math.max(largest, difference(numbersOf(update.values), expected.values));
    }
  }
  await open.close();
  return largest;
}

async function scoring(read: Read): Promise<number> {
  let largest = 0;
  const open = new Opened((name) => openPlan(read, name));
  for (const each of (await json(read, "recommendations.json")).cases) {
    const plan = await open.get(each.file);
    const local = await plan.reconstruct(each.examples);
    const rows = each.scores.map((_: unknown, row: number) => row);
    const scores = await plan.score(local, "item", rows);
    const known = rows.filter((row: number) => each.scores[row] !== null);
    const [found, expected] = [scores, each.scores].map((from) => known.map((row: number) => from[row]));
    largest = Math.max(largest, difference(found, expected));
  }
  await open.close();
  return largest;
}

async function recorded(read: Read): Promise<number> {
  let largest = 0;
  for (const name of ["films-gradient", "films-ridge"]) {
    const plan = await openPlan(read, name);
    largest = Math.max(largest, await plan.verifyRuntime());
    await plan.close();
  }
  return largest;
}

/** Files that several cases use, opened once: to open one takes longer than to run it. */
class Opened<T extends { close(): Promise<void> }> {
  private readonly opened = new Map<string, T>();

  constructor(private readonly open: (name: string) => Promise<T>) {}

  async get(name: string): Promise<T> {
    const found = this.opened.get(name) ?? (await this.open(name));
    this.opened.set(name, found);
    return found;
  }

  async close(): Promise<void> {
    await Promise.all([...this.opened.values()].map((each) => each.close()));
  }
}

export async function openRecommender(read: Read, name: string): Promise<Recommender> {
  return Recommender.load({ file: await read(`${name}.onnx`), items: await read(`${name}.items`) });
}

export async function openPlan(read: Read, folder: string): Promise<Plan> {
  const signature = JSON.parse(new TextDecoder().decode(await read(`${folder}/signature.json`))) as PlanSignature;
  const trustedPlans = [toHex(fromBase64(signature.publisher_key))];
  const blob = (digest: string) => read(`${folder}/blobs/${digest}`);
  return Plan.load(await read(`${folder}/manifest.json`), blob, { trustedPlans, signature });
}

/** Throws unless something fails with this reason. */
export async function refused(attempt: () => Promise<unknown>, reason: string): Promise<void> {
  const found = await attempt().then(
    () => "no refusal",
    (error: { reason?: string }) => error.reason ?? String(error),
  );
  equal(found, reason, "refusal");
}

async function json(read: Read, name: string): Promise<any> {
  return JSON.parse(new TextDecoder().decode(await read(name)));
}

function localDifference(found: LocalParameters, expected: Record<string, number[]>): number {
  equal([...found.names].sort(), Object.keys(expected).sort(), "local parameters");
  return Math.max(0, ...found.names.map((name) => difference(numbersOf(found.get(name)!), expected[name]!)));
}

function difference(found: readonly number[], expected: readonly number[]): number {
  equal(found.length, expected.length, "how many numbers");
  const scale = Math.max(1, ...expected.map(Math.abs));
  return Math.max(0, ...found.map((number, place) => Math.abs(number - expected[place]!) / scale));
}

function equal(found: unknown, expected: unknown, what: string): void {
  if (JSON.stringify(found) !== JSON.stringify(expected)) {
    throw new Error(`${what}: expected ${JSON.stringify(expected)}, found ${JSON.stringify(found)}`);
  }
}

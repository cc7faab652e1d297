/**
 * The parts of a plan, each checked against the digest that names it: graphs, checkpoint, vocabularies, and torch's own
 * answers, against which a browser checks itself.
 */

import { type Bytes, digestOf, fromBase64, toHex, verifyDigest } from "./digests.js";
import { FedreconError, UnreachableError, UntrustedPlanError, UnusablePlanError } from "./errors.js";
import { RunnableGraph } from "./graphs.js";
import {
  type BlobReference,
  extentsOf,
  type Graph,
  type Manifest,
  type PlanSignature,
  readManifest,
  verifyPlan,
} from "./manifests.js";
import { readSafetensors } from "./tensors.js";
import { cast, isFinite, numbersOf, typeNamed, type Values } from "./values.js";
import { type Items, readVocabulary } from "./vocabulary.js";

const TOLERANCE = 1e-5;

/** Gives the bytes of a blob by its digest, 64 hexadecimal digits: from wherever the app keeps or loads them. */
export type FetchBlob = (digest: string) => Promise<Bytes>;

export interface PlanOptions {
  /** Public keys of publishers whose plans may run, in hexadecimal; empty or not given: any, also unsigned ones. */
  readonly trustedPlans?: readonly string[];
  /** The publisher's word, as `signature.json` has it. */
  readonly signature?: PlanSignature;
  /** The checkpoint to run with, as a safetensors file; the plan's initial one if not given. */
  readonly checkpoint?: Bytes;
  /** Vocabularies in force by name, where they are newer than the plan's. */
  readonly vocabularies?: Readonly<Record<string, Bytes>>;
}

/** What a plan is made of. */
export interface Parts {
  /** SHA-256 of the manifest, in hexadecimal. */
  readonly digest: string;
  readonly manifest: Manifest;
  /** By role. */
  readonly graphs: ReadonlyMap<string, readonly [Graph, RunnableGraph]>;
  /** Global parameters by name. */
  readonly checkpoint: ReadonlyMap<string, Values>;
  /** Rows that the checkpoint has, by vocabulary. */
  readonly rows: ReadonlyMap<string, number>;
  readonly vocabularies: ReadonlyMap<string, Items>;
}

/** Returns the parts of a plan; its publisher is checked before anything is fetched. */
export async function loadParts(content: Bytes, fetchBlob: FetchBlob, options: PlanOptions): Promise<Parts> {
  const digest = await digestOf(content);
  const trusted = options.trustedPlans ?? [];
  if (trusted.length > 0) {
    if (options.signature === undefined) {
      throw new UntrustedPlanError("the plan is not signed");
    }
    await verifyPlan(digest, options.signature, trusted);
  }
  const manifest = readManifest(content);
  const graphs = new Map<string, readonly [Graph, RunnableGraph]>();
  for (const graph of manifest.graphs ?? []) {
    const name = `${graph.role} of plan '${manifest.name}'`;
    graphs.set(graph.role, [graph, await RunnableGraph.open(await fetchVerified(graph.blob, name, fetchBlob), name)]);
  }
  const vocabularies = new Map<string, Items>();
  for (const [name, reference] of Object.entries(manifest.vocabularies ?? {})) {
    const newer = options.vocabularies?.[name];
    const stored = newer ?? (await fetchVerified(reference, `vocabulary '${name}'`, fetchBlob));
    vocabularies.set(name, readVocabulary(stored));
  }
  const stored =
    options.checkpoint ?? (await fetchVerified(manifest.initial_checkpoint, "initial checkpoint", fetchBlob));
  const checkpoint = readCheckpoint(stored, manifest);
  return { digest, manifest, graphs, checkpoint, rows: rowsInForce(manifest, checkpoint), vocabularies };
}

/**
 * Runs a plan's graphs on its recorded inputs, and returns the largest difference from torch's own answers, relative to
 * the larger of 1 and the largest number of the answer. Throws where this browser computes something else.
 */
export async function compareWithTorch({ manifest, graphs }: Parts, fetchBlob: FetchBlob): Promise<number> {
  const answers = readSafetensors(await fetchVerified(manifest.recorded_answers, "recorded answers", fetchBlob));
  const feeds = new Map<string, Record<string, Values>>();
  for (const [key, values] of answers) {
    const [what, name] = key.split("/input/");
    if (name !== undefined) {
      feeds.set(what!, { ...feeds.get(what!), [name]: values });
    }
  }
  let largest = 0;
  for (const [what, given] of feeds) {
    const role = `GRAPH_ROLE_${what.split("/")[1]!.toUpperCase()}`;
    const outputs = await graphs.get(role)![1].run(given);
    for (const [name, found] of Object.entries(outputs)) {
      const difference = differenceOf(found, answers.get(`${what}/output/${name}`)!);
      if (!(difference <= TOLERANCE)) {
        throw new UnusablePlanError(
          `${what}: this runtime differs from torch by ${difference}`,
          "use another browser, or tell the publisher of the plan",
        );
      }
      largest = Math.max(largest, difference);
    }
  }
  return largest;
}

async function fetchVerified(
  reference: BlobReference | undefined,
  what: string,
  fetchBlob: FetchBlob,
): Promise<Bytes> {
  const named = toHex(fromBase64(reference?.digest ?? ""));
  const blob = await fetchBlob(named).catch((error: unknown) => {
    throw error instanceof FedreconError ? error : new UnreachableError(`${what}: ${String(error)}`);
  });
  await verifyDigest(blob, named, what);
  return blob;
}

/** Returns the global parameters of a checkpoint in their plan's types. */
function readCheckpoint(content: Bytes, manifest: Manifest): ReadonlyMap<string, Values> {
  const tensors = readSafetensors(content);
  const checkpoint = new Map<string, Values>();
  for (const parameter of manifest.parameters ?? []) {
    if (parameter.placement !== "PLACEMENT_GLOBAL") {
      continue;
    }
    const tensor = tensors.get(parameter.name);
    const shape = extentsOf(parameter.shape);
    const fixed = parameter.vocabulary ? 1 : 0; // rows come and go with the vocabulary
    if (
      tensor === undefined ||
      tensor.dims.length !== shape.length ||
      String(tensor.dims.slice(fixed)) !== String(shape.slice(fixed))
    ) {
      throw new UnusablePlanError(
        `parameter ${parameter.name} should have shape [${shape}], found ${tensor ? `[${tensor.dims}]` : "nothing"}: ` +
          "checkpoint and plan do not belong together",
      );
    }
    if (!isFinite(tensor)) {
      throw new UnusablePlanError(`parameter ${parameter.name} holds values that are not finite: training diverged`);
    }
    checkpoint.set(parameter.name, cast(tensor, typeNamed(parameter.dtype, `parameter ${parameter.name}`)));
  }
  return checkpoint;
}

/** Returns how many rows every vocabulary has in a checkpoint. */
function rowsInForce(manifest: Manifest, checkpoint: ReadonlyMap<string, Values>): ReadonlyMap<string, number> {
  const rows = new Map<string, number>();
  for (const { name, vocabulary } of manifest.parameters ?? []) {
    const count = checkpoint.get(name)?.dims[0];
    if (!vocabulary || count === undefined) {
      continue;
    }
    const known = rows.get(vocabulary) ?? count;
    if (known !== count) {
      throw new UnusablePlanError(`parameters of vocabulary '${vocabulary}' have ${known} and ${count} rows`);
    }
    rows.set(vocabulary, count);
  }
  return rows;
}

function differenceOf(found: Values, expected: Values): number {
  const numbers = numbersOf(expected);
  const scale = Math.max(1, ...numbers.map(Math.abs));
  return Math.max(0, ...numbersOf(found).map((number, place) => Math.abs(number - numbers[place]!) / scale));
}

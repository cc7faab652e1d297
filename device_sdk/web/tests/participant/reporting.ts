/** From an assignment to a report: blobs are fetched, the plan runs by the web SDK, and its update becomes integers. */

import type { LocalWork } from "../../src/bench.js";
import type { Examples } from "../../src/columns.js";
import { type Bytes, toHex } from "../../src/digests.js";
import { Plan, type TrainingResult } from "../../src/plans.js";
import { readSafetensors } from "../../src/tensors.js";
import { numbersOf } from "../../src/values.js";
import { type Agreement, quantise } from "../contract.js";
import { decode, type Line } from "./line.js";

const TRAIN = 1;
const MOST_EXAMPLES = 10_000;
const MOST_SHOWN = 1_000;
const SPLITS = ["UNSPECIFIED", "ALTERNATE_BATCHES", "ALTERNATE_EXAMPLES", "BY_TIME", "BY_FRACTION", "NONE"];

/** What an assignment names, ready to be run. */
export interface Material {
  readonly plan: Plan;
  readonly checkpoint: ReadonlyMap<string, { dims: readonly number[] }>;
  /** Rows of public row sets by digest, with contributors and the size of the cohort that they are stated for. */
  readonly rowSets: ReadonlyMap<string, { rows: number[]; contributors: number; cohortSize: number }>;
}

export interface Report {
  readonly vector: Bytes;
  readonly agreed: Agreement;
}

export async function fetchMaterial(assignment: any, line: Line): Promise<Material> {
  const get = (reference: any) =>
    line.fetch(assignment.blobs, Uint8Array.from(reference.digest), Number(reference.size));
  const content = await get(assignment.plan);
  const manifest = JSON.parse(new TextDecoder().decode(content));
  const blobs = new Map<string, Bytes>();
  for (const { blob } of manifest.graphs) {
    const digest = Uint8Array.from(Buffer.from(blob.digest, "base64"));
    blobs.set(toHex(digest), await get({ digest, size: blob.size }));
  }
  const checkpoint = await get(assignment.checkpoint);
  const vocabularies: Record<string, Bytes> = {};
  for (const [name, own] of Object.entries<any>(manifest.vocabularies ?? {})) {
    const newer = assignment.vocabularies[name];
    vocabularies[name] = await get(newer ?? { digest: Buffer.from(own.digest, "base64"), size: own.size });
  }
  const rowSets = new Map();
  for (const reference of Object.values<any>(assignment.row_sets)) {
    const { rows, contributors, cohort_size } = decode("RowSet", await get(reference));
    rowSets.set(toHex(reference.digest), { rows: rows.map(Number), contributors, cohortSize: cohort_size });
  }
  const plan = await Plan.load(content, async (digest) => blobs.get(digest)!, { checkpoint, vocabularies });
  return { plan, checkpoint: readSafetensors(checkpoint), rowSets };
}

/** Runs the plan, and returns the vector of its report. */
export async function makeReport(assignment: any, material: Material, examples: Examples): Promise<Report> {
  const random = () => crypto.getRandomValues(new Uint8Array(32));
  const result = await material.plan.train(examples, workOf(assignment.work), { initial: random(), split: random() });
  const segments = assignment.kind === TRAIN ? assignment.layout.segments : [];
  let updates: number[][] = segments.map((segment: any) => denseUpdate(segment, result, material));
  const metrics = [...result.metricSums];
  const bounds = (material.plan.manifest.metrics ?? []).map(({ bound }) => bound ?? 0);
  if (assignment.clip_norm > 0) {
    const norm = Math.sqrt(updates.flat().reduce((sum, each) => sum + each * each, 0));
    const factor = norm > assignment.clip_norm ? assignment.clip_norm / norm : 1;
    updates = updates.map((update) => update.map((each) => each * factor));
    if (assignment.clip_adapts) {
      metrics.push(norm <= assignment.clip_norm ? 1 : 0);
      bounds.push(1);
    }
  }
  if (assignment.tells_spread && assignment.kind !== TRAIN) {
    const n = result.examples;
    metrics.push(n, n * n, ...result.metricSums.flatMap((sum: number) => [sum * sum, sum * n]));
    const plans = (material.plan.manifest.metrics ?? []).map(({ bound }) => bound ?? 0);
    bounds.push(1, MOST_EXAMPLES, ...plans.flatMap((bound) => [bound * bound * MOST_EXAMPLES, bound * MOST_EXAMPLES]));
  }
  if (assignment.kind !== TRAIN) {
    for (const _ of assignment.outcome_versions) {
      metrics.push(0, 0, 0, 0, 0); // this device shows no recommendations
      bounds.push(MOST_SHOWN, MOST_SHOWN, ...Array<number>(3).fill(MOST_SHOWN * MOST_SHOWN));
    }
  }
  const agreed: Agreement = {
    segments: segments.map(({ bound, row_set_digest }: any, number: number) => ({
      elements: updates[number]!.length,
      bound,
      row_set: Uint8Array.from(row_set_digest),
    })),
    metric_bounds: bounds,
    maximum_reports: assignment.secure_sum.maximum_reports,
    maximum_weight: assignment.secure_sum.maximum_weight,
    ring_bits: assignment.secure_sum.ring_bits,
  };
  return { vector: await quantise(updates, result.examples, metrics, agreed, random()), agreed };
}

/** The update of a segment's rows: all of the checkpoint's, or those of its public row set. */
function denseUpdate(segment: any, result: TrainingResult, { checkpoint, rowSets }: Material): number[] {
  const extents = checkpoint.get(segment.parameter)!.dims;
  const whole = new Array<number>(extents.reduce((count, extent) => count * extent, 1)).fill(0);
  const update = result.updates.get(segment.parameter);
  const width = Number(segment.width);
  if (update !== undefined) {
    const numbers = numbersOf(update.values);
    (update.rows ?? [...Array(numbers.length / width).keys()]).forEach((row, place) =>
      whole.splice(row * width, width, ...numbers.slice(place * width, (place + 1) * width)),
    );
  }
  if (segment.row_set_digest.length === 0) {
    return whole;
  }
  const set = rowSets.get(toHex(segment.row_set_digest));
  if (set === undefined) {
    throw new Error("the layout names a row set that is not there");
  }
  return set.rows.flatMap((row) => whole.slice(row * width, (row + 1) * width));
}

function workOf(work: any): LocalWork {
  return {
    split: `SPLIT_RULE_${SPLITS[work.split]}`,
    support_fraction: work.support_fraction,
    hyperparameters: work.hyperparameters,
    minimum_examples: work.minimum_examples,
    maximum_examples: work.maximum_examples,
    ...(work.reconstruct_schedule ? { reconstruct_schedule: work.reconstruct_schedule } : {}),
    ...(work.update_schedule ? { update_schedule: work.update_schedule } : {}),
  };
}

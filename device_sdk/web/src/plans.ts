/**
 * Runs a plan in the page: from a checkpoint and examples to local parameters, an update and metric sums.
 *
 * The same graphs as on a phone or in a simulation. An update is computed here; sending it is not part of this version.
 */

import { Bench, type LocalWork, prepare, rulesOf } from "./bench.js";
import type { Examples } from "./columns.js";
import type { Bytes } from "./digests.js";
import { blamingThePlan, DivergedError, TooFewExamplesError, UnusablePlanError } from "./errors.js";
import { LocalParameters } from "./local_parameters.js";
import { initialLocals, type Manifest } from "./manifests.js";
import { compareWithTorch, type FetchBlob, loadParts, type Parts, type PlanOptions } from "./parts.js";
import { type Schedule, split } from "./schedules.js";
import { isFinite, numbersOf, type Values, valuesOf } from "./values.js";

/** Randomness of one session, each 32 bytes of the page's own source: `crypto.getRandomValues`. */
export interface Seeds {
  readonly initial: Bytes;
  readonly split: Bytes;
}

/** The update of one global parameter. */
export interface Update {
  /** `[rows, ...]`, or the parameter's shape. */
  readonly values: Values;
  /** Which rows of the parameter; null where `values` is all of it. */
  readonly rows: readonly number[] | null;
}

/** What a session computed. */
export interface TrainingResult {
  /** By global parameter. */
  readonly updates: ReadonlyMap<string, Update>;
  /** Over the query set, in manifest order, before the update. */
  readonly metricSums: readonly number[];
  /** Query examples behind both. */
  readonly examples: number;
  readonly localParameters: LocalParameters;
}

/** A plan with its checkpoint and vocabularies, ready to be run. */
export class Plan {
  private constructor(
    private readonly parts: Parts,
    private readonly fetchBlob: FetchBlob,
  ) {}

  /**
   * Loads a plan, and checks every part against the digest that names it.
   *
   * @param content the exact bytes of `manifest.json`.
   * @param fetchBlob gives the parts that the manifest names.
   */
  static async load(content: Bytes, fetchBlob: FetchBlob, options: PlanOptions = {}): Promise<Plan> {
    return new Plan(await blamingThePlan(() => loadParts(content, fetchBlob, options)), fetchBlob);
  }

  /** SHA-256 of its manifest, in hexadecimal. */
  get digest(): string {
    return this.parts.digest;
  }

  /** What it says of itself. */
  get manifest(): Manifest {
    return this.parts.manifest;
  }

  /**
   * Returns a user's local parameters, made from all of the user's examples; they stay in this page.
   *
   * @param seed 32 bytes for initial values; zeros if not given, so that equal examples give equal answers.
   */
  async reconstruct(mine: Examples, work: LocalWork = {}, seed: Bytes = new Uint8Array(32)): Promise<LocalParameters> {
    return blamingThePlan(async () => {
      const bench = await prepare(this.parts, mine, work);
      const positions = Array.from({ length: bench.examples }, (_, position) => position);
      return new LocalParameters(await this.reconstructOn(bench, positions, work, seed));
    });
  }

  /** Returns the model's scores of some values of its input field: row numbers where it has a vocabulary. */
  async score(local: LocalParameters, field: string, values: readonly number[]): Promise<number[]> {
    const rule = rulesOf(this.manifest).find((each) => each.name === field);
    if (rule === undefined) {
      throw new UnusablePlanError(`plan '${this.manifest.name}' has no field '${field}'`);
    }
    const columns = { [field]: valuesOf(rule.type, [values.length], values) };
    const bench = new Bench(this.parts, this.parts.checkpoint, columns, new Map(), {}, values.length);
    const locals = new Map(local.names.map((name) => [name, local.get(name)!]));
    return blamingThePlan(async () => {
      const outputs = await bench.run("GRAPH_ROLE_PREDICT", locals, [], {});
      return numbersOf(outputs.get("VALUE_SOURCE_SCORES ")!);
    });
  }

  /**
   * Splits the examples, reconstructs on the support set, evaluates and updates on the query set.
   *
   * @param work what the task asks for.
   * @param seeds randomness of this session.
   */
  async train(mine: Examples, work: LocalWork, seeds: Seeds): Promise<TrainingResult> {
    return blamingThePlan(() => this.trainOn(mine, work, seeds));
  }

  /**
   * Runs the plan's graphs on its recorded inputs, and returns the largest difference from torch's own answers,
   * relative to the larger of 1 and the largest number of the answer. Throws where this browser computes another one.
   */
  async verifyRuntime(): Promise<number> {
    return blamingThePlan(() => compareWithTorch(this.parts, this.fetchBlob));
  }

  /** Gives the graphs' memory back. */
  async close(): Promise<void> {
    await Promise.all([...this.parts.graphs.values()].map(([, runnable]) => runnable.close()));
  }

  private async trainOn(mine: Examples, work: LocalWork, seeds: Seeds): Promise<TrainingResult> {
    const bench = await prepare(this.parts, mine, work);
    const wanted = Math.max(work.minimum_examples ?? 0, 1);
    if (bench.examples < wanted) {
      throw new TooFewExamplesError(`the model can use ${bench.examples} examples; the task needs ${wanted}`);
    }
    const reconstructing = this.reconstructSchedule(work);
    const updating = work.update_schedule ?? this.manifest.update_schedule ?? {};
    const { support, query } = await split(
      bench.examples,
      work.split ?? "SPLIT_RULE_UNSPECIFIED",
      reconstructing.batch_size || updating.batch_size || 0, // ridge has no batches of its own
      work.support_fraction ?? 0,
      seeds.split,
    );
    if (query.length === 0) {
      throw new TooFewExamplesError(`${bench.examples} examples leave none for the query set`);
    }
    const local = await this.reconstructOn(bench, support, work, seeds.initial);
    const metrics = this.manifest.metrics ?? [];
    const sums = metrics.length > 0 ? await bench.run("GRAPH_ROLE_EVALUATE", local, query, reconstructing) : null;
    const metricSums = metrics.map(({ name }) => numbersOf(sums!.get(`VALUE_SOURCE_METRIC ${name}`)!)[0]!);
    const outputs = await bench.run("GRAPH_ROLE_UPDATE", local, query, updating);
    const updates = this.updatesOf(outputs, bench);
    if (!metricSums.every(Number.isFinite) || ![...updates.values()].every((update) => isFinite(update.values))) {
      throw new DivergedError("training gave an update or a metric sum that is not finite");
    }
    return { updates, metricSums, examples: query.length, localParameters: new LocalParameters(local) };
  }

  private async reconstructOn(
    bench: Bench,
    support: readonly number[],
    work: LocalWork,
    seed: Bytes,
  ): Promise<Map<string, Values>> {
    const local = await initialLocals(this.manifest, this.parts.checkpoint, seed);
    if (support.length > 0) {
      const outputs = await bench.run("GRAPH_ROLE_RECONSTRUCT", local, support, this.reconstructSchedule(work));
      for (const name of local.keys()) {
        local.set(name, outputs.get(`VALUE_SOURCE_PARAMETER ${name}`)!);
      }
    }
    if (![...local.values()].every(isFinite)) {
      throw new DivergedError("reconstruction gave local parameters that are not finite");
    }
    return local;
  }

  private updatesOf(outputs: ReadonlyMap<string, Values>, bench: Bench): ReadonlyMap<string, Update> {
    const updates = new Map<string, Update>();
    for (const parameter of this.manifest.parameters ?? []) {
      const values = outputs.get(`VALUE_SOURCE_UPDATE ${parameter.name}`);
      if (values === undefined) {
        continue;
      }
      if (parameter.placement !== "PLACEMENT_GLOBAL") {
        throw new UnusablePlanError(`the plan would report '${parameter.name}', which is no global parameter`);
      }
      updates.set(parameter.name, { values, rows: bench.touched.get(parameter.vocabulary ?? "") ?? null });
    }
    return updates;
  }

  private reconstructSchedule(work: LocalWork): Schedule {
    return work.reconstruct_schedule ?? this.manifest.reconstruct_schedule ?? {};
  }
}

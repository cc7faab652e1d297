/**
 * Runs a plan in the page: from a checkpoint and examples to local parameters, an update and metric sums.
 *
 * The same graphs as on a phone or in a simulation, fed by what the manifest says of each input (`ValueSource` in
 * plan.proto). An update is computed here; sending it is not part of this version.
 */

import { type Examples, type FieldRule, mapExamples } from "./columns.js";
import { type Bytes, digestOf, fromBase64, toHex, verifyDigest } from "./digests.js";
import {
  blamingThePlan,
  DivergedError,
  FedreconError,
  TooFewExamplesError,
  UnreachableError,
  UntrustedPlanError,
  UnusablePlanError,
} from "./errors.js";
import { RunnableGraph } from "./graphs.js";
import { LocalParameters } from "./local_parameters.js";
import {
  type BlobReference,
  extentsOf,
  type Graph,
  type Hyperparameter,
  initialLocals,
  type Manifest,
  type PlanSignature,
  readManifest,
  verifyPlan,
} from "./manifests.js";
import { order, type Schedule, split } from "./schedules.js";
import { readSafetensors } from "./tensors.js";
import { cast, isFinite, numbersOf, rowsOf, typeNamed, type Values, valuesOf } from "./values.js";
import { type Items, readVocabulary } from "./vocabulary.js";

const TOLERANCE = 1e-5;

/** Gives the bytes of a blob by its digest, 64 hexadecimal digits: from wherever the app keeps or loads them. */
export type FetchBlob = (digest: string) => Promise<Bytes>;

type FetchVerified = (reference: BlobReference | undefined, what: string) => Promise<Bytes>;

/** What a task asks of examples: the proto3 JSON form of `LocalWork` in task.proto. */
export interface LocalWork {
  readonly split?: string;
  readonly support_fraction?: number;
  readonly reconstruct_schedule?: Schedule;
  readonly update_schedule?: Schedule;
  readonly hyperparameters?: Readonly<Record<string, number>>;
  readonly minimum_examples?: number;
  readonly maximum_examples?: number;
}

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

export interface PlanOptions {
  /** Public keys of publishers whose plans may run, in hexadecimal; empty or not given: any, also unsigned ones. */
  readonly trustedPlans?: readonly string[];
  /** The publisher's word, as `signature.json` has it. */
  readonly signature?: PlanSignature;
  /** The checkpoint to run with, as a safetensors file; the plan's initial one if not given. */
  readonly checkpoint?: Bytes;
}

/** A plan with its checkpoint and vocabularies, ready to be run. */
export class Plan {
  private constructor(
    /** SHA-256 of its manifest, in hexadecimal. */
    readonly digest: string,
    /** What it says of itself. */
    readonly manifest: Manifest,
    private readonly graphs: ReadonlyMap<string, readonly [Graph, RunnableGraph]>,
    private readonly checkpoint: ReadonlyMap<string, Values>,
    private readonly vocabularies: ReadonlyMap<string, Items>,
    private readonly fetchVerified: FetchVerified,
  ) {}

  /**
   * Loads a plan, and checks every part against the digest that names it.
   *
   * @param content the exact bytes of `manifest.json`.
   * @param fetchBlob gives the parts that the manifest names.
   */
  static async load(content: Bytes, fetchBlob: FetchBlob, options: PlanOptions = {}): Promise<Plan> {
    return blamingThePlan(() => Plan.loadVerified(content, fetchBlob, options));
  }

  private static async loadVerified(content: Bytes, fetchBlob: FetchBlob, options: PlanOptions): Promise<Plan> {
    const digest = await digestOf(content);
    const trusted = options.trustedPlans ?? [];
    if (trusted.length > 0) {
      if (options.signature === undefined) {
        throw new UntrustedPlanError("the plan is not signed");
      }
      await verifyPlan(digest, options.signature, trusted);
    }
    const manifest = readManifest(content);
    const verified: FetchVerified = async (reference, what) => {
      const named = toHex(fromBase64(reference?.digest ?? ""));
      const blob = await fetchBlob(named).catch((error: unknown) => {
        throw error instanceof FedreconError ? error : new UnreachableError(`${what}: ${String(error)}`);
      });
      await verifyDigest(blob, named, what);
      return blob;
    };
    const graphs = new Map<string, readonly [Graph, RunnableGraph]>();
    for (const graph of manifest.graphs ?? []) {
      const name = `${graph.role} of plan '${manifest.name}'`;
      graphs.set(graph.role, [graph, await RunnableGraph.open(await verified(graph.blob, name), name)]);
    }
    const vocabularies = new Map<string, Items>();
    for (const [name, reference] of Object.entries(manifest.vocabularies ?? {})) {
      vocabularies.set(name, readVocabulary(await verified(reference, `vocabulary '${name}'`)));
    }
    const stored = options.checkpoint ?? (await verified(manifest.initial_checkpoint, "initial checkpoint"));
    return new Plan(digest, manifest, graphs, readCheckpoint(stored, manifest), vocabularies, verified);
  }

  /**
   * Returns a user's local parameters, made from all of the user's examples; they stay in this page.
   *
   * @param seed 32 bytes for initial values; zeros if not given, so that equal examples give equal answers.
   */
  async reconstruct(mine: Examples, work: LocalWork = {}, seed: Bytes = new Uint8Array(32)): Promise<LocalParameters> {
    return blamingThePlan(async () => {
      const bench = await this.prepare(mine, work);
      const positions = Array.from({ length: bench.examples }, (_, position) => position);
      return new LocalParameters(await this.reconstructOn(bench, positions, work, seed));
    });
  }

  /** Returns the model's scores of some rows of a vocabulary, or of some values of its input field. */
  async score(local: LocalParameters, field: string, values: readonly number[]): Promise<number[]> {
    const rule = this.rules().find((each) => each.name === field);
    if (rule === undefined) {
      throw new UnusablePlanError(`plan '${this.manifest.name}' has no field '${field}'`);
    }
    const columns = { [field]: valuesOf(rule.type, [values.length], values) };
    const bench: Bench = { parameters: this.checkpoint, columns, touched: new Map(), work: {}, examples: values.length };
    const locals = new Map(local.names.map((name) => [name, local.get(name)!]));
    const outputs = await this.run("GRAPH_ROLE_PREDICT", bench, locals, [], {});
    return numbersOf(outputs.get("VALUE_SOURCE_SCORES ")!);
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
   * Runs the plan's graphs on its recorded inputs, and returns the largest difference from torch's own answers, relative
   * to the larger of 1 and the largest number of the answer. Throws where this browser computes something else.
   */
  async verifyRuntime(): Promise<number> {
    const answers = readSafetensors(await this.fetchVerified(this.manifest.recorded_answers, "recorded answers"));
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
      const outputs = await this.graphs.get(role)![1].run(given);
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

  /** Gives the graphs' memory back. */
  async close(): Promise<void> {
    await Promise.all([...this.graphs.values()].map(([, runnable]) => runnable.close()));
  }

  private async trainOn(mine: Examples, work: LocalWork, seeds: Seeds): Promise<TrainingResult> {
    const bench = await this.prepare(mine, work);
    const wanted = Math.max(work.minimum_examples ?? 0, 1);
    if (bench.examples < wanted) {
      throw new TooFewExamplesError(`the model can use ${bench.examples} examples; the task needs ${wanted}`);
    }
    const reconstructing = work.reconstruct_schedule ?? this.manifest.reconstruct_schedule ?? {};
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
    const sums = metrics.length > 0 ? await this.run("GRAPH_ROLE_EVALUATE", bench, local, query, reconstructing) : null;
    const metricSums = metrics.map(({ name }) => numbersOf(sums!.get(`VALUE_SOURCE_METRIC ${name}`)!)[0]!);
    const outputs = await this.run("GRAPH_ROLE_UPDATE", bench, local, query, updating);
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
    const local = await initialLocals(this.manifest, this.checkpoint, seed);
    if (support.length > 0) {
      const schedule = work.reconstruct_schedule ?? this.manifest.reconstruct_schedule ?? {};
      const outputs = await this.run("GRAPH_ROLE_RECONSTRUCT", bench, local, support, schedule);
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

  private rules(): FieldRule[] {
    return (this.manifest.fields ?? []).map((field) => ({
      name: field.name,
      type: typeNamed(field.dtype, `field ${field.name}`),
      shape: extentsOf(field.shape),
      vocabulary: field.vocabulary ?? "",
      limits: field.limited ? [Number(field.minimum ?? 0), Number(field.maximum ?? 0)] : [-Infinity, Infinity],
    }));
  }

  private get hyperparameters(): Readonly<Record<string, Hyperparameter>> {
    return this.manifest.hyperparameters ?? {};
  }

  /** Returns the examples and the rows that they touch, ready for every graph. */
  private async prepare(mine: Examples, work: LocalWork): Promise<Bench> {
    const unknown = Object.keys(work.hyperparameters ?? {}).filter((name) => !(name in this.hyperparameters));
    if (unknown.length > 0) {
      throw new UnusablePlanError(
        `the task sets ${unknown}; plan '${this.manifest.name}' has ${Object.keys(this.hyperparameters)}`,
        "tell the operator of the task",
      );
    }
    const parameters = this.manifest.parameters ?? [];
    const globals = parameters.filter((parameter) => parameter.placement === "PLACEMENT_GLOBAL");
    const withRows = globals.filter((parameter) => parameter.vocabulary);
    const rows = new Map(withRows.map(({ name, vocabulary }) => [vocabulary!, this.checkpoint.get(name)!.dims[0]!]));
    const mapped = mapExamples(this.rules(), mine, this.vocabularies, rows, work.maximum_examples ?? 0);
    const columns = { ...mapped.columns };
    const touched = new Map<string, number[]>();
    const touch = this.graphs.get("GRAPH_ROLE_TOUCH");
    if (touch !== undefined) {
      const [graph, runnable] = touch;
      const inputs = (graph.inputs ?? []).map((value) => [value.name, mapped.columns[value.reference ?? ""]!] as const);
      const outputs = await runnable.run(Object.fromEntries(inputs));
      for (const { name, source, reference } of graph.outputs ?? []) {
        if (source === "VALUE_SOURCE_ROWS") {
          touched.set(reference ?? "", numbersOf(outputs[name]!));
        } else if (source === "VALUE_SOURCE_FIELD") {
          columns[reference ?? ""] = outputs[name]!;
        }
      }
    }
    const given = globals.map(({ name, vocabulary }) => {
      const own = touched.get(vocabulary ?? "");
      const whole = this.checkpoint.get(name)!;
      return [name, own === undefined ? whole : rowsOf(whole, own)] as const;
    });
    return { parameters: new Map(given), columns, touched, work, examples: mapped.examples };
  }

  /** Returns a graph's outputs by what they are (`SOURCE REFERENCE`), run over some of the examples. */
  private async run(
    role: string,
    bench: Bench,
    local: ReadonlyMap<string, Values>,
    positions: readonly number[],
    schedule: Schedule,
  ): Promise<ReadonlyMap<string, Values>> {
    const found = this.graphs.get(role);
    if (found === undefined) {
      throw new UnusablePlanError(`plan '${this.manifest.name}' has no graph of role ${role}`);
    }
    const [graph, runnable] = found;
    const inSteps = (graph.inputs ?? []).some((value) => value.source === "VALUE_SOURCE_ORDER");
    const batches = inSteps ? order(positions, schedule) : { order: undefined, mask: masked(bench.examples, positions) };
    const steps = batches.order?.dims[0] ?? 0;
    const feeds: Record<string, Values> = {};
    for (const { name, source, reference = "" } of graph.inputs ?? []) {
      const sources: Readonly<Record<string, () => Values | undefined>> = {
        VALUE_SOURCE_PARAMETER: () => local.get(reference) ?? bench.parameters.get(reference),
        VALUE_SOURCE_FIELD: () => bench.columns[reference],
        VALUE_SOURCE_ORDER: () => batches.order,
        VALUE_SOURCE_MASK: () => batches.mask,
        VALUE_SOURCE_HYPERPARAMETER: () => this.hyperparameter(reference, bench.work, steps),
        VALUE_SOURCE_ROWS: () => rowNumbers(bench.touched.get(reference)),
      };
      const value = sources[source]?.();
      if (value === undefined) {
        throw new UnusablePlanError(`graph input ${name} refers to ${source} '${reference}', which is not there`);
      }
      feeds[name] = value;
    }
    const outputs = await runnable.run(feeds);
    const named = (graph.outputs ?? []).map(
      ({ name, source, reference = "" }) => [`${source} ${reference}`, outputs[name]!] as const,
    );
    return new Map(named);
  }

  private hyperparameter(name: string, work: LocalWork, steps: number): Values | undefined {
    const limits = this.hyperparameters[name];
    if (limits === undefined) {
      return undefined;
    }
    const number = work.hyperparameters?.[name] ?? limits.default_value ?? 0;
    if (!(number >= (limits.minimum ?? 0) && number <= (limits.maximum ?? 0))) {
      throw new UnusablePlanError(
        `hyperparameter ${name} = ${number} is beyond its limits ${limits.minimum ?? 0} to ${limits.maximum ?? 0}`,
        "tell the operator of the task",
      );
    }
    return limits.per_step
      ? valuesOf("float32", [steps], new Array<number>(steps).fill(number))
      : valuesOf("float32", [], [number]);
  }
}

/** One user's examples and rows, ready for every graph of a plan. */
interface Bench {
  readonly parameters: ReadonlyMap<string, Values>;
  readonly columns: Readonly<Record<string, Values>>;
  /** Rows that the examples name, by vocabulary. */
  readonly touched: ReadonlyMap<string, readonly number[]>;
  readonly work: LocalWork;
  readonly examples: number;
}

function differenceOf(found: Values, expected: Values): number {
  const numbers = numbersOf(expected);
  const scale = Math.max(1, ...numbers.map(Math.abs));
  return Math.max(0, ...numbersOf(found).map((number, place) => Math.abs(number - numbers[place]!) / scale));
}

function masked(examples: number, positions: readonly number[]): Values {
  const mask = new Array<number>(examples).fill(0);
  positions.forEach((position) => (mask[position] = 1));
  return valuesOf("float32", [examples], mask);
}

function rowNumbers(rows: readonly number[] | undefined): Values | undefined {
  return rows === undefined ? undefined : valuesOf("int64", [rows.length], rows);
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

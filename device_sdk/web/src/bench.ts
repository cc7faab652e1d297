/**
 * One user's examples and rows, laid out for every graph of a plan.
 *
 * Graphs are fed by what the manifest says of each input (`ValueSource` in plan.proto), so gradient steps, ridge and
 * whatever else a modeller compiles run by the same few lines.
 */

import { type Examples, type FieldRule, mapExamples } from "./columns.js";
import { UnusablePlanError } from "./errors.js";
import { extentsOf, type Manifest } from "./manifests.js";
import type { Parts } from "./parts.js";
import { order, type Schedule } from "./schedules.js";
import { numbersOf, rowsOf, typeNamed, type Values, valuesOf } from "./values.js";

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

/** Examples and rows, ready for every graph of a plan. */
export class Bench {
  constructor(
    private readonly plan: Parts,
    private readonly parameters: ReadonlyMap<string, Values>,
    private readonly columns: Readonly<Record<string, Values>>,
    /** Rows that the examples name, by vocabulary. */
    readonly touched: ReadonlyMap<string, readonly number[]>,
    private readonly work: LocalWork,
    /** How many examples there are. */
    readonly examples: number,
  ) {}

  /** Returns a graph's outputs by what they are (`SOURCE REFERENCE`), run over some of the examples. */
  async run(
    role: string,
    local: ReadonlyMap<string, Values>,
    positions: readonly number[],
    schedule: Schedule,
  ): Promise<ReadonlyMap<string, Values>> {
    const found = this.plan.graphs.get(role);
    if (found === undefined) {
      throw new UnusablePlanError(`plan '${this.plan.manifest.name}' has no graph of role ${role}`);
    }
    const [graph, runnable] = found;
    const inSteps = (graph.inputs ?? []).some((value) => value.source === "VALUE_SOURCE_ORDER");
    const batches = inSteps ? order(positions, schedule) : { order: undefined, mask: masked(this.examples, positions) };
    const steps = batches.order?.dims[0] ?? 0;
    const feeds: Record<string, Values> = {};
    for (const { name, source, reference = "" } of graph.inputs ?? []) {
      const sources: Readonly<Record<string, () => Values | undefined>> = {
        VALUE_SOURCE_PARAMETER: () => local.get(reference) ?? this.parameters.get(reference),
        VALUE_SOURCE_FIELD: () => this.columns[reference],
        VALUE_SOURCE_ORDER: () => batches.order,
        VALUE_SOURCE_MASK: () => batches.mask,
        VALUE_SOURCE_HYPERPARAMETER: () => this.hyperparameter(reference, steps),
        VALUE_SOURCE_ROWS: () => rowNumbers(this.touched.get(reference)),
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

  private hyperparameter(name: string, steps: number): Values | undefined {
    const limits = this.plan.manifest.hyperparameters?.[name];
    if (limits === undefined) {
      return undefined;
    }
    const number = this.work.hyperparameters?.[name] ?? limits.default_value ?? 0;
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

/** Returns a user's examples and the rows that they touch; what `touch` says stays in this page. */
export async function prepare(plan: Parts, mine: Examples, work: LocalWork): Promise<Bench> {
  refuseUnknownHyperparameters(plan.manifest, work);
  const mapped = mapExamples(rulesOf(plan.manifest), mine, plan.vocabularies, plan.rows, work.maximum_examples ?? 0);
  const columns = { ...mapped.columns };
  const touched = new Map<string, number[]>();
  const touch = plan.graphs.get("GRAPH_ROLE_TOUCH");
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
  const given = new Map<string, Values>();
  for (const { name, vocabulary } of plan.manifest.parameters ?? []) {
    const whole = plan.checkpoint.get(name);
    const own = touched.get(vocabulary ?? "");
    if (whole !== undefined) {
      given.set(name, own === undefined ? whole : rowsOf(whole, own));
    }
  }
  return new Bench(plan, given, columns, touched, work, mapped.examples);
}

/** Returns what a plan expects of the fields of an example. */
export function rulesOf(manifest: Manifest): FieldRule[] {
  return (manifest.fields ?? []).map((field) => ({
    name: field.name,
    type: typeNamed(field.dtype, `field ${field.name}`),
    shape: extentsOf(field.shape),
    vocabulary: field.vocabulary ?? "",
    limits: field.limited ? [Number(field.minimum ?? 0), Number(field.maximum ?? 0)] : [-Infinity, Infinity],
  }));
}

function refuseUnknownHyperparameters(manifest: Manifest, work: LocalWork): void {
  const known = Object.keys(manifest.hyperparameters ?? {});
  const unknown = Object.keys(work.hyperparameters ?? {}).filter((name) => !known.includes(name));
  if (unknown.length > 0) {
    throw new UnusablePlanError(
      `the task sets ${unknown}; plan '${manifest.name}' has ${known}`,
      "tell the operator of the task",
    );
  }
}

function masked(examples: number, positions: readonly number[]): Values {
  const mask = new Array<number>(examples).fill(0);
  positions.forEach((position) => (mask[position] = 1));
  return valuesOf("float32", [examples], mask);
}

function rowNumbers(rows: readonly number[] | undefined): Values | undefined {
  return rows === undefined ? undefined : valuesOf("int64", [rows.length], rows);
}

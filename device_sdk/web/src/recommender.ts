/**
 * Recommends in the page with one ONNX file: reconstruction and ranking in one graph, nothing uploaded, no training.
 *
 * The file takes one input for each field that reconstruction reads, `excluded` (rows never to be recommended) and `k`;
 * it gives `rows`, `scores` and `local/NAME`. Its metadata name the format, the fields and the vocabulary, which lies
 * beside it as `NAME.items` (README of the room `inference`). A user without examples is served, too.
 */

import { type Examples, type FieldRule, mapExamples } from "./columns.js";
import { type Bytes, verifyDigest } from "./digests.js";
import { UnreachableError, UnusablePlanError } from "./errors.js";
import { RunnableGraph } from "./graphs.js";
import { LocalParameters } from "./local_parameters.js";
import { metadataOf } from "./metadata.js";
import { numbersOf, type Values, valuesOf } from "./values.js";
import { type Items, readVocabulary } from "./vocabulary.js";

const FORMATS = ["1"];
const LOCAL = "local/";

/** One recommended item. */
export interface Recommendation {
  /** The app's own key. */
  readonly key: string;
  /** Its title, or the key if the vocabulary has no titles. */
  readonly title: string;
  /** What the model predicts for it. */
  readonly score: number;
}

/** A recommender by its parts, for apps that load them themselves. */
export interface RecommenderFiles {
  /** The ONNX file. */
  readonly file: Bytes;
  /** Its vocabulary. */
  readonly items: Bytes;
}

export interface LoadOptions {
  /** SHA-256 of the ONNX file in hexadecimal, where the app knows it: another file is refused. */
  readonly digest?: string;
}

export interface RecommendOptions {
  /** Keys that are not wanted. */
  readonly exclude?: Iterable<string>;
  /** The only keys that are wanted; all of the vocabulary if not given. */
  readonly allow?: Iterable<string>;
  /** Whether the items of the examples are left out, too; they are if not given. */
  readonly excludeSeen?: boolean;
}

interface FieldMetadata {
  readonly name: string;
  readonly vocabulary: string;
  readonly minimum: number | null;
  readonly maximum: number | null;
}

/**
 * A recommender file, ready for use.
 *
 * @example
 * const recommender = await Recommender.load("films.onnx");
 * const mine = { item: ["1193", "661"], rating: [5.0, 3.0] };
 * await recommender.recommend(mine, 10);
 */
export class Recommender {
  private constructor(
    /** Name of the task that made it. */
    readonly task: string,
    /** The round of its checkpoint. */
    readonly round: number,
    /** Its vocabulary. */
    readonly items: Items,
    private readonly rules: readonly FieldRule[],
    private readonly graph: RunnableGraph,
  ) {}

  /**
   * Loads a recommender, and checks that its parts are whole and belong together.
   *
   * @param source address of the ONNX file, with its items beside it under the suffix `.items`; or both as bytes.
   */
  static async load(source: string | URL | RecommenderFiles, options: LoadOptions = {}): Promise<Recommender> {
    const { file, items } = source instanceof URL || typeof source === "string" ? await download(source) : source;
    if (options.digest !== undefined) {
      await verifyDigest(file, options.digest, "recommender");
    }
    const metadata = metadataOf(file, "the recommender");
    const format = metadata.get("fedrecon.format");
    if (format === undefined || !FORMATS.includes(format)) {
      throw new UnusablePlanError(`the file has recommender format ${format}; this version runs ${FORMATS}`);
    }
    const vocabulary = metadata.get("fedrecon.vocabulary");
    if (vocabulary) {
      await verifyDigest(items, vocabulary, "items of the recommender (take both from the same export)");
    }
    return new Recommender(
      metadata.get("fedrecon.task") ?? "",
      Number(metadata.get("fedrecon.round") ?? 0),
      readVocabulary(items),
      readRules(metadata.get("fedrecon.fields") ?? "[]"),
      await RunnableGraph.open(file, "recommender"),
    );
  }

  /**
   * Returns the best items for a user, best first; there are fewer than `k` where fewer are left.
   *
   * @param mine the user's examples by field, oldest first, items by their keys; empty for a new user.
   * @param k how many, at least 1.
   */
  async recommend(mine: Examples, k: number, options: RecommendOptions = {}): Promise<Recommendation[]> {
    if (!Number.isInteger(k) || k < 1) {
      throw new RangeError(`k is ${k}; ask for at least one recommendation`);
    }
    const excluded = new Set(this.rowsOf(options.exclude ?? []));
    if (options.excludeSeen ?? true) {
      this.rowsOf(this.keysOf(mine)).forEach((row) => excluded.add(row));
    }
    if (options.allow !== undefined) {
      const allowed = new Set(this.rowsOf(options.allow));
      this.items.keys.forEach((_, row) => allowed.has(row) || excluded.add(row));
    }
    return this.ranked(await this.run(mine, k, [...excluded]));
  }

  /**
   * Returns what the model predicts for some items, in their order; null for one that it does not know or that is
   * retired.
   */
  async predict(mine: Examples, keys: readonly string[]): Promise<(number | null)[]> {
    const all = this.ranked(await this.run(mine, this.items.keys.length, []));
    const scores = new Map(all.map((each) => [each.key, each.score]));
    return keys.map((key) => scores.get(key) ?? null);
  }

  /** Returns the user's local parameters; they stay in this page. */
  async reconstruct(mine: Examples): Promise<LocalParameters> {
    const outputs = Object.entries(await this.run(mine, 1, []));
    const local = outputs.filter(([name]) => name.startsWith(LOCAL));
    return new LocalParameters(new Map(local.map(([name, values]) => [name.slice(LOCAL.length), values])));
  }

  /** Returns the items of the examples that the model does not know: they are left out. */
  unknownKeys(mine: Examples): string[] {
    return [...new Set(this.keysOf(mine))].filter((key) => this.items.rowOf(key) === undefined);
  }

  /** Gives the model's memory back. */
  async close(): Promise<void> {
    await this.graph.close();
  }

  private async run(mine: Examples, k: number, excluded: readonly number[]): Promise<Record<string, Values>> {
    const names = this.rules.map((rule) => rule.vocabulary).filter((name) => name !== "");
    const vocabularies = new Map(names.map((name) => [name, this.items]));
    const rows = new Map(names.map((name) => [name, this.items.keys.length]));
    const mapped = mapExamples(this.rules, mine, vocabularies, rows);
    return this.graph.run({
      ...mapped.columns,
      excluded: valuesOf("int64", [excluded.length], excluded),
      k: valuesOf("int64", [1], [k]),
    });
  }

  private ranked(outputs: Readonly<Record<string, Values>>): Recommendation[] {
    const scores = numbersOf(outputs["scores"]!);
    return numbersOf(outputs["rows"]!).map((row, place) => ({
      key: this.items.keys[row]!,
      title: this.items.titleOf(row),
      score: scores[place]!,
    }));
  }

  private keysOf(mine: Examples): string[] {
    return this.rules.filter((rule) => rule.vocabulary).flatMap((rule) => (mine[rule.name] ?? []).map(String));
  }

  private rowsOf(keys: Iterable<string>): number[] {
    return [...keys].map((key) => this.items.rowOf(key)).filter((row) => row !== undefined);
  }
}

async function download(source: string | URL): Promise<RecommenderFiles> {
  const file = new URL(source, globalThis.location?.href);
  const items = new URL(file);
  items.pathname = file.pathname.replace(/(\.[^./]*)?$/, ".items");
  const [first, second] = await Promise.all([get(file), get(items)]);
  return { file: first, items: second };
}

async function get(address: URL): Promise<Bytes> {
  let answer: Response;
  try {
    answer = await fetch(address);
  } catch (error) {
    throw new UnreachableError(`${address} did not answer (${String(error)})`);
  }
  if (!answer.ok) {
    throw new UnreachableError(`${address} answered ${answer.status} ${answer.statusText}`);
  }
  return new Uint8Array(await answer.arrayBuffer());
}

function readRules(text: string): FieldRule[] {
  try {
    return (JSON.parse(text) as FieldMetadata[]).map((field) => ({
      name: String(field.name),
      type: field.vocabulary ? "int64" : "float32",
      shape: [],
      vocabulary: field.vocabulary ?? "",
      limits: [field.minimum ?? -Infinity, field.maximum ?? Infinity],
    }));
  } catch (error) {
    throw new UnusablePlanError(`the recommender's list of fields cannot be read: ${String(error)}`);
  }
}

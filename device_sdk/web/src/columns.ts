/**
 * From the app's examples to what a graph takes: keys become rows, numbers get their type.
 *
 * Examples that a model cannot use are left out: an item that its vocabulary does not know, a number that is not finite
 * or beyond the field's limits. Order is kept: oldest first.
 */

import { UnusablePlanError } from "./errors.js";
import { type ElementType, product, type Values, valuesOf } from "./values.js";
import type { Items } from "./vocabulary.js";

/** A value of one field of one example: the app's key of an item, a number, or some numbers. */
export type Value = string | number | readonly number[];

/** Examples by field, oldest first: all fields equally long; no fields at all for a user without examples. */
export type Examples = Readonly<Record<string, readonly Value[]>>;

/** What a model expects of one field. */
export interface FieldRule {
  readonly name: string;
  readonly type: ElementType;
  /** Extent of one example's value. */
  readonly shape: readonly number[];
  /** Name of the vocabulary, or empty. */
  readonly vocabulary: string;
  /** Smallest and largest value allowed. */
  readonly limits: readonly [number, number];
}

/** Examples as a model takes them. */
export interface MappedExamples {
  /** By field, `[examples, ...]`; a field with a vocabulary holds row numbers. */
  readonly columns: Readonly<Record<string, Values>>;
  /** How many are left. */
  readonly examples: number;
  /** Keys that the vocabulary does not know, each once. */
  readonly unknownKeys: readonly string[];
}

/**
 * Returns the examples that a model can use.
 *
 * @param rules the model's fields.
 * @param examples the app's.
 * @param vocabularies by name.
 * @param rows rows that the checkpoint has, by vocabulary: keys beyond them are unknown.
 * @param maximum how many are used at most, the newest; 0: all.
 */
export function mapExamples(
  rules: readonly FieldRule[],
  examples: Examples,
  vocabularies: ReadonlyMap<string, Items>,
  rows: ReadonlyMap<string, number>,
  maximum = 0,
): MappedExamples {
  const count = Object.values(examples)[0]?.length ?? 0;
  const usable = new Array<boolean>(count).fill(true);
  const unknown = new Set<string>();
  const read = rules.map((rule) => {
    const column = count > 0 ? examples[rule.name] : [];
    if (column === undefined || column.length !== count) {
      throw new UnusablePlanError(
        `the model needs ${count} values of the field '${rule.name}'; the examples have ${column?.length ?? "none"}`,
        "give every field of the model one value for each example",
      );
    }
    const items = vocabularies.get(rule.vocabulary);
    if (items === undefined && rule.vocabulary !== "") {
      throw new UnusablePlanError(`field '${rule.name}' uses the vocabulary '${rule.vocabulary}', which is not there`);
    }
    return column.map((value, place) => {
      const numbers = items === undefined ? [value].flat().map(Number) : [rowOf(String(value), items, rule, rows)];
      if (items !== undefined && numbers[0]! < 0) {
        unknown.add(String(value));
      }
      if (items === undefined && numbers.length !== product(rule.shape)) {
        throw new UnusablePlanError(
          `the field '${rule.name}' is a number of shape [${rule.shape}]; an example has ${numbers.length} numbers`,
          "give as many numbers as the model takes",
        );
      }
      const isKnown = items === undefined ? numbers.every((each) => isWithin(each, rule.limits)) : numbers[0]! >= 0;
      usable[place] &&= isKnown;
      return numbers;
    });
  });
  const places = usable.flatMap((is, place) => (is ? [place] : [])).slice(maximum > 0 ? -maximum : 0);
  const columns: Record<string, Values> = {};
  rules.forEach((rule, number) => {
    const kept = places.flatMap((place) => read[number]![place]!);
    columns[rule.name] = valuesOf(rule.type, [places.length, ...rule.shape], kept);
  });
  return { columns, examples: places.length, unknownKeys: [...unknown] };
}

function rowOf(key: string, items: Items, rule: FieldRule, rows: ReadonlyMap<string, number>): number {
  const row = items.rowOf(key);
  return row === undefined || row >= (rows.get(rule.vocabulary) ?? 0) ? -1 : row;
}

function isWithin(number: number, [smallest, largest]: readonly [number, number]): boolean {
  return Number.isFinite(number) && smallest <= number && number <= largest;
}

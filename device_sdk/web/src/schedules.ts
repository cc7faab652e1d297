/** Which examples support, which are queried, and in which batches (fedrecon.wire.schedules). */

import type { Bytes } from "./digests.js";
import { UnusablePlanError } from "./errors.js";
import { words } from "./keystream.js";
import { type Values, valuesOf } from "./values.js";

const LARGEST_ORDER = 2 ** 24;

/** How examples become batches of steps: `Schedule` in plan.proto. */
export interface Schedule {
  readonly batch_size?: number;
  readonly epochs?: number;
  readonly maximum_steps?: number;
}

/** Positions of support set and query set, each ascending. */
export interface Split {
  readonly support: readonly number[];
  readonly query: readonly number[];
}

/**
 * Splits examples, which are in the order of the store, oldest first.
 *
 * @param rule name of the rule, `SPLIT_RULE_...`.
 * @param batchSize for `SPLIT_RULE_ALTERNATE_BATCHES`.
 * @param fraction share of the support set, for the rules by time and by fraction.
 * @param seed 32 bytes, for the rule by fraction.
 */
export async function split(
  examples: number,
  rule: string,
  batchSize: number,
  fraction: number,
  seed: Bytes,
): Promise<Split> {
  const everything = Array.from({ length: examples }, (_, position) => position);
  if (batchSize < 1 || !(fraction >= 0 && fraction <= 1)) {
    throw new UnusablePlanError(`cannot split by batches of ${batchSize}, fraction ${fraction}`);
  }
  let inSupport: (position: number) => boolean;
  switch (rule) {
    case "SPLIT_RULE_ALTERNATE_BATCHES":
      inSupport = (position) => Math.floor(position / batchSize) % 2 === 0;
      break;
    case "SPLIT_RULE_ALTERNATE_EXAMPLES":
      inSupport = (position) => position % 2 === 0;
      break;
    case "SPLIT_RULE_BY_TIME":
      inSupport = (position) => position < roundedToEven(examples * fraction);
      break;
    case "SPLIT_RULE_BY_FRACTION": {
      const drawn = await words(seed, "split", 0, examples);
      const sorted = [...everything].sort((one, other) => drawn[one]! - drawn[other]! || one - other);
      const chosen = new Set(sorted.slice(0, roundedToEven(examples * fraction)));
      inSupport = (position) => chosen.has(position);
      break;
    }
    case "SPLIT_RULE_NONE":
      return { support: everything, query: everything };
    default:
      throw new UnusablePlanError(`the split rule ${rule} is not known`);
  }
  return { support: everything.filter(inSupport), query: everything.filter((position) => !inSupport(position)) };
}

/** Returns the batches of a schedule over positions, padded with position 0 under mask 0: both `[steps, batch]`. */
export function order(positions: readonly number[], schedule: Schedule): { order: Values; mask: Values } {
  const size = schedule.batch_size ?? 0;
  if (size < 1) {
    throw new UnusablePlanError("a schedule needs a batch size of at least 1");
  }
  const batches = Math.ceil(positions.length / size);
  const limit = schedule.maximum_steps || Infinity;
  const steps = Math.min(batches * (schedule.epochs ?? 0), limit);
  if (Math.max(batches, steps) * size > LARGEST_ORDER) {
    throw new UnusablePlanError(`${steps} steps of ${size} examples are more than ${LARGEST_ORDER} places`);
  }
  const places: number[] = [];
  const mask: number[] = [];
  for (let step = 0; step < steps; step++) {
    for (let place = 0; place < size; place++) {
      const position = positions[(step % batches) * size + place];
      places.push(position ?? 0);
      mask.push(position === undefined ? 0 : 1);
    }
  }
  return { order: valuesOf("int64", [steps, size], places), mask: valuesOf("float32", [steps, size], mask) };
}

/** Returns the nearest whole number, halves to the even one: as Python and IEEE 754 round. */
function roundedToEven(number: number): number {
  const below = Math.floor(number);
  const rest = number - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}

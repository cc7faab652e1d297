/** Item vocabularies: the app's own keys as rows (`Vocabulary` in plan.proto), read from their stored bytes. */

import protobuf from "protobufjs/minimal.js";

import type { Bytes } from "./digests.js";
import { UnusablePlanError } from "./errors.js";

const NAME = 1;
const VERSION = 2;
const KEYS = 3;
const TITLES = 4;
const RETIRED_ROWS = 5;
const LENGTH_DELIMITED = 2;

/** A vocabulary ready for look-ups. */
export class Items {
  /** Row of every key. */
  private readonly rows: ReadonlyMap<string, number>;

  constructor(
    /** Name of the vocabulary. */
    readonly name: string,
    /** Grows with every change. */
    readonly version: number,
    /** The app's key of every row. */
    readonly keys: readonly string[],
    /** Title of every row, or empty. */
    readonly titles: readonly string[],
    /** Rows that are not recommended any more. */
    readonly retired: ReadonlySet<number>,
  ) {
    this.rows = new Map(keys.map((key, row) => [key, row]));
    if (this.rows.size !== keys.length) {
      throw new UnusablePlanError(`vocabulary '${name}': a key stands on two rows`);
    }
    if (titles.length > 0 && titles.length !== keys.length) {
      throw new UnusablePlanError(`vocabulary '${name}': ${titles.length} titles for ${keys.length} keys`);
    }
    if ([...retired].some((row) => row >= keys.length)) {
      throw new UnusablePlanError(`vocabulary '${name}': a retired row is beyond its ${keys.length} rows`);
    }
  }

  /** Returns the row of a key; undefined where the vocabulary does not know it. */
  rowOf(key: string): number | undefined {
    return this.rows.get(key);
  }

  /** Returns the title of a row, or its key if there are no titles. */
  titleOf(row: number): string {
    return (this.titles.length > 0 ? this.titles : this.keys)[row]!;
  }
}

/** Returns the vocabulary of its stored bytes. */
export function readVocabulary(content: Bytes): Items {
  let name = "";
  let version = 0;
  const keys: string[] = [];
  const titles: string[] = [];
  const retired = new Set<number>();
  try {
    const reader = protobuf.Reader.create(content);
    while (reader.pos < reader.len) {
      const tag = reader.uint32();
      const kind = tag & 7;
      switch (tag >>> 3) {
        case NAME:
          name = reader.string();
          break;
        case VERSION:
          version = Number(reader.uint64());
          break;
        case KEYS:
          keys.push(reader.string());
          break;
        case TITLES:
          titles.push(reader.string());
          break;
        case RETIRED_ROWS: {
          const end = kind === LENGTH_DELIMITED ? reader.uint32() + reader.pos : reader.pos + 1;
          while (reader.pos < end) {
            retired.add(Number(reader.uint64()));
          }
          break;
        }
        default:
          reader.skipType(kind);
      }
    }
  } catch (error) {
    throw new UnusablePlanError(`the vocabulary cannot be read: its bytes are damaged (${String(error)})`);
  }
  return new Items(name, version, keys, titles, retired);
}

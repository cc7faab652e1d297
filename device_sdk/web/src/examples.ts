/**
 * The app's examples: a small store in the browser's own IndexedDB.
 *
 * Items are named by the app's own keys; they become row numbers only when a model's vocabulary is known. Examples are
 * kept in the order of their time, oldest first. Values are checked when they are added, so that a mistake shows in the
 * app's own code. Nothing here is ever sent.
 */

import { type DBSchema, type IDBPDatabase, openDB } from "idb";

import type { Examples, Value } from "./columns.js";
import { InvalidExampleError, UnsupportedPlatformError } from "./errors.js";

/** What a field holds: keys of items, any finite number, or a number within limits. */
export type FieldKind = "key" | "number" | readonly [number, number];

export interface StoreOptions {
  /** Most examples kept; the oldest make room. No limit if not given. */
  readonly maximum?: number;
  /** Examples older than this are forgotten. No limit if not given. */
  readonly maximumAgeSeconds?: number;
  /** Unix seconds; only tests give another. */
  readonly clock?: () => number;
}

/** Values of one example by field. */
export type Example = Readonly<Record<string, Value>>;

interface Kept {
  readonly at: number;
  readonly values: Example;
}

/** Where examples lie. */
interface Shelf {
  add(examples: readonly Kept[]): Promise<void>;
  /** All of them, in the order of their time, and of their arrival where that is equal. */
  all(): Promise<(Kept & { readonly id: number })[]>;
  remove(ids: readonly number[]): Promise<void>;
  close(): void;
}

/**
 * Examples of one user.
 *
 * @example
 * const store = await ExampleStore.open("films", { item: "key", rating: [0.5, 5.0] });
 * await store.add({ item: "1193", rating: 5.0 });
 * await recommender.recommend(await store.columns(), 10);
 */
export class ExampleStore {
  private readonly maximum: number;
  private readonly maximumAge: number;
  private readonly clock: () => number;

  private constructor(
    private readonly shelf: Shelf,
    private readonly fields: Readonly<Record<string, FieldKind>>,
    options: StoreOptions,
  ) {
    this.maximum = options.maximum ?? Infinity;
    this.maximumAge = options.maximumAgeSeconds ?? Infinity;
    this.clock = options.clock ?? (() => Date.now() / 1000);
  }

  /**
   * Opens a store, made now if it is not there.
   *
   * @param name of its database in this browser; `":memory:"` for one that ends with the page, or outside a browser.
   * @param fields what an example holds, by name.
   */
  static async open(
    name: string,
    fields: Readonly<Record<string, FieldKind>>,
    options: StoreOptions = {},
  ): Promise<ExampleStore> {
    return new ExampleStore(name === ":memory:" ? new MemoryShelf() : await DatabaseShelf.open(name), fields, options);
  }

  /**
   * Adds an example.
   *
   * @param when its moment in Unix seconds; now if not given.
   */
  async add(example: Example, when?: number): Promise<void> {
    await this.extend([example], when);
  }

  /** Adds many examples, all or none. */
  async extend(examples: Iterable<Example>, when?: number): Promise<void> {
    const at = when ?? this.clock();
    if (!Number.isFinite(at)) {
      throw new InvalidExampleError(`when is ${when}`, "give Unix seconds");
    }
    await this.shelf.add([...examples].map((values) => ({ at, values: this.checked(values) })));
    await this.kept();
  }

  /** Returns how many examples there are. */
  async count(): Promise<number> {
    return (await this.kept()).length;
  }

  /** Returns the values by field, oldest first; empty if there are no examples. */
  async columns(): Promise<Examples> {
    const kept = await this.kept();
    if (kept.length === 0) {
      return {};
    }
    const names = Object.keys(this.fields);
    return Object.fromEntries(names.map((name) => [name, kept.map((example) => example.values[name]!)]));
  }

  /** Forgets all examples. */
  async clear(): Promise<void> {
    await this.shelf.remove((await this.shelf.all()).map((example) => example.id));
  }

  /** Closes the store. */
  close(): void {
    this.shelf.close();
  }

  /** Returns the examples that are neither too old nor too many; the others are forgotten. */
  private async kept(): Promise<Kept[]> {
    const all = await this.shelf.all();
    const oldest = this.clock() - this.maximumAge;
    const young = all.filter((example) => example.at >= oldest);
    const kept = young.slice(Math.max(0, young.length - this.maximum));
    const staying = new Set(kept.map((example) => example.id));
    const leaving = all.filter((example) => !staying.has(example.id));
    if (leaving.length > 0) {
      await this.shelf.remove(leaving.map((example) => example.id));
    }
    return kept;
  }

  private checked(values: Example): Example {
    const wanted = Object.keys(this.fields).sort();
    const given = Object.keys(values).sort();
    if (String(given) !== String(wanted)) {
      throw new InvalidExampleError(
        `an example with the fields [${given}]; this store holds [${wanted}]`,
        "give a value for each field and no other",
      );
    }
    for (const [name, kind] of Object.entries(this.fields)) {
      check(name, values[name]!, kind);
    }
    return { ...values };
  }
}

function check(name: string, value: Value, kind: FieldKind): void {
  if (kind === "key") {
    if (typeof value !== "string" || value === "") {
      throw new InvalidExampleError(`${name} is ${JSON.stringify(value)}, not a key`, "give the item's key as text");
    }
    return;
  }
  const [smallest, largest] = kind === "number" ? [-Infinity, Infinity] : kind;
  for (const number of [value].flat()) {
    if (typeof number !== "number" || !Number.isFinite(number)) {
      throw new InvalidExampleError(`${name} is ${JSON.stringify(number)}, not a finite number`, "give a number");
    }
    if (number < smallest || number > largest) {
      throw new InvalidExampleError(`${name} is ${number}, beyond its limits ${smallest} to ${largest}`, "correct it");
    }
  }
}

class MemoryShelf implements Shelf {
  private kept: (Kept & { readonly id: number })[] = [];
  private last = 0;

  async add(examples: readonly Kept[]): Promise<void> {
    this.kept.push(...examples.map((example) => ({ ...example, id: ++this.last })));
    this.kept.sort((one, other) => one.at - other.at || one.id - other.id);
  }

  async all(): Promise<(Kept & { readonly id: number })[]> {
    return [...this.kept];
  }

  async remove(ids: readonly number[]): Promise<void> {
    const leaving = new Set(ids);
    this.kept = this.kept.filter((example) => !leaving.has(example.id));
  }

  close(): void {
    this.kept = [];
  }
}

interface Schema extends DBSchema {
  examples: { key: number; value: Kept & { id?: number }; indexes: { at: number } };
}

class DatabaseShelf implements Shelf {
  private constructor(private readonly database: IDBPDatabase<Schema>) {}

  static async open(name: string): Promise<DatabaseShelf> {
    if (globalThis.indexedDB === undefined) {
      throw new UnsupportedPlatformError("there is no IndexedDB here", 'open the store ":memory:" outside a browser');
    }
    const database = await openDB<Schema>(`fedrecon ${name}`, 1, {
      upgrade(made) {
        made.createObjectStore("examples", { keyPath: "id", autoIncrement: true }).createIndex("at", "at");
      },
    });
    return new DatabaseShelf(database);
  }

  async add(examples: readonly Kept[]): Promise<void> {
    const transaction = this.database.transaction("examples", "readwrite");
    await Promise.all([...examples.map((example) => transaction.store.add({ ...example })), transaction.done]);
  }

  async all(): Promise<(Kept & { readonly id: number })[]> {
    // An index sorts equal values by the primary key, that is by arrival.
    return (await this.database.getAllFromIndex("examples", "at")) as (Kept & { readonly id: number })[];
  }

  async remove(ids: readonly number[]): Promise<void> {
    const transaction = this.database.transaction("examples", "readwrite");
    await Promise.all([...ids.map((id) => transaction.store.delete(id)), transaction.done]);
  }

  close(): void {
    this.database.close();
  }
}

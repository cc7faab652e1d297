/**
 * Local parameters: values that stay in the memory of this page.
 *
 * They lie in a private field, so that neither `JSON.stringify`, nor `structuredClone` and with it `postMessage` and
 * IndexedDB, nor a console sees them: none of these reaches them by accident.
 */

import { LocalParametersStayError } from "./errors.js";
import type { Values } from "./values.js";

/** The local parameters of one user by name. */
export class LocalParameters {
  readonly #values: ReadonlyMap<string, Values>;

  constructor(values: ReadonlyMap<string, Values>) {
    this.#values = values;
  }

  /** Their names. */
  get names(): string[] {
    return [...this.#values.keys()];
  }

  /** Returns one of them; undefined where there is none of that name. */
  get(name: string): Values | undefined {
    return this.#values.get(name);
  }

  /** Refuses to be serialised. */
  toJSON(): never {
    throw new LocalParametersStayError("local parameters cannot be serialised");
  }
}

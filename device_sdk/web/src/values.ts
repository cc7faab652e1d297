/**
 * Arrays as graphs take and give them: a type, extents, and the elements in one row-major run.
 *
 * Only the types of the contract (`Dtype` in common.proto) that graphs use: a checkpoint in 16 bits is refused.
 */

import { UnusablePlanError } from "./errors.js";

export type ElementType = "float32" | "int64" | "int32" | "bool";
export type Elements = Float32Array | BigInt64Array | Int32Array | Uint8Array;

/** A dense array. */
export interface Values {
  readonly type: ElementType;
  /** Extent of every axis; empty for a scalar. */
  readonly dims: readonly number[];
  readonly data: Elements;
}

const namesOfTypes: Readonly<Record<string, ElementType>> = {
  DTYPE_FLOAT32: "float32",
  DTYPE_INT64: "int64",
  DTYPE_INT32: "int32",
  DTYPE_BOOL: "bool",
};

/** Returns the element type that the contract calls so. */
export function typeNamed(dtype: string | undefined, what: string): ElementType {
  const type = namesOfTypes[dtype ?? ""];
  if (type === undefined) {
    throw new UnusablePlanError(`${what} has element type ${dtype}, which this version does not run`);
  }
  return type;
}

/** Returns numbers as an array of some type, in the given extents. */
export function valuesOf(type: ElementType, dims: readonly number[], numbers: ArrayLike<number>): Values {
  switch (type) {
    case "float32":
      return { type, dims, data: Float32Array.from(numbers) };
    case "int64":
      return { type, dims, data: BigInt64Array.from(numbers, (number) => BigInt(Math.trunc(number))) };
    case "int32":
      return { type, dims, data: Int32Array.from(numbers) };
    case "bool":
      return { type, dims, data: Uint8Array.from(numbers, (number) => (number === 0 ? 0 : 1)) };
  }
}

/** Returns the elements as numbers. */
export function numbersOf(values: Values): number[] {
  return Array.from(values.data as ArrayLike<number | bigint>, Number);
}

/** Returns an array in another type; itself where it has that type. */
export function cast(values: Values, type: ElementType): Values {
  return values.type === type ? values : valuesOf(type, values.dims, numbersOf(values));
}

/** Returns some rows of an array, in the order of their numbers. */
export function rowsOf(values: Values, rows: ArrayLike<number>): Values {
  const width = product(values.dims.slice(1));
  const dims = [rows.length, ...values.dims.slice(1)];
  const data = new (values.data.constructor as new (length: number) => Elements)(rows.length * width);
  for (let place = 0; place < rows.length; place++) {
    const start = rows[place]! * width;
    data.set(values.data.subarray(start, start + width) as never, place * width);
  }
  return { type: values.type, dims, data };
}

/** Says whether every element is a finite number. */
export function isFinite(values: Values): boolean {
  return values.type !== "float32" || (values.data as Float32Array).every(Number.isFinite);
}

export function product(extents: readonly number[]): number {
  return extents.reduce((whole, extent) => whole * extent, 1);
}

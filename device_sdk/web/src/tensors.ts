/**
 * Checkpoints: safetensors files (https://github.com/huggingface/safetensors), read.
 *
 * 8 bytes of little-endian header length, a JSON header, then the data.
 */

import type { Bytes } from "./digests.js";
import { UnusablePlanError } from "./errors.js";
import { type Elements, type ElementType, product, type Values } from "./values.js";

const LENGTH_BYTES = 8;

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

interface Stored {
  readonly type: ElementType;
  readonly bytes: number;
  readonly read: (buffer: ArrayBuffer) => Elements;
}

const storedTypes: Readonly<Record<string, Stored>> = {
  F32: { type: "float32", bytes: 4, read: (buffer) => new Float32Array(buffer) },
  // Of 16 bits only on the way: they are taken as the parameter's own 32.
  F16: { type: "float32", bytes: 2, read: (buffer) => Float32Array.from(new Uint16Array(buffer), half) },
  I64: { type: "int64", bytes: 8, read: (buffer) => new BigInt64Array(buffer) },
  I32: { type: "int32", bytes: 4, read: (buffer) => new Int32Array(buffer) },
  BOOL: { type: "bool", bytes: 1, read: (buffer) => new Uint8Array(buffer) },
};

/** Returns the number of an IEEE 754 half, as browsers without `Float16Array` do not. */
function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) {
    return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  }
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

/** Returns the arrays of a safetensors file by name. */
export function readSafetensors(content: Bytes): ReadonlyMap<string, Values> {
  if (content.length < LENGTH_BYTES) {
    throw new UnusablePlanError(`${content.length} bytes are no safetensors file: the header length is cut off`);
  }
  const length = Number(new DataView(content.buffer, content.byteOffset).getBigUint64(0, true));
  const start = LENGTH_BYTES + length;
  let header: Record<string, Entry>;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(content.subarray(LENGTH_BYTES, start)));
  } catch (error) {
    throw new UnusablePlanError(`the safetensors header is no JSON: ${String(error)}`);
  }
  if (header === null || typeof header !== "object") {
    throw new UnusablePlanError("the safetensors header is no JSON object");
  }
  const tensors = new Map<string, Values>();
  for (const [name, entry] of Object.entries(header)) {
    if (name !== "__metadata__") {
      tensors.set(name, readTensor(name, entry, content, start));
    }
  }
  return tensors;
}

function readTensor(name: string, entry: Entry, content: Bytes, start: number): Values {
  const stored = storedTypes[entry?.dtype];
  if (stored === undefined) {
    throw new UnusablePlanError(`tensor ${name} has type ${entry?.dtype}, which this version does not read`);
  }
  const { shape, data_offsets: offsets } = entry;
  if (!Array.isArray(shape) || !Array.isArray(offsets)) {
    throw new UnusablePlanError(`tensor ${name}: its header has no shape, or no place`);
  }
  const [begin, end] = offsets as [number, number];
  if (!(begin >= 0 && start + end <= content.length && end - begin === product(shape) * stored.bytes)) {
    throw new UnusablePlanError(
      `tensor ${name}: [${shape}] ${entry.dtype} does not fit bytes ${begin} to ${end} of a file with ` +
        `${content.length - start} bytes of data; the file is cut off or damaged`,
    );
  }
  // A copy begins at an address that the elements may have.
  const bytes = content.slice(start + begin, start + end);
  return { type: stored.type, dims: shape, data: stored.read(bytes.buffer) };
}

/**
 * Reading a plan: its manifest, its signature, and what follows from them (plan.proto, fedrecon.wire.manifests).
 *
 * A manifest is the proto3 JSON form of `Manifest` with the field names of the file: a field that has its default is
 * not there, whole numbers of 64 bits are text, bytes are base64. It is named by its exact bytes.
 */

import { type Bytes, cryptography, fromBase64, fromHex, toHex } from "./digests.js";
import { UnusablePlanError, UntrustedPlanError } from "./errors.js";
import { uniform } from "./keystream.js";
import type { Schedule } from "./schedules.js";
import { cast, product, typeNamed, type Values, valuesOf } from "./values.js";

const FORMATS = [1];
const SIGNING_DOMAIN = "fedrecon plan 1";
const LARGEST_LOCALS = 2 ** 24;

export interface BlobReference {
  /** SHA-256 in base64. */
  readonly digest: string;
  readonly size?: string;
}

export interface Parameter {
  readonly name: string;
  readonly placement: "PLACEMENT_GLOBAL" | "PLACEMENT_LOCAL";
  readonly dtype: string;
  readonly shape?: readonly (string | number)[];
  readonly vocabulary?: string;
  readonly initial?: { constant?: number; uniform_bound?: number; global_parameter?: string };
}

export interface Field {
  readonly name: string;
  readonly role: "FIELD_ROLE_INPUT" | "FIELD_ROLE_TARGET";
  readonly dtype: string;
  readonly shape?: readonly (string | number)[];
  readonly vocabulary?: string;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly limited?: boolean;
}

export interface GraphValue {
  readonly name: string;
  readonly source: string;
  readonly reference?: string;
}

export interface Graph {
  readonly role: string;
  readonly blob: BlobReference;
  readonly inputs?: readonly GraphValue[];
  readonly outputs?: readonly GraphValue[];
}

export interface Hyperparameter {
  readonly default_value?: number;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly per_step?: boolean;
}

/** `Manifest` in plan.proto. */
export interface Manifest {
  readonly format: number;
  readonly name: string;
  readonly parameters?: readonly Parameter[];
  readonly fields?: readonly Field[];
  readonly graphs?: readonly Graph[];
  readonly hyperparameters?: Readonly<Record<string, Hyperparameter>>;
  readonly reconstruct_schedule?: Schedule;
  readonly update_schedule?: Schedule;
  readonly metrics?: readonly { readonly name: string; readonly bound?: number }[];
  readonly initial_checkpoint?: BlobReference;
  readonly vocabularies?: Readonly<Record<string, BlobReference>>;
  readonly recorded_answers?: BlobReference;
}

/** A publisher's word for a plan: `PlanSignature` in plan.proto, both in base64. */
export interface PlanSignature {
  readonly publisher_key: string;
  readonly signature: string;
}

/** Returns the manifest of `manifest.json`. */
export function readManifest(content: Bytes): Manifest {
  let manifest: Manifest;
  try {
    manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(content));
  } catch (error) {
    throw new UnusablePlanError(`the manifest cannot be read: ${String(error)}`);
  }
  if (!FORMATS.includes(manifest?.format)) {
    throw new UnusablePlanError(`plan '${manifest?.name}' has format ${manifest?.format}, not one of ${FORMATS}`);
  }
  for (const name of ["parameters", "fields", "graphs", "metrics"] as const) {
    if (!Array.isArray(manifest[name] ?? [])) {
      throw new UnusablePlanError(`plan '${manifest.name}': its ${name} are no list`);
    }
  }
  return manifest;
}

/**
 * Throws unless a plan is signed by one of the publishers.
 *
 * @param digest of the plan, in hexadecimal.
 * @param trusted public keys of publishers, in hexadecimal.
 */
export async function verifyPlan(digest: string, signature: PlanSignature, trusted: readonly string[]): Promise<void> {
  const publisher = fromBase64(signature.publisher_key);
  if (!trusted.map((key) => key.toLowerCase()).includes(toHex(publisher))) {
    throw new UntrustedPlanError(`the plan is signed by ${toHex(publisher)}, whom the app does not trust`);
  }
  const subtle = cryptography();
  const message = new Uint8Array([...new TextEncoder().encode(SIGNING_DOMAIN), ...fromHex(digest)]);
  let isRight = false;
  try {
    const key = await subtle.importKey("raw", publisher, "Ed25519", false, ["verify"]);
    isRight = await subtle.verify("Ed25519", key, fromBase64(signature.signature), message);
  } catch (error) {
    throw new UntrustedPlanError(`the signature of plan ${digest} cannot be checked (${String(error)})`);
  }
  if (!isRight) {
    throw new UntrustedPlanError(`the signature of plan ${digest} is not that of its publisher`);
  }
}

/** Returns extents, which JSON has as text. */
export function extentsOf(shape: readonly (string | number)[] | undefined): number[] {
  return (shape ?? []).map(Number);
}

/**
 * Returns the local parameters as they are before reconstruction.
 *
 * @param globals for those that start from a learned default.
 * @param seed 32 bytes.
 */
export async function initialLocals(
  manifest: Manifest,
  globals: ReadonlyMap<string, Values>,
  seed: Bytes,
): Promise<Map<string, Values>> {
  const initial = new Map<string, Values>();
  let start = 0;
  for (const parameter of manifest.parameters ?? []) {
    if (parameter.placement !== "PLACEMENT_LOCAL") {
      continue;
    }
    const shape = extentsOf(parameter.shape);
    const count = product(shape);
    if (start + count > LARGEST_LOCALS) {
      throw new UnusablePlanError(`local parameter ${parameter.name}: more than ${LARGEST_LOCALS} local elements`);
    }
    const type = typeNamed(parameter.dtype, `local parameter ${parameter.name}`);
    const rule = parameter.initial ?? {};
    if (rule.constant !== undefined) {
      initial.set(parameter.name, valuesOf(type, shape, new Array<number>(count).fill(rule.constant)));
    } else if (rule.uniform_bound !== undefined) {
      const bound = Math.fround(rule.uniform_bound); // a float in the contract
      const drawn = await uniform(seed, "initial", start, count);
      initial.set(parameter.name, valuesOf(type, shape, drawn.map((number) => (number * 2 - 1) * bound)));
    } else if (rule.global_parameter !== undefined && globals.has(rule.global_parameter)) {
      const { data, type: stored } = globals.get(rule.global_parameter)!;
      initial.set(parameter.name, cast({ type: stored, dims: shape, data }, type));
    } else {
      throw new UnusablePlanError(`local parameter ${parameter.name} has no rule for its initial value`);
    }
    start += count;
  }
  return initial;
}

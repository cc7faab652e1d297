/**
 * The metadata that an ONNX file carries (`metadata_props` of `ModelProto` in onnx.proto, version 3 of the format).
 *
 * ONNX Runtime in browsers does not show them, and a recommender says there what it takes and which items belong to it.
 */

import protobuf from "protobufjs/minimal.js";

import type { Bytes } from "./digests.js";
import { UnusablePlanError } from "./errors.js";

const METADATA_PROPS = 14;
const ENTRY_KEY = 1;
const ENTRY_VALUE = 2;

/** Returns the metadata of an ONNX file by key. */
export function metadataOf(file: Bytes, name: string): ReadonlyMap<string, string> {
  const metadata = new Map<string, string>();
  try {
    const reader = protobuf.Reader.create(file);
    while (reader.pos < reader.len) {
      const tag = reader.uint32();
      if (tag >>> 3 !== METADATA_PROPS) {
        reader.skipType(tag & 7);
        continue;
      }
      const [key, value] = readEntry(reader, reader.uint32() + reader.pos);
      metadata.set(key, value);
    }
  } catch (error) {
    throw new UnusablePlanError(`${name} is no ONNX file (${String(error)})`);
  }
  return metadata;
}

function readEntry(reader: protobuf.Reader, end: number): [string, string] {
  let key = "";
  let value = "";
  while (reader.pos < end) {
    const tag = reader.uint32();
    switch (tag >>> 3) {
      case ENTRY_KEY:
        key = reader.string();
        break;
      case ENTRY_VALUE:
        value = reader.string();
        break;
      default:
        reader.skipType(tag & 7);
    }
  }
  return [key, value];
}

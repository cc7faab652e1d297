/** SHA-256 digests, by the platform's own WebCrypto: the names of files, plans and everything that a plan names. */

import { DamagedBlobError, UnsupportedPlatformError } from "./errors.js";

/** Bytes over memory of their own: what WebCrypto and ONNX Runtime take. */
export type Bytes = Uint8Array<ArrayBuffer>;

/** Returns the platform's WebCrypto; browsers give it to pages from https and from localhost alone. */
export function cryptography(): SubtleCrypto {
  const subtle = globalThis.crypto?.subtle;
  if (subtle === undefined) {
    throw new UnsupportedPlatformError("this page has no WebCrypto", "serve it over https, or from localhost");
  }
  return subtle;
}

/** Returns the SHA-256 of `content`, as 64 hexadecimal digits. */
export async function digestOf(content: Bytes): Promise<string> {
  return toHex(new Uint8Array(await cryptography().digest("SHA-256", content)));
}

/**
 * Throws unless `content` has this digest.
 *
 * @param what how to call it in the error, for example `"plan"`.
 */
export async function verifyDigest(content: Bytes, digest: string, what: string): Promise<void> {
  const found = await digestOf(content);
  if (found !== digest.toLowerCase()) {
    throw new DamagedBlobError(`${what}: expected SHA-256 ${digest}, got ${found} (${content.length} bytes)`);
  }
}

export function toHex(content: Uint8Array): string {
  return Array.from(content, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function fromHex(text: string): Bytes {
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

/** Returns the bytes of base64; throws a `TypeError` where the text is none. */
export function fromBase64(text: string): Bytes {
  if (!/^[A-Za-z0-9+/]*=*$/.test(text) || text.length % 4 !== 0) {
    throw new TypeError(`'${text}' is no base64`);
  }
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

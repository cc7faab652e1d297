/** A device's way to the services, over gRPC: deadlines, another try, fetches that go on where they stopped. */

import { join as joinPath } from "node:path";

import * as grpc from "@grpc/grpc-js";
import protobuf from "protobufjs";

import { type Bytes, digestOf, toHex } from "../../src/digests.js";

/** The folder of the contract: `build.mjs` writes it in. */
declare const PROTOS: string;

const TRANSIENT = new Set([
  "CANCELLED",
  "DEADLINE_EXCEEDED",
  "INTERNAL",
  "RESOURCE_EXHAUSTED",
  "UNAVAILABLE",
  "UNKNOWN",
]);
const RESUMABLE = new Set(["CHUNK_ORDER", "DAMAGED_CHUNK", "DIGEST_MISMATCH", "UPLOAD_INCOMPLETE", "WRONG_OFFSET"]);
const ATTEMPTS = 6;
const FILES = ["coordinator", "aggregator", "blobs", "enrolment"].map((name) => `fedrecon/v1/${name}.proto`);

const root = new protobuf.Root();
root.resolvePath = (_, target) => joinPath(PROTOS, target);
root.loadSync(FILES, { keepCase: true });

/** Returns a message's bytes: fields in order, those with their default left out. */
export function encode(type: string, fields: object): Bytes {
  const known = root.lookupType(`fedrecon.v1.${type}`);
  return Uint8Array.from(known.encode(known.fromObject(fields)).finish());
}

export function decode(type: string, content: Uint8Array): any {
  return root.lookupType(`fedrecon.v1.${type}`).decode(content);
}

/** A service refused, or did not answer. */
export class CallFailure extends Error {
  constructor(
    readonly code: string,
    readonly reason: string,
    readonly window: readonly [number, number] | null,
  ) {
    super(`${code} ${reason}`);
  }

  get isTransient(): boolean {
    return TRANSIENT.has(this.code) || RESUMABLE.has(this.reason);
  }
}

/** The report's time has ended. */
export class TimeEnded extends Error {}

/** Calls services until they answer, or until there is no more time. */
export class Line {
  /** Milliseconds of the clock after which nothing more is tried. */
  deadline = Infinity;
  private readonly clients = new Map<string, grpc.Client>();

  /** Calls until there is an answer; `make` gives the bytes, the same or others for each try. */
  async call(target: string, path: string, answer: string, make: () => Promise<Bytes>, seconds = 30): Promise<any> {
    return this.trying(async () => {
      const body = Buffer.from(await make());
      const bytes = await new Promise<Buffer>((resolve, reject) =>
        this.client(target).makeUnaryRequest(
          path,
          (one: Buffer) => one,
          (one: Buffer) => one,
          body,
          { deadline: this.within(seconds) },
          (error, value) => (error ? reject(failureOf(error)) : resolve(value!)),
        ),
      );
      return decode(answer, bytes);
    });
  }

  /** Returns a blob; a broken fetch goes on where it stopped. */
  async fetch(target: string, digest: Bytes, size: number): Promise<Bytes> {
    const arrived: number[] = [];
    await this.trying(async () => {
      const body = encode("FetchRequest", { digest, ...(arrived.length > 0 ? { offset: arrived.length } : {}) });
      const stream = this.client(target).makeServerStreamRequest(
        "/fedrecon.v1.Blobs/Fetch",
        (one: Buffer) => one,
        (one: Buffer) => one,
        Buffer.from(body),
        { deadline: this.within(300) },
      );
      try {
        for await (const part of stream) {
          const { offset, data, digest: own } = decode("FetchResponse", part as Buffer).chunk;
          if (Number(offset) !== arrived.length || (await digestOf(Uint8Array.from(data))) !== toHex(own)) {
            throw new CallFailure("UNAVAILABLE", "DAMAGED_CHUNK", null);
          }
          arrived.push(...data);
        }
      } catch (error) {
        stream.cancel();
        throw error instanceof CallFailure ? error : failureOf(error as grpc.ServiceError);
      }
      if (arrived.length < size) {
        throw new CallFailure("UNAVAILABLE", "STREAM_ENDED", null);
      }
    });
    const content = Uint8Array.from(arrived);
    if ((await digestOf(content)) !== toHex(digest)) {
      throw new CallFailure("DATA_LOSS", "DAMAGED_BLOB", null);
    }
    return content;
  }

  /** Streams the parts of an upload, once. */
  async upload(target: string, parts: readonly Bytes[]): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const stream = this.client(target).makeClientStreamRequest(
        "/fedrecon.v1.Aggregator/Upload",
        (one: Buffer) => one,
        (one: Buffer) => one,
        { deadline: this.within(300) } as grpc.CallOptions,
        (error: grpc.ServiceError | null) => (error ? reject(failureOf(error)) : resolve()),
      );
      parts.forEach((part) => stream.write(Buffer.from(part)));
      stream.end();
    });
  }

  /** Does something until it succeeds, with growing pauses, or within the window of a refusal. */
  async trying<T>(work: () => Promise<T>): Promise<T> {
    for (let failures = 0; ; ) {
      try {
        return await work();
      } catch (error) {
        failures += 1;
        if (!(error instanceof CallFailure) || !error.isTransient || failures >= ATTEMPTS) {
          throw error;
        }
        await this.pause(error, failures);
      }
    }
  }

  async pause(error: CallFailure, failures: number): Promise<void> {
    const [earliest, latest] = error.window ?? [125 * 2 ** (failures - 1), 375 * 2 ** (failures - 1)];
    const wait = earliest + Math.random() * (latest - earliest);
    if (Date.now() + wait >= this.deadline) {
      throw new TimeEnded();
    }
    await sleep(wait);
  }

  close(): void {
    this.clients.forEach((client) => client.close());
  }

  private within(seconds: number): number {
    if (Date.now() >= this.deadline) {
      throw new TimeEnded();
    }
    return Math.min(Date.now() + seconds * 1000, this.deadline);
  }

  private client(target: string): grpc.Client {
    const known = this.clients.get(target) ?? new grpc.Client(target, grpc.credentials.createInsecure());
    this.clients.set(target, known);
    return known;
  }
}

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

function failureOf(error: grpc.ServiceError): CallFailure {
  const code = grpc.status[error.code] ?? "UNKNOWN";
  const trailer = error.metadata?.get("fedrecon-error-bin")[0];
  if (trailer === undefined) {
    return new CallFailure(code, code, null);
  }
  const { reason, retry } = decode("ErrorInfo", trailer as Buffer);
  const window = retry ? ([Number(retry.min_milliseconds), Number(retry.max_milliseconds)] as const) : null;
  return new CallFailure(code, reason, window);
}

/**
 * ONNX graphs ready to run, by ONNX Runtime's WebAssembly build: on the processor, one thread, nothing fetched but its
 * own `.wasm` file.
 */

import * as onnx from "onnxruntime-web/wasm";

import type { Bytes } from "./digests.js";
import { UnusablePlanError } from "./errors.js";
import { cast, type Elements, type ElementType, type Values } from "./values.js";

// Graphs of plans are small, and threads would need a page that is isolated from all others (COOP and COEP).
onnx.env.wasm.numThreads = 1;
onnx.env.logLevel = "error";

const runnableTypes: ReadonlySet<string> = new Set(["float32", "int64", "int32", "bool"]);

/**
 * Says where ONNX Runtime's `.wasm` file lies, if it is not beside the script that holds this SDK.
 *
 * @param address of the folder, with a slash at its end.
 */
export function serveRuntimeFrom(address: string): void {
  onnx.env.wasm.wasmPaths = { wasm: `${address}ort-wasm-simd-threaded.wasm` };
}

/** An ONNX graph that can be run. */
export class RunnableGraph {
  private constructor(
    private readonly session: onnx.InferenceSession,
    private readonly name: string,
    private readonly inputTypes: ReadonlyMap<string, ElementType>,
  ) {}

  /**
   * Loads a graph.
   *
   * @param content the ONNX file.
   * @param name how to call it in errors.
   */
  static async open(content: Bytes, name: string): Promise<RunnableGraph> {
    let session: onnx.InferenceSession;
    try {
      session = await onnx.InferenceSession.create(content, { executionProviders: ["wasm"], logSeverityLevel: 3 });
    } catch (error) {
      throw new UnusablePlanError(`graph ${name} cannot be loaded: ${String(error)}`);
    }
    const types = new Map<string, ElementType>();
    for (const input of session.inputMetadata) {
      if (!input.isTensor || !runnableTypes.has(input.type)) {
        throw new UnusablePlanError(`graph ${name}: this version gives its input ${input.name} no value`);
      }
      types.set(input.name, input.type as ElementType);
    }
    return new RunnableGraph(session, name, types);
  }

  /** Names of its inputs. */
  get inputs(): string[] {
    return [...this.inputTypes.keys()];
  }

  /**
   * Returns the graph's outputs by name.
   *
   * @param feeds a value for every input; types are converted where they differ.
   */
  async run(feeds: Readonly<Record<string, Values>>): Promise<Record<string, Values>> {
    const tensors: Record<string, onnx.Tensor> = {};
    for (const [name, type] of this.inputTypes) {
      const value = feeds[name];
      if (value === undefined) {
        throw new UnusablePlanError(`graph ${this.name} has the input ${name}, which its plan does not name`);
      }
      const ready = cast(value, type);
      tensors[name] = new onnx.Tensor(ready.type, ready.data as never, ready.dims);
    }
    let given: onnx.InferenceSession.OnnxValueMapType;
    try {
      given = await this.session.run(tensors);
    } catch (error) {
      const shapes = Object.entries(feeds).map(([name, value]) => `${name} [${value.dims}]`);
      throw new UnusablePlanError(`graph ${this.name} failed on ${shapes.join(", ")}: ${String(error)}`);
    }
    const outputs: Record<string, Values> = {};
    for (const [name, tensor] of Object.entries(given as Record<string, onnx.Tensor>)) {
      // A copy: the runtime may use its memory again.
      const data = (tensor.data as Float32Array).slice() as unknown as Elements;
      outputs[name] = { type: tensor.type as ElementType, dims: [...tensor.dims], data };
    }
    return outputs;
  }

  /** Gives the graph's memory back. */
  async close(): Promise<void> {
    await this.session.release();
  }
}

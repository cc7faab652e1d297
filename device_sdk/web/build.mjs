/**
 * Builds what a page loads: `dist/fedrecon.js`, ONNX Runtime's `.wasm` file beside it, and the types.
 *
 * Both are all that a page needs: serve them from one folder, and nothing is loaded from anywhere else.
 */

import { execFileSync } from "node:child_process";
import { copyFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const runtime = dirname(createRequire(import.meta.url).resolve("onnxruntime-web"));

await rm(join(here, "dist"), { recursive: true, force: true });
await build({
  entryPoints: [join(here, "src", "index.ts")],
  outfile: join(here, "dist", "fedrecon.js"),
  bundle: true,
  format: "esm",
  target: "es2022",
  platform: "browser",
  external: ["node:*", "fs", "os", "path", "worker_threads"], // asked for in node alone
  minify: true,
  legalComments: "linked",
});
await copyFile(join(runtime, "ort-wasm-simd-threaded.wasm"), join(here, "dist", "ort-wasm-simd-threaded.wasm"));
const compiler = join(here, "node_modules", "typescript", "bin", "tsc");
const options = ["--declaration", "--emitDeclarationOnly", "--rootDir", join(here, "src"), "--outDir", join(here, "dist")];
execFileSync(process.execPath, [compiler, "-p", join(here, "tsconfig.build.json"), ...options], { stdio: "inherit" });

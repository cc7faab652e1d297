/** Builds the page's script into a folder: `node build_page.mjs FOLDER`. */

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

await build({
  entryPoints: [join(dirname(fileURLToPath(import.meta.url)), "page.ts")],
  outfile: join(process.argv[2], "page.js"),
  bundle: true,
  format: "esm",
  target: "es2022",
  external: ["node:*"],
});

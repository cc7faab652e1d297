/** Builds the participant into a file beside the packages that it needs: `node build.mjs FILE`. */

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));

await build({
  entryPoints: [join(here, "participant.ts")],
  outfile: process.argv[2],
  bundle: true,
  platform: "node",
  packages: "external",
  format: "esm",
  target: "node20",
  define: { PROTOS: JSON.stringify(join(here, "..", "..", "..", "..", "protos")) },
});

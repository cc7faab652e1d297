/**
 * Recommends in node, by the same sources that pages load: `node recommend_in_node.mjs FOLDER` prints what the names and
 * users of FOLDER/asked.json get, from FOLDER/NAME.onnx and FOLDER/films.items.
 */

import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

import { build } from "esbuild";

const web = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const built = join(web, "dist", "in_node.mjs"); // where node finds ONNX Runtime
await build({
  entryPoints: [join(web, "src", "index.ts")],
  outfile: built,
  bundle: true,
  format: "esm",
  platform: "node",
  packages: "external",
});
const { Recommender } = await import(pathToFileURL(built).href);

const folder = process.argv[2];
const read = async (name) => new Uint8Array(await readFile(join(folder, name)));
const { names, users, films } = JSON.parse(await readFile(join(folder, "asked.json"), "utf8"));
const found = {};
for (const name of names) {
  const recommender = await Recommender.load({ file: await read(`${name}.onnx`), items: await read("films.items") });
  found[name] = [];
  for (const user of users) {
    const best = await recommender.recommend(user, films, { excludeSeen: false });
    found[name].push(best.map((each) => [each.key, each.score]));
  }
}
console.log(JSON.stringify(found));
process.exit(0);

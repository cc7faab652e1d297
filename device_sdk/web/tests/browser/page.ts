/**
 * What runs in the page of the browser test: the known answers, and what only a browser has (IndexedDB, files by
 * address, the built bundle). It leaves what it found in `window.found`.
 */

import type * as Fedrecon from "../../src/index.js";
import { serveRuntimeFrom } from "../../src/graphs.js";
import { checks, type Read, TOLERANCE } from "../checks.js";

const fields = { item: "key", rating: [0.5, 5] } as const;
const ratings = [["film-1", 5], ["film-2", 1], ["film-3", 4.5], ["film-8", 2], ["film-20", 3]] as const;
const RUNS = 50;

const read: Read = async (name) => {
  const answer = await fetch(`/vectors/${name}`);
  if (!answer.ok) {
    throw new Error(`${name}: ${answer.status}`);
  }
  return new Uint8Array(await answer.arrayBuffer());
};

async function main(): Promise<unknown> {
  serveRuntimeFrom("/dist/");
  const differences: Record<string, number> = {};
  const failures: Record<string, string> = {};
  const attempt = async (name: string, work: () => Promise<number>): Promise<void> => {
    try {
      differences[name] = await work();
      if (!(differences[name] <= TOLERANCE)) {
        throw new Error(`differs by ${differences[name]}`);
      }
    } catch (error) {
      failures[name] = String(error);
    }
  };
  for (const [name, check] of Object.entries(checks)) {
    await attempt(name, () => check(read));
  }
  const built: typeof Fedrecon = await import(/* the bundle as it is shipped */ String("/dist/fedrecon.js"));
  let best: readonly Fedrecon.Recommendation[] = [];
  let milliseconds = NaN;
  await attempt("the built bundle recommends from IndexedDB", async () => {
    const store = await built.ExampleStore.open("films", fields, { maximum: 5 });
    await store.clear();
    await store.add({ item: "film-30", rating: 1 }, 1);
    for (const [item, rating] of ratings) {
      await store.add({ item, rating }, 2);
    }
    store.close();
    const again = await built.ExampleStore.open("films", fields, { maximum: 5 });
    const mine = await again.columns();
    const expected = { item: ratings.map(([item]) => item), rating: ratings.map(([, rating]) => rating) };
    if (JSON.stringify(mine) !== JSON.stringify(expected)) {
      throw new Error(`IndexedDB kept ${JSON.stringify(mine)}`);
    }
    const recommender = await built.Recommender.load("/vectors/films-gradient.onnx");
    best = await recommender.recommend(mine, 10);
    const times: number[] = [];
    for (let run = 0; run < RUNS; run++) {
      const began = performance.now();
      await recommender.recommend(mine, 10);
      times.push(performance.now() - began);
    }
    milliseconds = times.sort((one, other) => one - other)[RUNS / 2]!;
    again.close();
    return 0;
  });
  await attempt("an example that does not fit leaves IndexedDB as it was", async () => {
    const store = await built.ExampleStore.open("more films", fields);
    await store.clear();
    const refusal = await store.extend([{ item: "film-1", rating: 1 }, { item: "film-2", rating: 9 }]).catch(String);
    const count = await store.count();
    await store.clear();
    store.close();
    if (count !== 0 || !String(refusal).includes("beyond its limits")) {
      throw new Error(`${count} examples were kept: ${refusal}`);
    }
    return 0;
  });
  return { differences, failures, best, ratings, milliseconds };
}

main().then(
  (found) => Object.assign(globalThis, { found }),
  (error) => Object.assign(globalThis, { found: { failures: { page: String(error) } } }),
);

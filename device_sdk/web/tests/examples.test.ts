/** The store of examples; what it does in IndexedDB is tested in a browser. */

import { beforeEach, expect, test } from "vitest";

import { ExampleStore } from "../src/examples.js";
import { refused } from "./checks.js";

const fields = { item: "key", rating: [0.5, 5] } as const;
let now = 1_000;
let store: ExampleStore;

beforeEach(async () => {
  now = 1_000;
  store = await ExampleStore.open(":memory:", fields, { maximum: 3, maximumAgeSeconds: 100, clock: () => now });
});

test("examples come in the order of their time", async () => {
  await store.add({ item: "later", rating: 1 }, 990);
  await store.add({ item: "earlier", rating: 2 }, 980);
  await store.add({ item: "at the same time", rating: 3 }, 990);
  expect(await store.columns()).toEqual({ item: ["earlier", "later", "at the same time"], rating: [2, 1, 3] });
});

test("the oldest make room, and the old are forgotten", async () => {
  await store.extend(["a", "b", "c", "d"].map((item, place) => ({ item, rating: 1 + place })));
  expect((await store.columns())["item"]).toEqual(["b", "c", "d"]);
  now += 101;
  expect(await store.count()).toBe(0);
  expect(await store.columns()).toEqual({});
});

test("an example that does not fit is refused, and none of its list is kept", async () => {
  const good = { item: "a", rating: 3 };
  const wrong: Record<string, any>[] = [
    { item: "a" },
    { item: "a", rating: 3, more: 1 },
    { item: "", rating: 3 },
    { item: 7, rating: 3 },
    { item: "a", rating: "3" },
    { item: "a", rating: Number.NaN },
    { item: "a", rating: 5.5 },
  ];
  for (const example of wrong) {
    await refused(() => store.extend([good, example]), "INVALID_EXAMPLE");
  }
  await refused(() => store.add(good, Number.NaN), "INVALID_EXAMPLE");
  expect(await store.count()).toBe(0);
});

test("all are forgotten on request", async () => {
  await store.add({ item: "a", rating: 3 });
  await store.clear();
  expect(await store.count()).toBe(0);
});

test("outside a browser only a store in memory can be opened", async () => {
  await refused(() => ExampleStore.open("films", fields), "UNSUPPORTED_PLATFORM");
});

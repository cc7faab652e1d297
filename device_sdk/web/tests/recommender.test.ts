/** What a recommender does with odd users and odd files. */

import { readFile } from "node:fs/promises";

import { afterAll, beforeAll, expect, test } from "vitest";

import { digestOf } from "../src/digests.js";
import { Recommender } from "../src/recommender.js";
import { openRecommender, refused } from "./checks.js";

const folder = new URL("../../../protos/vectors/", import.meta.url);
const read = async (name: string) => new Uint8Array(await readFile(new URL(name, folder)));
const mine = { item: ["film-1", "film-2", "film-3"], rating: [5, 1, 4.5] };

let recommender: Recommender;

beforeAll(async () => {
  recommender = await openRecommender(read, "films-gradient");
});

afterAll(() => recommender.close());

test("a new user gets the list of the default parameters", async () => {
  const best = await recommender.recommend({}, 3);
  expect(best).toHaveLength(3);
  expect(best).toEqual(await recommender.recommend({ item: [], rating: [] }, 3));
});

test("unknown items are told and left out", async () => {
  const more = { item: [...mine.item, "film-nowhere", "film-nowhere"], rating: [...mine.rating, 3, 2] };
  expect(recommender.unknownKeys(more)).toEqual(["film-nowhere"]);
  expect(await recommender.recommend(more, 5)).toEqual(await recommender.recommend(mine, 5));
});

test("ratings that are no rating are left out", async () => {
  const more = { item: [...mine.item, "film-7", "film-8"], rating: [...mine.rating, Number.NaN, 99] };
  const options = { exclude: ["film-7", "film-8"] };
  expect(await recommender.recommend(more, 5, options)).toEqual(await recommender.recommend(mine, 5, options));
});

test("only allowed items are recommended, and none that is excluded, seen or retired", async () => {
  const allow = ["film-1", "film-5", "film-10", "film-11", "film-12", "film-nowhere"];
  const best = await recommender.recommend(mine, 40, { allow, exclude: ["film-11"] });
  expect(best.map(({ key }) => key).sort()).toEqual(["film-10", "film-12"]);
  expect(await recommender.recommend(mine, 5, { allow: [] })).toEqual([]);
});

test("items that were seen are recommended where that is wanted", async () => {
  const keys = (await recommender.recommend(mine, 40, { excludeSeen: false })).map(({ key }) => key);
  expect(keys).toHaveLength(38);
  expect(keys).toEqual(expect.arrayContaining(mine.item));
});

test("a prediction of an item that the model does not know, or has retired, is null", async () => {
  const [known, unknown, retired] = await recommender.predict(mine, ["film-10", "film-nowhere", "film-5"]);
  expect(known).toBeGreaterThan(0);
  expect([unknown, retired]).toEqual([null, null]);
});

test("less than one recommendation is a mistake", async () => {
  await expect(recommender.recommend(mine, 0)).rejects.toThrow(RangeError);
});

test("examples without a field, or of unequal length, are named", async () => {
  await expect(recommender.recommend({ item: ["film-1"] }, 1)).rejects.toThrow("the field 'rating'");
  await refused(() => recommender.recommend({ item: ["film-1"], rating: [1, 2] }, 1), "UNUSABLE_PLAN");
});

test("local parameters reach neither JSON nor a message", async () => {
  const local = await recommender.reconstruct(mine);
  expect(local.names.sort()).toEqual(["user_bias", "user_vector"]);
  expect(() => JSON.stringify({ local })).toThrow("never leave the page");
  expect(Object.keys(structuredClone(Object.assign({}, local)))).toEqual([]);
});

test("a file of another digest, items of another export, and a flipped byte are refused", async () => {
  const file = await read("films-gradient.onnx");
  const items = await read("films-gradient.items");
  await (await Recommender.load({ file, items }, { digest: await digestOf(file) })).close();
  await refused(() => Recommender.load({ file, items }, { digest: "00".repeat(32) }), "DAMAGED_BLOB");
  const flipped = items.slice();
  flipped[9]! ^= 1;
  await refused(() => Recommender.load({ file, items: flipped }), "DAMAGED_BLOB");
});

test("what is no recommender is refused", async () => {
  const items = await read("films-gradient.items");
  await refused(() => Recommender.load({ file: new Uint8Array([255, 1, 2]), items }), "UNUSABLE_PLAN");
  await refused(() => Recommender.load({ file: new TextEncoder().encode("<html></html>"), items }), "UNUSABLE_PLAN");
});

test("an address that does not answer is an error with advice", async () => {
  await refused(() => Recommender.load("http://127.0.0.1:9/films.onnx"), "UNREACHABLE");
});

import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/*.test.ts"],
    // One process compiles the runtime's WebAssembly once, for all files.
    pool: "threads",
    fileParallelism: false,
    isolate: false,
    // No test waits for time; a slow machine only takes longer.
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});

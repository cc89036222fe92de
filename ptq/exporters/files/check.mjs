// The model in onnxruntime-web under Node, against what onnxruntime gave where it was exported. Exits 1 beyond 5 %.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { apart, largest, open, readSamples, run } from "./model.mjs";

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const set = readSamples(await readFile(new URL("samples.json", import.meta.url), "utf8"));
const session = await open(ort, new Uint8Array(await readFile(new URL(set.model, import.meta.url))));
let worst = 0, same = 0;
for (const sample of set.samples) {
  const { output } = await run(ort, session, set, sample, 1);
  worst = Math.max(worst, apart(output, sample.expected.data));
  same += largest(Array.from(output)) === largest(Array.from(sample.expected.data));
}
console.log(JSON.stringify({ samples: set.samples.length, same_decisions: same, largest_difference: worst }));
process.exit(worst <= 0.05 ? 0 : 1);

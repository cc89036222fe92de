// What the page and the check in Node share: samples, one run, the decision.

export const TYPES = {
  float32: Float32Array, uint8: Uint8Array, int8: Int8Array, int32: Int32Array, int64: BigInt64Array, bool: Uint8Array,
};

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer;
}

// samples.json -> [{feeds: {name: typed array}, shapes, expected: typed array, label}]
export function readSamples(text) {
  const set = JSON.parse(text);
  const decode = (value) => ({ dims: value.dims, type: value.type, data: new TYPES[value.type](bytesOf(value.data)) });
  return {
    model: set.model, // its file; check.onnx, with fixed draws, where the model draws random numbers
    output: set.output,
    samples: set.samples.map((sample) => ({
      label: sample.label,
      inputs: Object.fromEntries(Object.entries(sample.inputs).map(([name, value]) => [name, decode(value)])),
      expected: decode(sample.expected),
    })),
  };
}

export async function open(ort, bytes) {
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
}

// The output of one sample and the milliseconds that it took: the median of several runs.
export async function run(ort, session, set, sample, rounds = 5) {
  const feeds = Object.fromEntries(
    Object.entries(sample.inputs).map(([name, value]) => [name, new ort.Tensor(value.type, value.data, value.dims)]),
  );
  const times = [];
  let output;
  for (let i = 0; i < rounds; ++i) {
    const start = performance.now();
    output = (await session.run(feeds))[set.output];
    times.push(performance.now() - start);
  }
  return { output: output.data, ms: times.sort((a, b) => a - b)[times.length >> 1] };
}

export function largest(values) {
  return values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
}

// Largest difference over the largest value.
export function apart(found, expected) {
  let reach = 0, difference = 0;
  for (let i = 0; i < expected.length; ++i) {
    reach = Math.max(reach, Math.abs(Number(expected[i])));
    difference = Math.max(difference, Math.abs(Number(found[i]) - Number(expected[i])));
  }
  return reach ? difference / reach : difference;
}

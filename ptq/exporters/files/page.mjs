// Runs every sample through the quantized model, and through the float one where it is there, side by side.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { apart, largest, open, readSamples, run } from "./model.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
const status = document.getElementById("status");

async function fetchBytes(name) {
  const response = await fetch(name);
  return response.ok ? new Uint8Array(await response.arrayBuffer()) : null;
}

// Images of one or three channels, least value black and largest white.
function picture(input) {
  const [channels, height, width] = input.dims.slice(-3);
  if (input.dims.length !== 4 || input.type !== "float32" || ![1, 3].includes(channels)) return null;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const low = Math.min(...input.data), range = Math.max(...input.data) - low || 1;
  for (let i = 0; i < width * height; ++i) {
    for (let c = 0; c < 3; ++c) image.data[4 * i + c] = (255 * (input.data[(c % channels) * width * height + i] - low)) / range;
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  canvas.setAttribute("role", "img");
  return canvas;
}

function element(tag, text, className) {
  return Object.assign(document.createElement(tag), { textContent: text, className: className ?? "" });
}

try {
  const set = readSamples(await (await fetch("samples.json")).text());
  const models = [];
  for (const [name, file] of [["float", "float.onnx"], ["quantized", set.model]]) {
    const bytes = await fetchBytes(file);
    if (bytes) models.push({ name, size: bytes.length, session: await open(ort, bytes), times: [], right: 0, same: 0 });
  }
  const quantized = models.at(-1);
  let worst = 0;
  for (const sample of set.samples) {
    const decisions = document.createElement("dl");
    for (const model of models) {
      const { output, ms } = await run(ort, model.session, set, sample);
      model.times.push(ms);
      model.choice = largest(Array.from(output));
      if (model === quantized) worst = Math.max(worst, apart(output, sample.expected.data));
      const known = sample.label !== null;
      model.right += known && model.choice === sample.label;
      decisions.append(element("dt", model.name), element("dd", String(model.choice), known ? (model.choice === sample.label ? "right" : "wrong") : ""));
    }
    quantized.same += models[0].choice === quantized.choice;
    const item = document.createElement("li"), canvas = picture(Object.values(sample.inputs)[0]);
    if (canvas) {
      canvas.setAttribute("aria-label", sample.label === null ? "sample" : `sample of class ${sample.label}`);
      item.append(canvas);
    }
    item.append(decisions);
    document.getElementById("samples").append(item);
  }
  const count = set.samples.length;
  for (const model of models) {
    const row = document.createElement("tr"), times = model.times.sort((a, b) => a - b);
    const right = set.samples[0].label === null ? "" : `${model.right} of ${count} right`;
    row.append(element("td", model.name), element("td", `${(model.size / 1000).toFixed(1)} kB`), element("td", `${times[count >> 1].toFixed(2)} ms`), element("td", right));
    document.getElementById("models").append(row);
  }
  const result = { samples: count, same_decisions: quantized.same, largest_difference: worst };
  status.textContent = `${count} samples, ${quantized.same} decided alike; largest difference to the exporting machine ${(100 * worst).toFixed(2)} % of the largest output`;
  document.body.dataset.result = JSON.stringify(result);
} catch (error) {
  status.textContent = `failed: ${error.message}`;
  status.className = "wrong";
  document.body.dataset.result = JSON.stringify({ error: String(error) });
}

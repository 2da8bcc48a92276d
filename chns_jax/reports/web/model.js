// speaker.onnx in onnxruntime-web: waveform -> embedding.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";
import { mean, parts, unit } from "./scoring.js";

const damaged = name => new Error(`${name} is damaged or was changed: write the page again.`);

/** {about, voice}: what model.json says, and voice(samples, seconds), which embeds.
 * `progress` is called with the share that is loaded. Throws an Error of one sentence. */
export async function load(progress) {
  const about = await (await get("model.json")).json().catch(() => { throw damaged("model.json"); });
  const { files } = about, total = Object.values(files).reduce((sum, { bytes }) => sum + bytes, 0);
  let loaded = 0;
  const more = bytes => progress(Math.min((loaded += bytes) / total, 1));
  const [runtime, model] = await Promise.all([
    "onnxruntime/ort-wasm-simd-threaded.wasm", "speaker.onnx",
  ].map(name => bytesOf(name, files[name], more)));
  ort.env.wasm.wasmBinary = runtime;
  ort.env.wasm.numThreads = 1; // more need headers that not every server sends
  ort.env.logLevel = "error";
  let session;
  try {
    session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(damaged("speaker.onnx").message, { cause: error });
  }

  /** The voice of a recording: {embedding, seconds}. */
  async function voice(samples, seconds) {
    const embeddings = [];
    for (const part of parts(samples, about)) {
      await new Promise(resolve => setTimeout(resolve)); // so that the page is drawn
      const waveform = new ort.Tensor("float32", part.slice(), [1, part.length]);
      const { embedding } = await session.run({ waveform });
      if (!embedding.data.every(Number.isFinite)) throw damaged("speaker.onnx");
      embeddings.push(unit(embedding.data));
    }
    return { embedding: mean(embeddings), seconds };
  }
  return { about, voice };
}

async function get(name) {
  const answer = await fetch(name).catch(() => null);
  if (!answer?.ok) {
    throw new Error(location.protocol === "file:"
      ? "A browser opens this page only from a web server: chns-jax page --serve is one."
      : `${name} cannot be loaded: see that it lies beside the page.`);
  }
  return answer;
}

/** The bytes of a file, which must be those that were written. */
async function bytesOf(name, written, more) {
  const reader = (await get(name)).body.getReader(), chunks = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    size += value.length;
    more(value.length);
  }
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  if (size !== written.bytes) throw damaged(name);
  if (crypto.subtle) { // only pages of https or of this machine have it
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== written.sha256) throw damaged(name);
  }
  return bytes;
}

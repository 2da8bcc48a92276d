// Recordings -> waveforms: decoded, mono, at the model's rate.

export const LONGEST_SECONDS = 600; // of a file
export const LARGEST_BYTES = 200e6;
const LARGEST_UNSTATED_BYTES = 20e6; // of a file that does not say how long it is
export const RECORDED_SECONDS = 60; // after which recording stops by itself
const SHORTEST_SECONDS = 0.2; // below it, nothing is compared
const SHORT_SECONDS = 2; // below it, scores are rough
const QUIET = -50; // dB of full scale of the loudest tenth of a second

/** What a visitor can do something about, as one sentence. */
export class Refused extends Error {}

/** {samples, seconds, remark} of a file or a recording. Throws Refused. */
export async function decode(file, rate) {
  if (file.size === 0) throw new Refused("This file is empty: give a recording of speech.");
  // How long it is, before all of it is decoded.
  const stated = await statedSeconds(file);
  checkLength(stated);
  const largest = Number.isFinite(stated) ? LARGEST_BYTES : LARGEST_UNSTATED_BYTES;
  if (file.size > largest) {
    throw new Refused(`This file has ${Math.round(file.size / 1e6)} MB, more than ` +
      `${largest / 1e6}: give a part of it.`);
  }
  let buffer;
  try {
    // A context of one sample, which decodes to its own rate.
    const context = new OfflineAudioContext(1, 1, rate);
    buffer = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Refused("This file is no audio that the browser reads: give wav, flac, mp3 or ogg.");
  }
  checkLength(buffer.duration);
  const samples = mono(buffer), seconds = samples.length / rate;
  if (seconds < SHORTEST_SECONDS) {
    throw new Refused(`This has ${seconds.toFixed(2)} s, too short to tell who speaks: give ` +
      `${SHORTEST_SECONDS} s at least, better several seconds.`);
  }
  if (samples.every(x => x === samples[0])) {
    throw new Refused("This is silent: give a recording of speech.");
  }
  return { samples, seconds, remark: remark(samples, rate, seconds) };
}

function checkLength(seconds) {
  if (Number.isFinite(seconds) && seconds > LONGEST_SECONDS + 0.5) {
    throw new Refused(`This is ${Math.round(seconds / 60)} minutes long, more than ` +
      `${LONGEST_SECONDS / 60}: give a part of it.`);
  }
}

/** As the file says; NaN where it does not, and decoding will tell. */
function statedSeconds(file) {
  return new Promise(resolve => {
    const audio = new Audio(), url = URL.createObjectURL(file);
    const done = seconds => {
      audio.onloadedmetadata = audio.onerror = null;
      audio.removeAttribute("src");
      URL.revokeObjectURL(url);
      resolve(seconds);
    };
    audio.preload = "metadata";
    audio.onloadedmetadata = () => done(audio.duration);
    audio.onerror = () => done(NaN);
    audio.src = url;
  });
}

/** The mean of the channels, in the steps of int16, which the command line decodes to. */
function mono(buffer) {
  const samples = new Float32Array(buffer.length), count = buffer.numberOfChannels;
  for (let channel = 0; channel < count; channel++) {
    buffer.getChannelData(channel).forEach((x, i) => { samples[i] += x / count; });
  }
  return samples.map(x => Math.min(Math.max(Math.round(x * 32768), -32768), 32767) / 32768);
}

function remark(samples, rate, seconds) {
  const tenth = Math.ceil(rate / 10);
  let loudest = 0;
  for (let start = 0; start < samples.length; start += tenth) {
    const part = samples.subarray(start, start + tenth);
    loudest = Math.max(loudest, part.reduce((sum, x) => sum + x * x, 0) / part.length);
  }
  if (10 * Math.log10(loudest) < QUIET) return "Too quiet: come nearer to the microphone.";
  if (seconds < SHORT_SECONDS) return "Too short to be sure: several seconds are better.";
  return "";
}

/** Begin to record; returns {stop, recorded}, of which `recorded` is the promise of a blob.
 * `tick` is called with the seconds so far. Throws Refused. */
export async function record(tick) {
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
    throw new Refused("This browser records only on pages of https or of this machine: choose a file.");
  }
  let stream;
  try {
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
  } catch (error) {
    throw new Refused(error.name === "NotFoundError"
      ? "There is no microphone: choose a file."
      : "The microphone was refused: allow it in the browser's settings, or choose a file.");
  }
  const recorder = new MediaRecorder(stream, { audioBitsPerSecond: 128000 });
  const chunks = [], began = performance.now();
  const timer = setInterval(() => {
    const seconds = (performance.now() - began) / 1000;
    tick(seconds);
    if (seconds >= RECORDED_SECONDS) stop();
  }, 200);
  const stop = () => { if (recorder.state !== "inactive") recorder.stop(); };
  const recorded = new Promise(resolve => {
    recorder.ondataavailable = event => chunks.push(event.data);
    recorder.onstop = () => {
      clearInterval(timer);
      stream.getTracks().forEach(track => track.stop());
      resolve(new Blob(chunks, { type: recorder.mimeType }));
    };
  });
  recorder.start();
  return { stop, recorded };
}

/** Draw the extremes of a waveform over the width of a canvas. */
export function draw(canvas, samples) {
  const pen = canvas.getContext("2d"), { width, height } = canvas;
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = getComputedStyle(canvas).color;
  let peak = 1e-4;
  for (const x of samples) peak = Math.max(peak, Math.abs(x));
  for (let column = 0; column < width; column++) {
    const from = Math.floor(column * samples.length / width);
    const to = Math.max(from + 1, Math.floor((column + 1) * samples.length / width));
    let low = 0, high = 0;
    for (let i = from; i < to && i < samples.length; i++) {
      low = Math.min(low, samples[i]);
      high = Math.max(high, samples[i]);
    }
    const top = (1 - high / peak) * height / 2, bottom = (1 - low / peak) * height / 2;
    pen.fillRect(column, top, 1, Math.max(1, bottom - top));
  }
}

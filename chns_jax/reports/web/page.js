// What the visitor sees and does.

import { decode, draw, record, Refused } from "./audio.js";
import { load } from "./model.js";
import { compare, mean, setFor } from "./scoring.js";

const NAMES_SHOWN = 10;
const find = selector => document.querySelector(selector);
const shown = (x, digits = 2) => x.toFixed(digits).replace("-", "\u2212");

const model = loadModel();
model.catch(() => {}); // it is said where the progress was

async function loadModel() {
  const text = find("#loading-text"), bar = find("#loading-bar");
  try {
    const made = await load(share => { bar.value = share; });
    text.textContent = "The model is ready.";
    const { digest, calibration } = made.about;
    find("#about").textContent = `Model ${digest.slice(0, 12)}. ` + (calibration === null
      ? "It is not calibrated, so no score means the same speaker: cosines are all it says."
      : `Its threshold of ${shown(calibration.threshold)} was set for ${setFor(calibration)}.`);
    return made;
  } catch (error) {
    text.textContent = error.message;
    text.className = "error";
    throw error;
  } finally {
    bar.hidden = true;
  }
}

/** A place for one recording; `changed` is called with its voice, or null when there is none. */
class Clip {
  constructor(slot, changed) {
    slot.append(find("#clip").content.cloneNode(true));
    const inside = selector => slot.querySelector(selector);
    this.name = slot.dataset.name;
    this.changed = changed;
    [this.box, this.button, this.canvas, this.player, this.said, this.input] = [
      "fieldset", ".record", "canvas", "audio", ".said", "input",
    ].map(inside);
    inside("legend").textContent = this.name;
    this.button.setAttribute("aria-label", `Record: ${this.name}`);
    this.input.setAttribute("aria-label", `Choose a file: ${this.name}`);
    this.player.setAttribute("aria-label", `Play: ${this.name}`);
    this.samples = new Float32Array(0);
    this.turn = 0; // of what was given last, which alone counts
    this.button.addEventListener("click", () => this.record());
    this.input.addEventListener("change", () => {
      if (this.input.files.length) this.take(this.input.files[0]);
      this.input.value = ""; // so that the same file may be chosen again
    });
    for (const kind of ["dragover", "dragleave", "drop"]) {
      this.box.addEventListener(kind, event => {
        event.preventDefault();
        this.box.classList.toggle("over", kind === "dragover");
        const [file] = event.dataTransfer.files;
        if (kind === "drop" && file) this.take(file);
      });
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  async record() {
    if (this.recording) {
      this.recording.stop();
      return;
    }
    this.button.disabled = true;
    try {
      this.say("Waiting for the microphone.");
      this.recording = await record(seconds => {
        this.button.textContent = `Stop (${Math.floor(seconds)} s)`;
      });
      this.say("Recording: press the button again to stop.");
      this.button.textContent = "Stop";
      this.button.setAttribute("aria-label", `Stop: ${this.name}`);
      this.button.setAttribute("aria-pressed", "true");
      this.button.disabled = false;
      const blob = await this.recording.recorded;
      this.take(blob);
    } catch (error) {
      this.fail(error);
    } finally {
      this.recording = null;
      this.button.disabled = false;
      this.button.textContent = "Record";
      this.button.setAttribute("aria-label", `Record: ${this.name}`);
      this.button.removeAttribute("aria-pressed");
    }
  }

  /** Take a file or a recording in place of what there was. */
  async take(file) {
    const turn = ++this.turn;
    this.show(new Float32Array(0), null);
    this.changed(null);
    try {
      this.say("Reading.");
      const { about, voice } = await model;
      const { samples, seconds, remark } = await decode(file, about.sample_rate);
      if (turn !== this.turn) return;
      this.show(samples, file);
      const length = `${seconds.toFixed(1)} s`;
      this.canvas.setAttribute("aria-label", `Waveform of ${length}`);
      this.say(`Listening to ${length}.`);
      const made = await voice(samples, seconds);
      if (turn !== this.turn) return;
      this.say(`${file.name ?? "Recorded"}: ${length}. ${remark}`, remark !== "");
      this.changed(made);
    } catch (error) {
      if (turn === this.turn) this.fail(error);
    }
  }

  clear() {
    this.turn++;
    this.show(new Float32Array(0), null);
    this.say("Record, choose a file, or drop one here.");
  }

  show(samples, file) {
    this.samples = samples;
    if (this.player.src) URL.revokeObjectURL(this.player.src);
    this.player.hidden = file === null;
    if (file === null) this.player.removeAttribute("src");
    else this.player.src = URL.createObjectURL(file);
    if (file === null) this.canvas.setAttribute("aria-label", "No recording yet");
    this.draw();
  }

  draw() {
    const dense = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * dense));
    this.canvas.height = Math.round(96 * dense);
    if (this.samples.length) draw(this.canvas, this.samples);
  }

  say(text, wrong = false) {
    this.said.textContent = text;
    this.said.classList.toggle("error", wrong);
  }

  fail(error) {
    this.say(error.message, true);
    if (!(error instanceof Refused) && error.cause) console.error(error.cause);
  }
}

// A file that is dropped beside a box would take the page's place.
for (const kind of ["dragover", "drop"]) addEventListener(kind, event => event.preventDefault());

// Two recordings.

const pair = [null, null];
for (const [i, id] of ["#first", "#second"].entries()) {
  new Clip(find(id), voice => {
    pair[i] = voice;
    showPair();
  });
}

async function showPair() {
  const verdict = find("#verdict"), gauge = find(".gauge"), details = find("#details");
  const complete = pair[0] !== null && pair[1] !== null;
  gauge.hidden = !complete;
  verdict.className = "result";
  verdict.textContent = details.textContent = "";
  if (!complete) return;
  const { calibration } = (await model).about;
  const { cosine, llr, same } = compare(pair[0], pair[1], calibration);
  verdict.dataset.cosine = cosine;
  verdict.dataset.llr = llr;
  if (calibration === null) {
    verdict.textContent = `Cosine ${shown(cosine)}`;
    details.textContent = "The model is not calibrated: it does not say which cosine means the same speaker.";
    showGauge(gauge, cosine, null, 1);
    return;
  }
  const { threshold } = calibration;
  verdict.textContent = same ? "One speaker"
    : llr < 0 ? "Different speakers" : "Not alike enough to be called one speaker";
  verdict.classList.add(same ? "same" : "other");
  const times = Math.exp(Math.min(Math.abs(llr), 20));
  details.textContent =
    `Log-likelihood ratio ${shown(llr)}: what was heard is ` +
    `${times < 10 ? times.toPrecision(2) : Math.round(times).toLocaleString("en")} times as likely ` +
    `from ${llr >= 0 ? "one speaker as from two" : "two speakers as from one"}. The ` +
    `threshold is ${shown(threshold)}, set for ${setFor(calibration)}. Cosine ${shown(cosine, 3)}.`;
  showGauge(gauge, llr, threshold, 1.1 * Math.max(6, Math.abs(llr), Math.abs(threshold)));
}

/** The score on a scale from -span to span. */
function showGauge(gauge, score, threshold, span) {
  const scale = gauge.querySelector(".scale"), at = x => `${50 + 50 * x / span}%`;
  gauge.querySelector(".score").style.left = at(score);
  gauge.querySelector(".threshold").hidden = threshold === null;
  gauge.querySelector(".middle").textContent = threshold === null ? "" : "threshold: dashed line";
  if (threshold !== null) gauge.querySelector(".threshold").style.left = at(threshold);
  scale.style.setProperty("--at", at(threshold ?? 0)); // where the colours part
  scale.setAttribute("aria-valuemin", -span);
  scale.setAttribute("aria-valuemax", span);
  scale.setAttribute("aria-valuenow", score);
  scale.setAttribute("aria-valuetext", threshold === null
    ? `cosine ${shown(score)}` : `${shown(score)}, where the threshold is ${shown(threshold)}`);
}

// Who speaks?

const enrolled = new Map(); // name -> voices
let toEnrol = null, somebody = null;
const enrolment = new Clip(find("#enrolment"), voice => { toEnrol = voice; });
new Clip(find("#somebody"), voice => {
  somebody = voice;
  showRanking();
});

find("#enrol").addEventListener("submit", event => {
  event.preventDefault();
  const field = find("#name"), said = find("#enrol-said");
  const name = field.value.trim().normalize("NFC");
  said.className = "";
  if (!name || toEnrol === null) {
    said.className = "error";
    said.textContent = name ? "Record somebody first, or choose a file." : "Give a name first.";
    return;
  }
  enrolled.set(name, [...(enrolled.get(name) ?? []), toEnrol]);
  said.textContent = `${name} is enrolled.`;
  toEnrol = null;
  field.value = "";
  enrolment.clear();
  showEnrolled();
});

function showEnrolled() {
  find("#enrolled").replaceChildren(...[...enrolled].map(([name, voices]) => {
    const row = document.createElement("li"), button = document.createElement("button");
    const seconds = voices.reduce((sum, voice) => sum + voice.seconds, 0);
    row.append(`${name}, ${seconds.toFixed(1)} s`, button);
    button.textContent = "Remove";
    button.setAttribute("aria-label", `Remove ${name}`);
    button.addEventListener("click", () => {
      enrolled.delete(name);
      find("#enrol-said").textContent = `${name} is removed.`;
      find("#name").focus();
      showEnrolled();
    });
    return row;
  }));
  showRanking();
}

async function showRanking() {
  const said = find("#identified"), table = find("#ranking");
  table.hidden = true;
  said.className = "result";
  said.textContent = "";
  if (somebody === null) return;
  if (enrolled.size === 0) {
    said.textContent = "Nobody is enrolled yet.";
    return;
  }
  const { calibration } = (await model).about;
  if (somebody === null || enrolled.size === 0) return; // meanwhile
  const scores = [...enrolled].map(([name, voices]) => {
    const seconds = voices.reduce((sum, voice) => sum + voice.seconds, 0);
    const embedding = mean(voices.map(voice => voice.embedding));
    return { name, ...compare({ embedding, seconds }, somebody, calibration) };
  }).sort((a, b) => (b.llr ?? b.cosine) - (a.llr ?? a.cosine));
  const [best] = scores;
  said.textContent = calibration === null ? `Nearest: ${best.name}` : best.same ? best.name : "Unknown";
  if (calibration !== null) said.classList.add(best.same ? "same" : "other");
  table.tBodies[0].replaceChildren(...scores.slice(0, NAMES_SHOWN).map(score => {
    const row = document.createElement("tr");
    const cells = [score.name, shown(score.cosine, 3), score.llr === null ? "\u2013" : shown(score.llr)];
    cells.forEach((text, i) => {
      const cell = row.insertCell();
      cell.textContent = text;
      if (i) cell.className = "number";
    });
    return row;
  }));
  table.hidden = false;
}

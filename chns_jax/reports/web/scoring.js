// Embeddings -> scores, as chns_jax/verification/speaker_encoder.py has them.

/** The vector divided by its L2 norm. */
export function unit(vector) {
  let sum = 0;
  for (const x of vector) sum += x * x;
  const norm = Math.max(Math.sqrt(sum), 1e-12);
  return Float64Array.from(vector, x => x / norm);
}

/** The L2-normalised sum of vectors. */
export function mean(vectors) {
  const sum = new Float64Array(vectors[0].length);
  for (const vector of vectors) vector.forEach((x, i) => { sum[i] += x; });
  return unit(sum);
}

/** Parts of a waveform that are embedded: all of it, cut into equal pieces where it is longer than
 * `longest` samples; or evenly spaced segments of `segment` samples, where the calibration is for
 * these. What is too short for the encoder is repeated (embedding/buckets.py: cut, segments). */
export function parts(samples, { segment, shortest, longest }) {
  const count = samples.length, least = segment ?? shortest;
  if (count < least) return [Float32Array.from({ length: least }, (_, i) => samples[i % count])];
  if (segment === null) {
    const pieces = Math.ceil(count / longest);
    const edge = i => Math.floor(i * count / pieces);
    return Array.from({ length: pieces }, (_, i) => samples.subarray(edge(i), edge(i + 1)));
  }
  const pieces = Math.ceil(count / segment), spare = count - segment;
  return Array.from({ length: pieces }, (_, i) => {
    const start = Math.min(Math.floor((spare + 1) * i / Math.max(pieces - 1, 1)), spare);
    return samples.subarray(start, start + segment);
  });
}

/** Cosine of two voices, and what the calibration makes of it, if there is one. */
export function compare(one, other, calibration) {
  const cosine = one.embedding.reduce((sum, x, i) => sum + x * other.embedding[i], 0);
  if (calibration === null) return { cosine, llr: null, same: null };
  const { scale, offset, duration, threshold } = calibration;
  const seconds = Math.min(one.seconds, other.seconds);
  const llr = scale * cosine + offset + duration * Math.log(seconds);
  return { cosine, llr, same: llr >= threshold };
}

/** What the threshold was set for, in words. */
export function setFor({ set_for: aim }) {
  return "prior" in aim
    ? `a prior of ${aim.prior} that it is one speaker`
    : `accepting ${+(100 * aim.false_accept_rate).toPrecision(3)} % of other people`;
}

"""Waveform -> log-mel, in JAX, on the device.

Three definitions, which differ in nearly every detail; a model needs the one it was trained with.

- `speechbrain`: SpeechBrain's `Fbank`. Frames centred on multiples of the hop with zeros outside
  the signal, a periodic Hamming window, filters triangular in hertz, decibels, and a floor 80 dB
  under the utterance's loudest cell.
- `kaldi`: Kaldi's `compute-fbank-feats` without dither. Whole frames only, each without its mean
  and pre-emphasised, a Povey window, filters triangular in mel, natural logarithms.
  `kaldi_hamming` has a Hamming window, and samples in the range of int16, as wespeaker uses it.
  `sherpa` is `kaldi` without `snip-edges`, as sherpa-onnx computes it: frames centred on the middle
  of each hop, of a signal that is mirrored at its ends.
- `redimnet2`: `TFMelBanks` of ReDimNet2's authors, of wespeaker too. The utterance has mean 0 and
  deviation 1, and is pre-emphasised as a whole; frames begin half a hop before multiples of the
  hop, a symmetric Hamming window, filters triangular in mel, natural logarithms. The spectrum is
  without its last bin, and the filters are spread over what is left.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int16

from chns_jax.config import Features

INT16_SCALE = 32768.0
DYNAMIC_RANGE_DB = 80.0
SMALLEST_POWER = 1e-10
KALDI_SMALLEST_ENERGY = float(np.finfo(np.float32).eps)
REDIMNET2_SMALLEST = 1e-8  # deviation, power and energy
PREEMPHASIS = 0.97
POVEY_POWER = 0.85


def log_mel(
    waveform: Float[Array, "b s"] | Int16[Array, "b s"],
    features: Features,
    samples_b: Int[Array, " b"] | None = None,
) -> Float[Array, "b t f"]:
    """Log-mel energies (b, t, f) float32, with t = `frame_count(s, features)`.

    `waveform` is int16, or float in [-1, 1]. With `features.mean_normalise`, each bin's mean over
    time is subtracted, which removes a stationary channel. SpeechBrain's are in dB, the others
    in nepers of power. Source: SpeechBrain 1.x `Fbank`; kaldi-native-fbank; PalabraAI/redimnet2.

    Where rows are padded to one length, `samples_b` are the samples of each utterance: its frames,
    `frame_count(samples_b, features)`, are those that it has alone, and the frames after them are
    zero.
    """
    waveform = to_float(waveform)
    heard = where = None
    frames = frame_count(waveform.shape[-1], features)
    if samples_b is not None:
        heard = jnp.arange(waveform.shape[-1]) < samples_b[:, None]
        waveform = jnp.where(heard, waveform, 0)
        where = (jnp.arange(frames) < frame_count(samples_b, features)[:, None])[..., None]
    if features.kind == "speechbrain":
        log = _speechbrain(waveform, features, where)
    elif features.kind == "redimnet2":
        log = _redimnet2(waveform, features, heard)
    elif features.kind == "sherpa":
        log = _kaldi(_mirrored(waveform, features, samples_b), frames, features)
    else:
        log = _kaldi(waveform, frames, features)
    if features.mean_normalise:
        log = log - jnp.mean(log, axis=-2, keepdims=True, where=where)
    return log if where is None else jnp.where(where, log, 0)


def to_float(waveform: Float[Array, "b s"] | Int16[Array, "b s"]) -> Float[Array, "b s"]:
    """Samples in [-1, 1], of int16 or of what is in it already."""
    if waveform.dtype == jnp.int16:
        return waveform.astype(jnp.float32) / INT16_SCALE
    return waveform


def frame_count(samples: Any, features: Features) -> Any:
    """Number of frames t that `log_mel` makes of `samples` samples: one number, or (b,).

    Where a model is exported, it is a symbolic dimension.
    """
    if features.kind == "speechbrain":
        return 1 + samples // features.hop
    if features.kind == "redimnet2":
        samples = samples + 2 * (features.hop // 2)
    if features.kind == "sherpa":
        return (samples + features.hop // 2) // features.hop
    return (samples >= features.window) * (1 + (samples - features.window) // features.hop)


def _speechbrain(waveform_bxs, features: Features, where_bxtx1):
    window, left = features.window, features.window // 2
    frames = frame_count(waveform_bxs.shape[-1], features)
    padded = jnp.pad(waveform_bxs, ((0, 0), (left, 0)))
    framed = _frames(padded, frames, features) * np.hamming(window + 1)[:-1].astype(np.float32)
    decibel = 10.0 * jnp.log10(jnp.maximum(_mel_energies(framed, window, features), SMALLEST_POWER))
    heard = decibel if where_bxtx1 is None else jnp.where(where_bxtx1, decibel, -jnp.inf)
    loudest = heard.max(axis=(-2, -1), keepdims=True)
    return jnp.maximum(decibel, loudest - DYNAMIC_RANGE_DB)


def _redimnet2(waveform_bxs, features: Features, heard_bxs):
    """`heard_bxs`: which samples are the utterance's; all when None."""
    centred = waveform_bxs - waveform_bxs.mean(-1, keepdims=True, where=heard_bxs)
    deviation = jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True, where=heard_bxs))
    unit = centred / (deviation + REDIMNET2_SMALLEST)
    before = jnp.concatenate([unit[:, 1:2], unit[:, :-1]], axis=-1)
    emphasised = unit - PREEMPHASIS * before
    if heard_bxs is not None:
        emphasised = jnp.where(heard_bxs, emphasised, 0)
    frames, side = frame_count(waveform_bxs.shape[-1], features), features.hop // 2
    framed = _frames(jnp.pad(emphasised, ((0, 0), (side, side))), frames, features)
    framed = framed * np.hamming(features.window).astype(np.float32)
    energies = _mel_energies(framed, _fft(features), features, REDIMNET2_SMALLEST)
    return jnp.log(jnp.maximum(energies, REDIMNET2_SMALLEST) + REDIMNET2_SMALLEST)


def _mirrored(waveform_bxs, features: Features, samples_b):
    """What the frames of `sherpa` are cut from: utterances that are mirrored at their ends, the
    outermost samples twice. Source: Kaldi's `ExtractWindow` without `snip-edges`."""
    half, last = features.window // 2, waveform_bxs.shape[-1]
    left, right = half - features.hop // 2, features.window - half
    before = jax.lax.rev(jax.lax.slice_in_dim(waveform_bxs, 0, left, axis=1), (1,))
    if samples_b is None:
        after = jax.lax.rev(jax.lax.slice_in_dim(waveform_bxs, last - right, last, axis=1), (1,))
        return jnp.concatenate([before, waveform_bxs, after], axis=1)
    mirrored = samples_b[:, None] - 1 - jnp.arange(right)
    after = jnp.take_along_axis(waveform_bxs, mirrored, axis=1)
    place = jax.vmap(jax.lax.dynamic_update_slice_in_dim, in_axes=(0, 0, 0, None))
    waveform_bxs = place(jnp.pad(waveform_bxs, ((0, 0), (0, right))), after, samples_b, 0)
    return jnp.concatenate([before, waveform_bxs], axis=1)


def _kaldi(waveform_bxs, frames, features: Features):
    window = features.window
    if features.kind == "kaldi_hamming":
        shape, waveform_bxs = np.hamming(window), waveform_bxs * INT16_SCALE
    else:
        shape = np.hanning(window) ** POVEY_POWER
    framed = _frames(waveform_bxs, frames, features)
    framed = framed - framed.mean(axis=-1, keepdims=True)
    before = jnp.concatenate([framed[..., :1], framed[..., :-1]], axis=-1)
    framed = (framed - PREEMPHASIS * before) * shape.astype(np.float32)
    energies = _mel_energies(framed, _fft(features), features)
    return jnp.log(jnp.maximum(energies, KALDI_SMALLEST_ENERGY))


def _fft(features: Features) -> int:
    """The power of two that holds a window."""
    return 2 ** (features.window - 1).bit_length()


def _frames(signal_bxs, frames, features: Features):
    """(b, t, window): frame i begins at sample i * hop; zeros follow the signal."""
    window, hop = features.window, features.hop
    length = (frames - 1) * hop + window
    kept = signal_bxs[:, :length]
    padded = jnp.pad(kept, ((0, 0), (0, length - kept.shape[-1])))

    def frame(first):
        return jax.lax.dynamic_slice_in_dim(padded, first, window, axis=1)

    return jax.vmap(frame, out_axes=1)(jnp.arange(frames) * hop)


def _mel_energies(framed_bxtxw, fft: int, features: Features, smallest_power: float = 0.0):
    """(b, t, f): the power spectra of frames, summed with the mel filters."""
    spectrum = jnp.fft.rfft(framed_bxtxw, fft, axis=-1)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    filters = jnp.asarray(mel_filters(features, fft))
    power = jnp.maximum(power[..., : len(filters)], smallest_power)
    return jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST)


@lru_cache
def mel_filters(features: Features, fft: int) -> np.ndarray:
    """Triangular filters (fft // 2 + 1, f) float32, their centres equally spaced in mel
    (2595 log10(1 + hz / 700)).

    SpeechBrain's are triangles in hertz, each as wide on its right as on its left, by the distance
    to the centre below it. The others are triangles in mel, between the neighbours' centres.
    ReDimNet2's have one bin fewer, and take it for half the sample rate.
    """
    bins = np.linspace(0, features.sample_rate / 2, fft // 2 + (features.kind != "redimnet2"))
    edges_mel = np.linspace(_mel(features.f_min), _mel(features.f_max), features.bands + 2)
    if features.kind == "speechbrain":
        edges = 700 * (10 ** (edges_mel / 2595) - 1)
        centre, width = edges[1:-1], np.diff(edges)[:-1]
        slope = (bins[:, None] - centre) / width
        rise, fall = slope + 1, 1 - slope
    else:
        below, centre, above = edges_mel[:-2], edges_mel[1:-1], edges_mel[2:]
        rise = (_mel(bins)[:, None] - below) / (centre - below)
        fall = (above - _mel(bins)[:, None]) / (above - centre)
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


def _mel(hertz):
    return 2595 * np.log10(1 + hertz / 700)

"""Waveform -> log-mel, in JAX, on the device.

The definition is SpeechBrain's `Fbank`: a periodic Hamming window, frames centred on multiples of
the hop with zeros outside the signal, power spectrum, triangular HTK-mel filters that are
symmetric in hertz, decibels, and a floor 80 dB under the utterance's loudest cell.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16

from chns_jax.config import Features

INT16_SCALE = 32768.0
DYNAMIC_RANGE_DB = 80.0
SMALLEST_POWER = 1e-10


def log_mel(waveform: Float[Array, "b s"] | Int16[Array, "b s"], features: Features):
    """Log-mel energies in dB, (b, t, f) float32, with t = 1 + s // hop.

    `waveform` is int16, or float in [-1, 1]. With `features.mean_normalise`, each band's mean over
    time is subtracted, which removes a stationary channel. Source: SpeechBrain 1.x `Fbank`.
    """
    if waveform.dtype == jnp.int16:
        waveform = waveform.astype(jnp.float32) / INT16_SCALE
    power_bxtxw = _power_spectrum(waveform, features)
    filters_wxf = jnp.asarray(mel_filters(features))
    mel_bxtxf = jnp.matmul(power_bxtxw, filters_wxf, precision=jax.lax.Precision.HIGHEST)
    decibel = 10.0 * jnp.log10(jnp.maximum(mel_bxtxf, SMALLEST_POWER))
    loudest = decibel.max(axis=(-2, -1), keepdims=True)
    decibel = jnp.maximum(decibel, loudest - DYNAMIC_RANGE_DB)
    if features.mean_normalise:
        decibel = decibel - decibel.mean(axis=-2, keepdims=True)
    return decibel


def frame_count(samples: int, features: Features) -> int:
    """Number of frames t that `log_mel` makes of `samples` samples."""
    return 1 + samples // features.hop


def _power_spectrum(waveform_bxs, features: Features):
    """Power spectrum (b, t, window // 2 + 1) of Hamming-windowed frames."""
    window, hop = features.window, features.hop
    frames = frame_count(waveform_bxs.shape[-1], features)
    # A frame is `window` samples from `hop`-sized blocks: slices instead of a gather.
    blocks_per_frame = -(-window // hop)
    padded_length = (frames - 1 + blocks_per_frame) * hop
    left = window // 2
    # The signal's end, past the last whole frame, belongs to no frame: it is cut off.
    kept = waveform_bxs[:, : padded_length - left]
    padded = jnp.pad(kept, ((0, 0), (left, padded_length - left - kept.shape[-1])))
    blocks = padded.reshape(padded.shape[0], -1, hop)
    framed = jnp.concatenate([blocks[:, i : i + frames] for i in range(blocks_per_frame)], axis=-1)[
        ..., :window
    ]
    hamming = np.hamming(window + 1)[:-1].astype(np.float32)
    spectrum = jnp.fft.rfft(framed * hamming, axis=-1)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


@lru_cache
def mel_filters(features: Features) -> np.ndarray:
    """Triangular filters (window // 2 + 1, f) float32.

    Centres are equally spaced on the HTK mel scale (2595 log10(1 + hz / 700)); each triangle is as
    wide on its right as on its left, by the distance to the centre below it, as SpeechBrain has it.
    """
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (features.f_min, features.f_max))
    mel = np.linspace(lowest, highest, features.bands + 2)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    centre, width = hertz[1:-1], np.diff(hertz)[:-1]
    bins = np.linspace(0, features.sample_rate / 2, features.window // 2 + 1)
    slope = (bins[:, None] - centre) / width
    return np.maximum(0, np.minimum(slope + 1, 1 - slope)).astype(np.float32)

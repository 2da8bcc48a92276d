"""Augmentation of training crops, in JAX, on the device.

Every draw is a function of (seed, step, slot), a slot being a row of the batch; so the devices do
not matter. Only what must be read from files, the noise, is drawn by the host (`corpus/noise.py`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chns_jax.common.randomness import Purpose
from chns_jax.config import Augment, SpecAugment
from chns_jax.encoders.features import to_float

SPEED, RESPONSE, MASKS = range(3)  # what a slot's draws are for


def slot_keys(seed: int, step: Int[Array, ""] | int, slots: Int[Array, " b"]) -> jax.Array:
    """A random key for each slot of a step, (b,)."""
    of_step = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), Purpose.AUGMENT), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(of_step, slots)


def augment_audio(
    batch: dict[str, Array],
    rirs: Float[Array, "n r"] | None,
    augment: Augment,
    *,
    seed: int,
    step: Int[Array, ""],
    samples: int,
    speakers: int,
    pairs: int | None,
) -> tuple[Float[Array, "b s"], Int[Array, " b"]]:
    """Waveforms in [-1, 1], of `samples` samples, and their labels.

    `batch` holds "audio" (b, s or longer), "labels" (b,), "slot" (b,) and, when noise is on,
    "noise" (b, s) and "snr" (b,) in dB. `rirs` are impulse responses. Of `speakers` speakers, the
    one at speed factor i is speaker + (i + 1) * speakers if the config counts it as another; then
    the two views of a speaker, in slots j and j + `pairs`, get the same speed.
    """
    audio, labels = to_float(batch["audio"]), batch["labels"]
    slot = batch["slot"]
    keys = slot_keys(seed, step, slot)
    speed = augment.speed
    if speed.probability:
        if pairs is not None and speed.new_speakers:  # views alike
            slot = slot % pairs
        choice = draw_speeds(slot_keys(seed, step, slot), speed.probability, len(speed.factors))
        audio = change_speed(audio, choice, speed.factors, samples)
        if speed.new_speakers:
            labels = labels + choice * speakers
    audio = audio[:, :samples]
    if rirs is not None:
        probability = augment.reverberation.probability
        in_room, which = draw_rirs(keys, probability, len(rirs))
        audio = jnp.where(in_room[:, None], reverberate(audio, rirs[which]), audio)
    if "noise" in batch:
        audio = add_noise(audio, to_float(batch["noise"])[:, :samples], batch["snr"])
    return audio, labels


def draw_speeds(keys: jax.Array, probability: float, factors: int) -> Int[Array, " b"]:
    """0 for the speed as it is, with probability 1 - `probability`; else 1 to `factors`."""

    def draw(key):
        whether, which = jax.random.uniform(jax.random.fold_in(key, SPEED), (2,))
        number = 1 + jnp.minimum((which * factors).astype(jnp.int32), factors - 1)
        return jnp.where(whether < probability, number, 0)

    return jax.vmap(draw)(keys)


def change_speed(
    audio: Float[Array, "b longer"], choice: Int[Array, " b"], factors: tuple[float, ...], samples
) -> Float[Array, "b s"]:
    """Rows played `factors[choice - 1]` times as fast, or as they are where choice is 0.

    The first round(s * factor) samples of a row are resampled to s, band-limited by cutting or
    filling up their spectrum.
    """
    changed = audio[:, :samples]
    for number, factor in enumerate(factors, start=1):
        used = round(samples * factor)
        spectrum = jnp.fft.rfft(audio[:, :used])
        kept = min(spectrum.shape[1], samples // 2 + 1)
        played = jnp.fft.irfft(spectrum[:, :kept], samples) * (samples / used)
        changed = jnp.where((choice == number)[:, None], played, changed)
    return changed


def draw_rirs(keys: jax.Array, probability: float, count: int):
    """Which rows reverberate, (b,) bool, and with which response, (b,)."""

    def draw(key):
        whether, which = jax.random.uniform(jax.random.fold_in(key, RESPONSE), (2,))
        return whether < probability, jnp.minimum((which * count).astype(int), count - 1)

    return jax.vmap(draw)(keys)


def reverberate(audio: Float[Array, "b s"], rirs: Float[Array, "b r"]) -> Float[Array, "b s"]:
    """Rows convolved with impulse responses, whose direct sound is at 0, at the power they had."""
    samples = audio.shape[1]
    length = _fast_length(samples + rirs.shape[1] - 1)
    spectrum = jnp.fft.rfft(audio, length) * jnp.fft.rfft(rirs, length)
    wet = jnp.fft.irfft(spectrum, length)[:, :samples]
    return wet * jnp.sqrt(_power(audio) / jnp.maximum(_power(wet), 1e-20))


def add_noise(
    audio: Float[Array, "b s"], noise: Float[Array, "b s"], snr: Float[Array, " b"]
) -> Float[Array, "b s"]:
    """`audio` and `noise` at `snr` dB; infinity leaves a row as it is, and so do silent ones."""
    wanted = _power(audio) * 10.0 ** (-snr[:, None] / 10)
    return audio + noise * jnp.sqrt(wanted / jnp.maximum(_power(noise), 1e-20))


def mask_spectrogram(
    log_mel: Float[Array, "b t f"], spec_augment: SpecAugment, keys: jax.Array
) -> Float[Array, "b t f"]:
    """SpecAugment without warping (Park et al. 2019, arXiv 1904.08779).

    A mask's width is uniform from 0 to the largest, its place is uniform, and it is filled with the
    mel bin's mean over time.
    """
    _, frames, bins = log_mel.shape

    def one(log_mel_txf, key):
        whether, *of_masks = jax.random.split(jax.random.fold_in(key, MASKS), 3)
        in_time = _masks(of_masks[0], spec_augment.time_masks, spec_augment.time_width, frames)
        in_frequency = _masks(of_masks[1], spec_augment.band_masks, spec_augment.band_width, bins)
        hidden = in_time[:, None] | in_frequency[None, :]
        hidden &= jax.random.uniform(whether) < spec_augment.probability
        return jnp.where(hidden, log_mel_txf.mean(axis=0), log_mel_txf)

    return jax.vmap(one)(log_mel, keys)


def _masks(key: jax.Array, count: int, widest: int, length: int):
    """Where `count` random intervals lie in 0 .. length - 1, (length,) bool."""
    wide, where = jax.random.uniform(key, (2, count, 1))
    width = jnp.floor(wide * (min(widest, length) + 1))
    start = jnp.floor(where * (length - width + 1))
    place = jnp.arange(length)
    return ((start <= place) & (place < start + width)).any(axis=0)


def _power(audio: Float[Array, "b s"]) -> Float[Array, "b 1"]:
    return jnp.square(audio).mean(axis=1, keepdims=True)


def _fast_length(length: int) -> int:
    """The next multiple of a large power of two: a Fourier transform without large primes."""
    unit = 1 << max(0, math.ceil(math.log2(length)) - 3)
    return -(-length // unit) * unit

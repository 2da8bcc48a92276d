"""Synthetic voices: a deterministic source-filter speech synthesiser, and a corpus written with it.

A glottal pulse train and noise excite a cascade of formant resonators (Fant 1960, Acoustic Theory
of Speech Production; Klatt 1980, JASA 67:971) that moves through a random syllable sequence, and a
random channel colours the result. Speakers come in families of similar voices, so that hard
negatives exist. No phone sequence means anything: only the speaker can be learnt.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

SAMPLE_RATE = 16000
HOP, WINDOW, FFT = 160, 320, 800  # 10 ms, 20 ms, and 30 ms for the resonators to ring out
REFERENCE_TRACT_CM = 17.5  # the formant tables hold for this length; formants go as its inverse
FAMILY_SPREAD = 0.6  # width of a family over the width of each parameter's range

# One tag for each purpose, before the positions: default_rng([a, b]) equals default_rng([a, b, 0]).
FAMILIES, MEMBER, SCRIPT, MELODY, EXCITATION, CHANNEL, DURATION = range(1, 8)

# F1, F2, F3 in Hz of ten vowels, men's means (Peterson & Barney 1952, JASA 24:175, table II).
VOWELS = np.array(
    [
        [270, 2290, 3010], [390, 1990, 2550], [530, 1840, 2480], [660, 1720, 2410],
        [730, 1090, 2440], [570, 840, 2410], [440, 1020, 2240], [300, 870, 2240],
        [640, 1190, 2390], [490, 1350, 1690],
    ]
)  # fmt: skip
# F1, F2, F3 | amplitudes of voice, breath, hiss | hiss centre and bandwidth in Hz | nasal coupling.
CONSONANTS = np.array(
    [
        [320, 1700, 2600, 0.0, 0.0, 1.0, 5200, 1400, 0],  # s
        [300, 1850, 2500, 0.0, 0.0, 3.0, 3000, 1000, 0],  # sh
        [320, 1100, 2200, 0.0, 0.0, 0.8, 4500, 4000, 0],  # f
        [300, 1700, 2600, 0.3, 0.0, 0.5, 5000, 1400, 0],  # z
        [500, 1500, 2500, 0.0, 1.0, 0.0, 4000, 2000, 0],  # h
        [270, 1100, 2200, 0.4, 0.0, 0.0, 4000, 2000, 1],  # m
        [270, 1700, 2600, 0.4, 0.0, 0.0, 4000, 2000, 1],  # n
        [350, 1100, 2600, 0.7, 0.0, 0.0, 4000, 2000, 0],  # l
        [280, 2200, 2900, 0.7, 0.0, 0.0, 4000, 2000, 0],  # y
        [250, 1700, 2600, 0.1, 0.0, 0.0, 4000, 2000, 0],  # d
        [250, 1000, 2300, 0.0, 0.0, 0.0, 4000, 2000, 0],  # p
    ]
)
VOWEL_MANNER = [1.0, 0.0, 0.0, 4000, 2000, 0.15]  # the last: the velum leaks a little in vowels too
UPPER_FORMANTS = np.array([3500.0, 4500.0, 5500.0])  # Hz; those of a uniform tube
BANDWIDTHS = np.array([60.0, 90.0, 150.0, 250.0, 300.0, 400.0])  # Hz
NASAL_POLE, NASAL_BANDWIDTH = 270.0, 100.0  # Hz

# Lowest and highest of each parameter of a `Voice`, in its order; those marked log are in octaves.
RANGES = {
    "f0_hz": (85.0, 255.0, "log"),
    "f0_range_semitones": (1.0, 3.0, ""),
    "tract_cm": (13.5, 18.5, "log"),
    "formant_1": (0.92, 1.08, "log"),
    "formant_2": (0.92, 1.08, "log"),
    "formant_3": (0.92, 1.08, "log"),
    "formant_4": (0.92, 1.08, "log"),
    "bandwidth_scale": (0.7, 1.8, "log"),
    "tilt_hz": (400.0, 3200.0, "log"),
    "breath_db": (-50.0, -26.0, ""),
    "nasal_zero_hz": (400.0, 1600.0, "log"),
    "syllables_per_second": (3.0, 6.5, "log"),
    "jitter": (0.002, 0.02, "log"),
}


def draw_voice(seed: int, speaker: int, families: int = 48) -> Voice:
    """The anatomy of one speaker, a function of the arguments alone.

    Family centres are a Latin hypercube over the parameters' ranges; the speaker's family is drawn
    evenly from `families`, and its members are uniform around its centre, folded back into the
    range. Raises ValueError for families < 1 and for a negative seed or speaker.
    """
    member = np.random.default_rng([seed, MEMBER, speaker])
    family = int(member.integers(families))
    strata = np.tile(np.arange(families), (len(RANGES), 1))
    strata = np.random.default_rng([seed, FAMILIES]).permuted(strata, axis=1)
    place = (strata[:, family] + 0.5) / families
    place = place + FAMILY_SPREAD * (member.random(len(RANGES)) - 0.5)
    place = 1 - np.abs(1 - np.abs(place))
    values = {name: _within(*RANGES[name], at) for name, at in zip(RANGES, place, strict=True)}
    offsets = tuple(values.pop(f"formant_{k}") for k in range(1, 5))
    return Voice(family=family, formant_offsets=offsets, **values)


def families_of(seed: int, names: Sequence[str] | np.ndarray, families: int = 48) -> np.ndarray:
    """(n,) the family of each speaker whom `write_corpus` named so."""
    return np.array([draw_voice(seed, int(name[1:]), families).family for name in names])


def synthesise(
    seed: int, speaker: int, utterance: int, seconds: float, families: int = 48
) -> np.ndarray:
    """One utterance: int16 (s,), s = round(seconds * 16000), at 16 kHz.

    Bit-identical for the same arguments, whatever else was synthesised, in whichever process.
    Another `seconds` is another utterance, not a prefix. Raises ValueError if s < 1, for
    families < 1, and for a negative seed, speaker or utterance.
    """
    samples = round(seconds * SAMPLE_RATE)
    if samples < 1:
        raise ValueError(f"seconds must be at least one sample, not {seconds}")
    voice = draw_voice(seed, speaker, families)
    script, melody, excitation, channel = (
        np.random.default_rng([seed, purpose, speaker, utterance])
        for purpose in (SCRIPT, MELODY, EXCITATION, CHANNEL)
    )
    frames = -(-samples // HOP) + 1
    gestures = _gestures(script, voice, frames)
    f0 = _f0_contour(melody, voice, frames)
    pulses = _glottal_pulses(excitation, voice, f0)
    noise = excitation.standard_normal(pulses.size, np.float32)
    speech = _articulate(voice, gestures, pulses, noise)[:samples]
    return _transmit(channel, speech)


def write_corpus(
    folder: Path,
    *,
    seed: int,
    speakers: int,
    utterances: int,
    seconds: float,
    families: int = 48,
    processes: int | None = None,
) -> Path:
    """Write `folder`/v<speaker:05d>/u<utterance:03d>.flac (PCM16, 16 kHz) and return `folder`.

    speakers.csv says the gender and family of each speaker. An utterance lasts 0.8 to 1.2 of
    `seconds`. Several `processes` (None: one a core) are spawned, so a script that calls this needs
    the `__main__` guard. `folder` appears only when complete; if it is there already, whatever it
    holds, nothing is done. Raises what `synthesise` and the file system raise, and then leaves
    nothing behind.
    """
    folder = Path(folder)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        staged = Path(temporary) / folder.name
        staged.mkdir()
        write = partial(_write_speaker, staged, seed, utterances, seconds, families)
        _for_each_speaker(write, speakers, processes or os.cpu_count() or 1)
        _write_table(staged / "speakers.csv", seed, speakers, families)
        try:
            staged.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process finished first, and wins
                raise
    return folder


def _for_each_speaker(write, speakers: int, processes: int) -> None:
    progress = partial(tqdm, total=speakers, desc="voices", unit="speaker", disable=None)
    if processes == 1:
        for _ in progress(map(write, range(speakers))):
            pass
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        for _ in progress(pool.map(write, range(speakers))):
            pass


def _write_table(path: Path, seed: int, speakers: int, families: int) -> None:
    voices = [draw_voice(seed, speaker, families) for speaker in range(speakers)]
    rows = [f"v{i:05d},{voice.gender},{voice.family}\n" for i, voice in enumerate(voices)]
    path.write_text("".join(["speaker,gender,family\n", *rows]))


def _write_speaker(
    folder: Path, seed: int, utterances: int, seconds: float, families: int, speaker: int
) -> None:
    home = folder / f"v{speaker:05d}"
    home.mkdir()
    for utterance in range(utterances):
        stretch = np.random.default_rng([seed, DURATION, speaker, utterance]).uniform(0.8, 1.2)
        waveform = synthesise(seed, speaker, utterance, stretch * seconds, families)
        file = home / f"u{utterance:03d}.flac"
        soundfile.write(file, waveform, SAMPLE_RATE, subtype="PCM_16")


def _within(lowest: float, highest: float, scale: str, place: float) -> float:
    if scale == "log":
        return float(lowest * (highest / lowest) ** place)
    return float(lowest + (highest - lowest) * place)


def _gestures(rng: np.random.Generator, voice: Voice, frames: int) -> np.ndarray:
    """Columns of CONSONANTS over time (frames, 9): syllables of a consonant and a gliding vowel."""
    syllables = int(2 * frames * HOP / SAMPLE_RATE * voice.syllables_per_second) + 4
    onset = CONSONANTS[rng.integers(len(CONSONANTS), size=syllables)]
    vowel = VOWELS[rng.integers(len(VOWELS), size=(syllables, 2))]
    manner = np.broadcast_to(VOWEL_MANNER, (syllables, 2, len(VOWEL_MANNER)))
    targets = np.concatenate([onset[:, None], np.concatenate([vowel, manner], axis=2)], axis=1)
    targets[..., :3] *= np.exp(0.06 * rng.standard_normal((syllables, 3, 3)))
    targets[:, 1:, 3] *= np.exp(0.3 * rng.standard_normal((syllables, 1)))  # stress
    share = np.array([0.36, 0.32, 0.32]) * np.exp(0.3 * rng.standard_normal((syllables, 3)))
    # One onset in twelve is a pause, as between phrases.
    paused = rng.random(syllables) < 1 / 12
    targets[paused, 0, 3:6] = 0
    share[paused, 0] *= 4
    ends = np.cumsum(share) / voice.syllables_per_second * SAMPLE_RATE / HOP
    segment = np.searchsorted(ends, np.arange(frames) + rng.random())
    held = targets.reshape(-1, targets.shape[-1])[np.minimum(segment, ends.size - 1)]
    return _smooth(held, radius=4)


def _smooth(track: np.ndarray, radius: int) -> np.ndarray:
    """Hann-weighted moving mean over the first axis: articulators glide from target to target."""
    weights = np.hanning(2 * radius + 1)
    weights = weights[1:-1] / weights.sum()
    padded = np.pad(track, ((radius - 1, radius - 1), (0, 0)), mode="edge")
    shifted = (w * padded[i : i + len(track)] for i, w in enumerate(weights))
    return sum(shifted, np.zeros(track.shape))


def _f0_contour(rng: np.random.Generator, voice: Voice, frames: int) -> np.ndarray:
    """f0 in Hz (frames,): a declination and smooth accents around the speaker's mean."""
    accents = _smooth(rng.standard_normal((frames, 1)), radius=20)[:, 0]
    accents = accents / (accents.std() + 1e-9)
    declination = np.linspace(1.0, -1.0, frames)
    semitones = voice.f0_range_semitones * (0.8 * accents + 0.6 * declination)
    semitones += rng.normal(0.0, 0.7)  # nobody speaks twice at the same height
    return voice.f0_hz * 2 ** (semitones / 12)


def _glottal_pulses(rng: np.random.Generator, voice: Voice, f0: np.ndarray) -> np.ndarray:
    """Unit pulses (f0.size * HOP,) where the integrated f0 wraps, with jitter and shimmer."""
    samples = f0.size * HOP
    time = np.arange(samples)
    phase = np.cumsum(np.interp(time / HOP, np.arange(f0.size), f0)) / SAMPLE_RATE
    wraps = np.arange(1, int(phase[-1]) + 1)
    position = np.interp(wraps, phase, time)
    period = SAMPLE_RATE / voice.f0_hz
    position = position + voice.jitter * period * rng.standard_normal(position.size)
    position = np.clip(position, 0, samples - 2)
    strength = np.sqrt(period) * np.exp(0.05 * rng.standard_normal(position.size))
    # A pulse between two samples is shared by them: whole samples would make f0 audibly coarse.
    whole = position.astype(int)
    late = (position - whole) * strength
    pulses = np.bincount(whole, strength - late, samples)
    pulses += np.bincount(whole + 1, late, samples)
    return pulses.astype(np.float32)


def _articulate(voice: Voice, gestures, pulses, noise) -> np.ndarray:
    """Filter both sources frame by frame with the moving tract, and overlap-add: (s,) float."""
    shrink = REFERENCE_TRACT_CM / voice.tract_cm
    lower, (loud, breath, hiss), (centre, width, nasal) = (
        gestures[:, :3], gestures[:, 3:6].T[..., None], gestures[:, 6:].T[..., None]
    )  # fmt: skip
    upper = np.broadcast_to(UPPER_FORMANTS, (len(gestures), UPPER_FORMANTS.size))
    offsets = np.append(voice.formant_offsets, [1.0, 1.0])
    formants = np.concatenate([lower, upper], axis=1) * shrink * offsets
    # With the velum shut the nasal zero lies on the nasal pole and cancels it (Klatt 1980).
    zero = NASAL_POLE + nasal * (voice.nasal_zero_hz - NASAL_POLE)
    poles = np.pad(formants, ((0, 0), (0, 1)), constant_values=NASAL_POLE)
    bandwidths = np.append(BANDWIDTHS * voice.bandwidth_scale, NASAL_BANDWIDTH)
    tract = _zeros(zero, [NASAL_BANDWIDTH]) / _zeros(poles, bandwidths)
    differentiator = np.fft.rfft(np.array([1, -1], np.float32), FFT)
    fricative = differentiator / _zeros(centre * shrink, [width])

    pulse_spectrum = np.fft.rfft(_frames(pulses), FFT) * _glottal_tilt(voice)
    noise_spectrum = np.fft.rfft(_frames(noise), FFT)
    loud, breath, hiss = (g.astype(np.float32) for g in (loud, breath, hiss))
    aspiration = 10 ** (voice.breath_db / 20) * loud + 0.2 * breath
    spectrum = tract * (loud * pulse_spectrum + aspiration * noise_spectrum)
    spectrum += 0.1 * hiss * fricative * noise_spectrum
    return _overlap_add(np.fft.irfft(spectrum, FFT))


def _glottal_tilt(voice: Voice) -> np.ndarray:
    """Glottal flow and lip radiation: -6 dB an octave above 100 Hz, -12 above the voice's tilt."""
    pole, return_phase = np.exp(-2 * np.pi * np.array([100.0, voice.tilt_hz]) / SAMPLE_RATE)
    polynomial = np.convolve([1.0, -pole], [1.0, -return_phase])
    return (10 * polynomial.sum() / np.fft.rfft(polynomial, FFT)).astype(np.complex64)


def _zeros(frequencies: np.ndarray, bandwidths) -> np.ndarray:
    """Responses (t, FFT // 2 + 1) of antiresonators in series at `frequencies` (t, k), in Hz.

    Each is (1 - b/z - c/z^2) / (1 - b - c), with unit gain at 0 Hz: the inverse of a Klatt
    resonator. They are multiplied as polynomials, so one FFT evaluates all of them.
    """
    angle = 2 * np.pi * np.minimum(frequencies, 7700.0) / SAMPLE_RATE
    polynomial = np.ones((len(angle), 1))
    for theta, bandwidth in zip(angle.T[..., None], bandwidths, strict=True):
        radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
        grown = np.pad(polynomial, ((0, 0), (0, 2)))
        grown[:, 1:-1] -= 2 * radius * np.cos(theta) * polynomial
        grown[:, 2:] += radius**2 * polynomial
        polynomial = grown
    # In single precision only here: the sum is a small difference of large coefficients.
    return np.fft.rfft(polynomial / polynomial.sum(axis=1, keepdims=True), FFT).astype(np.complex64)


def _frames(signal: np.ndarray) -> np.ndarray:
    """Hann-windowed frames (t, WINDOW) of t * HOP samples, which overlap-add to the signal."""
    padded = np.pad(signal, (0, HOP)).reshape(-1, HOP)
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    return np.concatenate([padded[:-1], padded[1:]], axis=1) * window


def _overlap_add(frames: np.ndarray) -> np.ndarray:
    count, parts = len(frames), FFT // HOP
    blocks = frames.reshape(count, parts, HOP)
    out = np.zeros((count + parts - 1, HOP), frames.dtype)
    for part in range(parts):
        out[part : part + count] += blocks[:, part]
    return out[:count].reshape(-1)


def _transmit(rng: np.random.Generator, speech: np.ndarray) -> np.ndarray:
    """A microphone, a room, coloured noise and a level of this utterance's own: int16 (s,)."""
    reverberation, ratio_db = rng.uniform(0.1, 0.5), rng.uniform(6.0, 20.0)
    snr_db, colour, level_db = rng.uniform(22.0, 38.0), rng.uniform(0.0, 2.0), rng.uniform(-28, -22)
    room = _room(rng, reverberation, ratio_db)
    length = -(-(speech.size + room.size) // 4000) * 4000  # a length of small factors
    hertz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    octaves = np.log2(np.maximum(hertz, 60.0))
    knots = np.linspace(octaves[0], octaves[-1], 8)
    equaliser = 10 ** (np.interp(octaves, knots, rng.normal(0.0, 1.5, knots.size)) / 20)
    heard = np.fft.rfft(speech, length) * np.fft.rfft(room, length) * equaliser
    noise = np.fft.rfft(rng.standard_normal(length)) * 2 ** (-colour / 2 * octaves)
    noise *= 10 ** (-snr_db / 20) * _rms(heard) / _rms(noise)
    # The noise fills the whole circle and the speech only its own part of it.
    noise *= np.sqrt(length / speech.size)
    waveform = np.fft.irfft(heard + noise, length)[: speech.size]
    waveform *= 32768 * 10 ** (level_db / 20) / (_rms(waveform) + 1e-12)
    return np.clip(np.rint(waveform), -32768, 32767).astype(np.int16)


def _room(rng: np.random.Generator, reverberation: float, ratio_db: float) -> np.ndarray:
    """A direct pulse and a noise tail that falls 60 dB in `reverberation` seconds."""
    time = np.arange(int(reverberation * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(time.size) * 10 ** (-3 * time / reverberation)
    tail *= 10 ** (-ratio_db / 20) / (_rms(tail) * np.sqrt(tail.size))
    tail[0] = 1.0
    return tail


def _rms(x: np.ndarray) -> float:
    # Not np.linalg.norm: BLAS sums in an order that depends on its threads.
    return float(np.sqrt(np.mean(np.real(x) ** 2 + np.imag(x) ** 2)))


@dataclass(frozen=True)
class Voice:
    """One speaker's anatomy and habits."""

    family: int  # speakers of a family have similar voices
    f0_hz: float  # mean fundamental frequency, Hz
    f0_range_semitones: float  # spread of the f0 contour
    tract_cm: float  # vocal-tract length, cm
    formant_offsets: tuple[float, ...]  # of F1..F4, ratios to those that the tract's length gives
    bandwidth_scale: float  # ratio of formant bandwidths to Klatt's
    tilt_hz: float  # above it the source falls 12 dB an octave rather than 6, Hz
    breath_db: float  # aspiration noise against a unit source, dB
    nasal_zero_hz: float  # zero of the nasal branch with the velum open, Hz
    syllables_per_second: float  # speaking rate
    jitter: float  # standard deviation of pulse times, in periods

    @property
    def gender(self) -> str:
        """ "f" or "m", as a listener guesses it: by pitch, and by formants, which go as the inverse
        of the tract's length; each as far from the middle of its range."""
        pitch, tract = (
            np.log(value / (lowest * highest) ** 0.5) / np.log(highest / lowest)
            for value, (lowest, highest, _) in (
                (self.f0_hz, RANGES["f0_hz"]), (self.tract_cm, RANGES["tract_cm"])
            )
        )  # fmt: skip
        return "f" if pitch > tract else "m"

"""Speech of the built-in voices: a deterministic source-filter synthesiser, and a corpus of it.

A glottal pulse train and noise excite a cascade of formant resonators (Fant 1960, Acoustic Theory
of Speech Production; Klatt 1980, JASA 67:971) that moves through a random syllable sequence, and a
random channel colours the result. No phone sequence means anything: only the speaker can be learnt.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from chns_jax.common.progress import progress_bar
from chns_jax.corpus.voices import Voice, draw_voice

SAMPLE_RATE = 16000
HOP, WINDOW, FFT = 160, 320, 800  # 10 ms, 20 ms, and 30 ms for the resonators to ring out
REFERENCE_TRACT_CM = 17.5  # the formant tables hold for this length; formants go as its inverse

# One tag for each purpose, after those of `voices`.
SCRIPT, MELODY, EXCITATION, CHANNEL, DURATION = range(4, 9)

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
VOWEL_MANNER = [1.0, 0.0, 0.0, 4000, 2000]  # and the nasality of the voice
HESITATION = [500, 1500, 2500]  # F1, F2, F3 of a uniform tube, as in "er"
UPPER_FORMANTS = np.array([3500.0, 4500.0, 5500.0])  # Hz; those of a uniform tube
BANDWIDTHS = np.array([60.0, 90.0, 150.0, 250.0, 300.0, 400.0])  # Hz
NASAL_POLE, NASAL_BANDWIDTH = 270.0, 100.0  # Hz
DECLINATION = 0.6  # of every phrase, in spreads of the f0


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
    gestures, over = _gestures(script, voice, frames)
    f0 = _f0_contour(melody, voice, over)
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

    speakers.csv says the gender, the age and the family of each speaker. An utterance lasts 0.8 to
    1.2 of `seconds`. Several `processes` (None: one a core) are spawned, so a script that calls
    this needs the `__main__` guard. `folder` appears only when complete; if it is there already,
    whatever it holds, nothing is done. Raises what `synthesise` and the file system raise, and then
    leaves nothing behind.
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
    shown = partial(progress_bar, what="making voices", unit="speaker", total=speakers)
    if processes == 1:
        for _ in shown(map(write, range(speakers))):
            pass
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        for _ in shown(pool.map(write, range(speakers))):
            pass


def _write_table(path: Path, seed: int, speakers: int, families: int) -> None:
    voices = [draw_voice(seed, speaker, families) for speaker in range(speakers)]
    rows = [f"v{i:05d},{v.gender},{v.age},{v.family}\n" for i, v in enumerate(voices)]
    path.write_text("".join(["speaker,gender,age,family\n", *rows]))


def _write_speaker(
    folder: Path, seed: int, utterances: int, seconds: float, families: int, speaker: int
) -> None:
    home = folder / f"v{speaker:05d}"
    home.mkdir()
    for utterance in range(utterances):
        stretch = np.random.default_rng([seed, DURATION, speaker, utterance]).uniform(0.8, 1.2)
        waveform = synthesise(seed, speaker, utterance, stretch * seconds, families)
        # In memory first: libsndfile does not say that a disk is full.
        flac = io.BytesIO()
        soundfile.write(flac, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        (home / f"u{utterance:03d}.flac").write_bytes(flac.getvalue())


def _gestures(rng: np.random.Generator, voice: Voice, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of CONSONANTS over time (frames, 9), in syllables of a consonant and a gliding vowel;
    and (frames,) how much of its phrase is over."""
    syllables = int(2 * frames * HOP / SAMPLE_RATE * voice.syllables_per_second) + 4
    onset = rng.integers(len(CONSONANTS), size=syllables)
    vowel = rng.integers(len(VOWELS), size=(syllables, 2))
    targets = np.empty((syllables, 3, CONSONANTS.shape[1]))
    targets[:, 0] = (CONSONANTS * _habits(voice))[onset]
    targets[:, 1:, :3] = (VOWELS * voice.vowels)[vowel]
    targets[:, 1:, 3:] = [*VOWEL_MANNER, voice.nasality]
    share = np.array([voice.consonant_share, *(2 * [(1 - voice.consonant_share) / 2])])
    share = share * np.exp(0.3 * rng.standard_normal((syllables, 3)))
    hesitant = rng.random(syllables) < voice.hesitations
    targets[hesitant, 1:, :3] = HESITATION * voice.hesitation
    share[hesitant, 1:] *= voice.hesitation_syllables * np.array([1.0, 0.6])
    targets[..., :3] *= np.exp(0.05 * rng.standard_normal((syllables, 3, 3)))
    targets[:, 1:, 3] *= np.exp(0.3 * rng.standard_normal((syllables, 1)))  # stress
    # Before a phrase, a pause in place of the consonant.
    paused = rng.random(syllables) < 1 / voice.phrase_syllables
    paused[0] = False  # a short utterance is not all pause
    targets[paused, 0, 3:6] = 0
    share[paused, 0] *= 4
    ends = np.cumsum(share) / voice.syllables_per_second * SAMPLE_RATE / HOP
    time = np.arange(frames) + rng.random()
    segment = np.minimum(np.searchsorted(ends, time), ends.size - 1)
    held = targets.reshape(-1, targets.shape[-1])[segment]
    begun = -rng.random() * voice.phrase_syllables * ends[-1] / syllables  # the first, before
    bounds = np.concatenate([[begun], ends[::3][paused], ends[-1:]])
    phrase = np.clip(np.searchsorted(bounds, time, "right") - 1, 0, len(bounds) - 2)
    over = (time - bounds[phrase]) / np.diff(bounds)[phrase]
    return _smooth(held, voice.glide_frames), np.clip(over, 0.0, 1.0)


def _habits(voice: Voice) -> np.ndarray:
    """(11, 9) the voice's ratios to CONSONANTS."""
    ratios = np.ones(CONSONANTS.shape)
    ratios[:, :3], ratios[:, 5], ratios[:, 6:8] = voice.consonants, voice.hiss_strength, voice.hiss
    return ratios


def _smooth(track: np.ndarray, radius: float) -> np.ndarray:
    """Hann-weighted moving mean over the first axis: articulators glide from target to target."""
    reach = int(np.ceil(radius)) - 1
    weights = 1 + np.cos(np.pi * np.arange(-reach, reach + 1) / radius)
    weights = weights / weights.sum()
    padded = np.pad(track, ((reach, reach), (0, 0)), mode="edge")
    shifted = (w * padded[i : i + len(track)] for i, w in enumerate(weights))
    return sum(shifted, np.zeros(track.shape))


def _f0_contour(rng: np.random.Generator, voice: Voice, over: np.ndarray) -> np.ndarray:
    """f0 in Hz (frames,) around the speaker's mean: smooth accents, and in each phrase a
    declination and the speaker's own melody. `over` (frames,): how much of its phrase is over."""
    accents = _smooth(rng.standard_normal((over.size, 1)), radius=20)[:, 0]
    accents = accents / (accents.std() + 1e-9)
    waves = np.cos(np.pi * np.arange(1, voice.melody.size + 1) * over[:, None])
    melody = np.sum(waves * (voice.melody + np.eye(1, voice.melody.size)[0] * DECLINATION), axis=1)
    semitones = voice.f0_range_semitones * (0.7 * accents + melody)
    semitones += rng.normal(0.0, 0.7)  # nobody speaks twice at the same height
    return voice.f0_hz * 2 ** (semitones / 12)


def _glottal_pulses(rng: np.random.Generator, voice: Voice, f0: np.ndarray) -> np.ndarray:
    """Pulses (f0.size * HOP,): where the integrated f0 wraps the glottis closes, and where it had
    opened is a weaker one of the other sign (Klatt & Klatt 1990, JASA 87:820)."""
    samples = f0.size * HOP
    time = np.arange(samples)
    phase = np.cumsum(np.interp(time / HOP, np.arange(f0.size), f0)) / SAMPLE_RATE
    wraps = np.arange(1, int(phase[-1]) + 1)
    closing = np.interp(wraps, phase, time)
    period = SAMPLE_RATE / np.interp(closing / HOP, np.arange(f0.size), f0)
    closing = closing + voice.jitter * period * rng.standard_normal(closing.size)
    strength = np.sqrt(period) * np.exp(voice.shimmer * rng.standard_normal(closing.size))
    drift = voice.open_quotient_drift * (2 * closing / samples - 1)
    opening = closing - np.clip(voice.open_quotient + drift, 0.2, 0.95) * period
    position = np.clip(np.concatenate([closing, opening]), 0, samples - 2)
    strength = np.concatenate([strength, -voice.opening * strength])
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
    formants = np.concatenate([lower, upper], axis=1) * shrink * voice.formants
    # With the velum shut the nasal zero lies on the nasal pole and cancels it (Klatt 1980).
    zero = NASAL_POLE + nasal * (voice.nasal_zero_hz - NASAL_POLE)
    poles = np.pad(formants, ((0, 0), (0, 1)), constant_values=NASAL_POLE)
    bandwidths = np.append(BANDWIDTHS * voice.bandwidths, NASAL_BANDWIDTH)
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

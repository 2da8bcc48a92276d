"""The synthetic corpus: repeatable, speech-like, neither trivial nor hopeless, written whole."""

import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace

import librosa
import numpy as np
import pytest
import soundfile

from chns_jax.corpus import synthetic
from chns_jax.corpus.metadata import read_column, read_genders

RATE = 16000


def digest(waveform):
    return hashlib.sha256(waveform.tobytes()).hexdigest()


def level_db(waveform):
    return 20 * np.log10(np.sqrt(np.mean((waveform / 32768.0) ** 2)))


def autocorrelation_f0(waveform):
    """Median f0 of the clearly voiced 40 ms frames, by the peak of the autocorrelation."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(float), 640)[::160]
    power = np.abs(np.fft.rfft(frames * np.hanning(640), 2048)) ** 2
    # Divided by the window's own autocorrelation, or short lags would win (Boersma 1993).
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(640), 2048)) ** 2)[:320]
    correlation = np.fft.irfft(power)[:, :320] / window
    lags = np.arange(RATE // 400, RATE // 60)
    ratio = correlation[:, lags] / correlation[:, :1]
    # The first lag that is nearly as good as the best, lest a multiple of the period be taken.
    best = lags[np.argmax(ratio >= 0.9 * ratio.max(axis=1, keepdims=True), axis=1)]
    loud = power.sum(axis=1) > np.median(power.sum(axis=1))
    return np.median(RATE / best[loud & (ratio.max(axis=1) > 0.7)])


def long_term_db(waveforms, edges):
    """Mean power density, in dB, of the bands between `edges` (Hz)."""
    power = sum(np.abs(np.fft.rfft(w.astype(float))) ** 2 for w in waveforms)
    hertz = np.fft.rfftfreq(len(waveforms[0]), 1 / RATE)
    bands = itertools.pairwise(edges)
    return np.array([10 * np.log10(power[(hertz >= a) & (hertz < b)].mean()) for a, b in bands])


def steady_vowel(voice, vowel):
    """Samples of one held vowel, without a channel."""
    rng = np.random.default_rng(0)
    gestures = np.tile(np.append(vowel, synthetic.VOWEL_MANNER), (60, 1))
    pulses = synthetic._glottal_pulses(rng, voice, np.full(60, voice.f0_hz))
    return synthetic._articulate(voice, gestures, pulses, np.zeros(pulses.size, np.float32))


def equal_error_rate(target, impostor):
    threshold = np.sort(np.concatenate([target, impostor]))
    miss = np.searchsorted(np.sort(target), threshold) / target.size
    alarm = 1 - np.searchsorted(np.sort(impostor), threshold) / impostor.size
    nearest = np.argmin(np.abs(miss - alarm))
    return (miss[nearest] + alarm[nearest]) / 2


def test_same_bits_in_any_order_and_process():
    keys = [(3, 1, 0), (3, 0, 1), (4, 1, 0)]
    forward = [digest(synthetic.synthesise(*key, 0.7)) for key in keys]
    backward = [digest(synthetic.synthesise(*key, 0.7)) for key in reversed(keys)]
    code = (
        "import hashlib; from chns_jax.corpus.synthetic import synthesise;"
        "print(hashlib.sha256(synthesise(3, 0, 1, 0.7).tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", code]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert forward == backward[::-1]
    assert elsewhere == forward[1]


def test_every_key_makes_another_utterance():
    keys = itertools.product((0, 1), (0, 1, 2), (0, 1, 2))
    made = [synthetic.synthesise(*key, 0.5) for key in keys]
    assert len({digest(waveform) for waveform in made}) == 18
    correlation = np.corrcoef(np.array(made, float))
    assert np.abs(correlation - np.eye(18)).max() < 0.6


def test_level_is_sane():
    for speaker in range(12):
        waveform = synthetic.synthesise(5, speaker, 0, 2.0)
        assert waveform.dtype == np.int16 and waveform.shape == (32000,)
        assert -36 < level_db(waveform) < -15
        assert np.mean(np.abs(waveform.astype(int)) >= 32767) < 1e-3
        assert all(level_db(second) > -60 for second in waveform.reshape(2, -1))


@pytest.mark.parametrize("seconds", [1 / RATE, 0.01, 0.30004])
def test_short_utterances_have_the_asked_length(seconds):
    waveform = synthetic.synthesise(0, 0, 0, seconds)
    assert waveform.shape == (round(seconds * RATE),) and np.any(waveform)


def test_bad_arguments_are_refused():
    for arguments in [(0, 0, 0, 0.0), (0, 0, 0, -1.0), (-1, 0, 0, 1.0), (0, 0, 0, 1.0, 0)]:
        with pytest.raises(ValueError):
            synthetic.synthesise(*arguments)


def test_measured_f0_is_the_voice_s_own():
    ratios = []
    for speaker in range(10):
        voice = synthetic.draw_voice(2, speaker)
        spoken = [synthetic.synthesise(2, speaker, u, 2.0) for u in (0, 1)]
        measured = np.median([autocorrelation_f0(waveform) for waveform in spoken])
        ratios.append(12 * np.log2(measured / voice.f0_hz) / voice.f0_range_semitones)
    # In units of the speaker's own f0 range; the odd octave error of the estimator is let pass.
    assert np.mean(np.abs(ratios) < 1.5) >= 0.8
    assert abs(np.median(ratios)) < 0.6


def test_formants_are_where_the_tube_has_them():
    # Fant 1960: a uniform 17.5 cm tube, closed at one end, resonates at odd multiples of 500 Hz.
    voice = replace(
        synthetic.draw_voice(0, 0), tract_cm=17.5, formant_offsets=(1.0,) * 4, f0_hz=25.0,
        jitter=0.0, bandwidth_scale=0.7, nasal_zero_hz=synthetic.NASAL_POLE,
    )  # fmt: skip
    for length in (17.5, 14.0):
        power = np.abs(
            np.fft.rfft(steady_vowel(replace(voice, tract_cm=length), [500, 1500, 2500]))
        )
        hertz = np.fft.rfftfreq(60 * synthetic.HOP, 1 / RATE)
        for k in range(4):
            expected = (2 * k + 1) * 500 * 17.5 / length
            near = np.abs(hertz - expected) < 300
            found = hertz[near][power[near].argmax()]
            assert abs(found - expected) < 50  # harmonics are 25 Hz apart


def test_a_longer_tract_lowers_the_spectrum():
    voice = replace(synthetic.draw_voice(0, 1), f0_hz=25.0, jitter=0.0)  # dense harmonics
    centroids = []
    for length in (13.5, 15.0, 16.5, 18.0):
        vowels = [steady_vowel(replace(voice, tract_cm=length), v) for v in synthetic.VOWELS]
        # Differentiated, or the first harmonics, which the tract hardly moves, outweigh all.
        power = sum(np.abs(np.fft.rfft(np.diff(v))) ** 2 for v in vowels)
        centroids.append(np.sum(np.arange(power.size) * power) / power.sum())
    assert np.all(np.diff(centroids) < 0)


def test_the_long_term_spectrum_falls():
    waveforms = [synthetic.synthesise(8, speaker, 0, 2.0) for speaker in range(12)]
    density = long_term_db(waveforms, [150, 800, 2000, 4000])
    assert np.all(np.diff(density) < -3)


def test_voice_and_hiss_alternate():
    """Both low-frequency and high-frequency frames, and both loud and faint ones, in turn."""
    switches = []
    for speaker in range(6):
        frames = synthetic.synthesise(1, speaker, 0, 3.0).reshape(-1, 320) / 32768.0
        power = np.abs(np.fft.rfft(frames * np.hanning(320))) ** 2
        decibel = 10 * np.log10(power.sum(axis=1))
        assert np.percentile(decibel, 95) - np.percentile(decibel, 5) > 10
        high = power[:, 60:].sum(axis=1) > 0.5 * power.sum(axis=1)
        switches.append(np.count_nonzero(np.diff(high)))
    assert np.mean(switches) > 2


def test_families_are_closer_than_strangers():
    drawn = [synthetic.draw_voice(0, speaker, families=12) for speaker in range(120)]
    family = np.array([voice.family for voice in drawn])
    assert set(family) == set(range(12))
    anatomy = np.log(
        [(v.f0_hz, v.tract_cm, v.tilt_hz, v.bandwidth_scale, *v.formant_offsets) for v in drawn]
    )
    anatomy = (anatomy - anatomy.mean(axis=0)) / anatomy.std(axis=0)
    distance = np.linalg.norm(anatomy[:, None] - anatomy[None], axis=-1)
    same = family[:, None] == family[None]
    stranger = distance[~same].mean()
    assert distance[same & ~np.eye(120, dtype=bool)].mean() < 0.8 * stranger
    assert distance[~np.eye(120, dtype=bool)].min() > 0.01 * stranger  # nobody is cloned


def test_women_speak_higher_and_have_shorter_tracts():
    drawn = [synthetic.draw_voice(0, speaker) for speaker in range(200)]
    female = np.array([voice.gender == "f" for voice in drawn])
    assert 60 < female.sum() < 140
    for of_voice, sign in ((lambda v: v.f0_hz, 1), (lambda v: v.tract_cm, -1)):
        values = np.array([of_voice(voice) for voice in drawn])
        assert sign * (np.median(values[female]) - np.median(values[~female])) > 0


def test_mfcc_statistics_are_neither_trivial_nor_hopeless():
    keys = itertools.product(range(24), range(6))
    waveforms = np.array([synthetic.synthesise(7, *key, 1.5) for key in keys], np.float32) / 32768
    mfcc = np.concatenate(
        [librosa.feature.mfcc(y=some, sr=RATE, n_mfcc=20) for some in np.split(waveforms, 6)]
    )
    statistics = np.concatenate([mfcc.mean(axis=-1), mfcc.std(axis=-1)], axis=1)
    speaker = np.repeat(np.arange(24), 6)
    unit = statistics / np.linalg.norm(statistics, axis=1, keepdims=True)
    i, j = np.triu_indices(len(unit), 1)
    score, same = np.sum(unit[i] * unit[j], axis=1), speaker[i] == speaker[j]
    assert 0.12 < equal_error_rate(score[same], score[~same]) < 0.42


def test_written_corpus_holds_the_utterances(tmp_path):
    asked = dict(seed=6, speakers=3, utterances=4, seconds=0.5)
    folder = synthetic.write_corpus(tmp_path / "deep" / "corpus", **asked, processes=1)
    files = sorted(folder.rglob("*.flac"))
    names = [f"v{s:05d}/u{u:03d}.flac" for s in range(3) for u in range(4)]
    assert [file.relative_to(folder).as_posix() for file in files] == names
    assert (folder / "speakers.csv").read_text().splitlines()[0] == "speaker,gender,family"
    gender, family = (
        read_genders(folder / "speakers.csv"),
        read_column(folder / "speakers.csv", "family"),
    )
    for speaker, name in enumerate(("v00000", "v00001", "v00002")):
        voice = synthetic.draw_voice(6, speaker)
        assert (gender[name], family[name]) == (voice.gender, str(voice.family))
    assert synthetic.families_of(6, ["v00002"]).tolist() == [synthetic.draw_voice(6, 2).family]
    lengths = []
    for file in files:
        waveform, rate = soundfile.read(file, dtype="int16")
        speaker, utterance = int(file.parent.name[1:]), int(file.stem[1:])
        assert rate == RATE and soundfile.info(file).subtype == "PCM_16"
        expected = synthetic.synthesise(6, speaker, utterance, waveform.size / RATE)
        np.testing.assert_array_equal(waveform, expected)
        lengths.append(waveform.size)
    assert 0.8 * 8000 <= min(lengths) < max(lengths) <= 1.2 * 8000 and len(set(lengths)) > 6
    parallel = synthetic.write_corpus(tmp_path / "parallel", **asked, processes=2)
    assert [f.read_bytes() for f in sorted(parallel.rglob("*.flac"))] == [
        f.read_bytes() for f in files
    ]


def test_a_written_corpus_is_left_alone(tmp_path, monkeypatch):
    asked = dict(seed=0, speakers=1, utterances=1, seconds=0.1, processes=1)
    folder = synthetic.write_corpus(tmp_path / "corpus", **asked)
    monkeypatch.setattr(synthetic, "synthesise", None)
    assert synthetic.write_corpus(folder, **asked) == folder


def test_a_crash_leaves_nothing(tmp_path, monkeypatch):
    genuine = synthetic.synthesise

    def failing(seed, speaker, *rest):
        if speaker == 1:
            raise RuntimeError("power cut")
        return genuine(seed, speaker, *rest)

    monkeypatch.setattr(synthetic, "synthesise", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        synthetic.write_corpus(
            tmp_path / "c", seed=0, speakers=2, utterances=1, seconds=0.1, processes=1
        )
    assert list(tmp_path.iterdir()) == []


def test_the_first_to_finish_wins(tmp_path, monkeypatch):
    genuine, folder = synthetic.synthesise, tmp_path / "c"

    def overtaken(*arguments):
        folder.mkdir(exist_ok=True)
        (folder / "theirs").touch()
        return genuine(*arguments)

    monkeypatch.setattr(synthetic, "synthesise", overtaken)
    synthetic.write_corpus(folder, seed=0, speakers=1, utterances=1, seconds=0.1, processes=1)
    assert list(tmp_path.rglob("*")) == [folder, folder / "theirs"]

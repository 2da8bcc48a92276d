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
from chns_jax.corpus.voices import draw_voice

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
    first = lags[np.argmax(ratio >= 0.9 * ratio.max(axis=1, keepdims=True), axis=1)]
    # That is on the flank of a peak: the peak itself.
    near = (lags >= first[:, None]) & (lags <= 1.15 * first[:, None])
    best = lags[np.argmax(np.where(near, ratio, -1.0), axis=1)]
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
    gestures = np.tile(np.concatenate([vowel, synthetic.VOWEL_MANNER, [voice.nasality]]), (60, 1))
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
        voice = draw_voice(2, speaker)
        spoken = [synthetic.synthesise(2, speaker, u, 2.0) for u in (0, 1)]
        measured = np.median([autocorrelation_f0(waveform) for waveform in spoken])
        ratios.append(12 * np.log2(measured / voice.f0_hz) / voice.f0_range_semitones)
    # In units of the speaker's own f0 range; the odd octave error of the estimator is let pass.
    assert np.mean(np.abs(ratios) < 1.5) >= 0.8
    assert abs(np.median(ratios)) < 0.6


def test_formants_are_where_the_tube_has_them():
    # Fant 1960: a uniform 17.5 cm tube, closed at one end, resonates at odd multiples of 500 Hz.
    voice = replace(
        draw_voice(0, 0), tract_cm=17.5, formants=np.ones(6), f0_hz=25.0, jitter=0.0,
        bandwidths=np.full(6, 0.7), nasal_zero_hz=synthetic.NASAL_POLE, opening=0.0,
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
    voice = replace(draw_voice(0, 1), f0_hz=25.0, jitter=0.0)  # dense harmonics
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


def test_a_speaker_s_vowels_are_where_the_voice_has_them():
    plain = replace(
        draw_voice(0, 0), tract_cm=17.5, formants=np.ones(6), vowels=np.ones((10, 3)),
        consonants=np.ones((11, 3)), hesitations=0.0,
    )  # fmt: skip
    own = replace(plain, vowels=np.full((10, 3), [1.2, 0.9, 1.0]))
    means = [
        synthetic._gestures(np.random.default_rng(0), voice, 4000)[0].mean(axis=0)
        for voice in (plain, own)
    ]
    # Consonants, a third of the time, stay where they are.
    assert 1.08 < means[1][0] / means[0][0] < 1.19
    assert 0.91 < means[1][1] / means[0][1] < 0.97
    np.testing.assert_allclose(means[1][2:], means[0][2:], rtol=1e-9)


def test_coarticulation_is_of_the_speaker_s_own_speed():
    rush, drawl = (
        synthetic._gestures(
            np.random.default_rng(0), replace(draw_voice(0, 0), glide_frames=frames), 500
        )[0]
        for frames in (1.5, 9.0)
    )
    fastest = [np.abs(np.diff(track[:, 1])).max() for track in (rush, drawl)]
    assert fastest[0] > 3 * fastest[1]


def test_the_opening_of_the_glottis_weighs_harmonics_by_the_open_quotient():
    """H1 - H2 of 1 - a e^(2 pi i k q), by hand, of k = 1 and 2."""
    voice = replace(
        draw_voice(0, 0), jitter=0.0, shimmer=0.0, open_quotient_drift=0.0, opening=0.4, f0_hz=100.0
    )
    for quotient in (0.4, 0.5, 0.7):
        pulses = synthetic._glottal_pulses(
            np.random.default_rng(0), replace(voice, open_quotient=quotient), np.full(101, 100.0)
        )[:16000]
        harmonics = np.abs(np.fft.rfft(pulses))[[100, 200]]
        expected = np.abs(1 - 0.4 * np.exp(-2j * np.pi * quotient * np.array([1, 2])))
        found, asked = (20 * np.log10(some[0] / some[1]) for some in (harmonics, expected))
        assert abs(found - asked) < 0.5


def test_a_melody_returns_in_every_phrase():
    flat = replace(draw_voice(0, 0), melody=np.zeros(4), f0_range_semitones=2.0)
    over = np.tile(np.linspace(0, 1, 200), 5)
    contours = [
        12 * np.log2(synthetic._f0_contour(np.random.default_rng(0), voice, over))
        for voice in (flat, replace(flat, melody=np.array([0.0, 0.5, 0.0, 0.0])))
    ]
    np.testing.assert_allclose(contours[1] - contours[0], np.cos(2 * np.pi * over), atol=1e-9)


def test_hesitations_are_of_the_speaker_s_own_number_and_vowel():
    voice = replace(draw_voice(0, 0), hesitation=np.array([1.0, 1.0, 3.0]))  # an F3 like no other
    times = [
        np.mean(
            synthetic._gestures(
                np.random.default_rng(1), replace(voice, hesitations=rate), 6000
            )[0][:, 2] > 5000
        )
        for rate in (0.0, 0.1, 0.3)
    ]  # fmt: skip
    assert times[0] == 0 and 0.04 < times[1] < times[2] < 0.5


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
    assert (folder / "speakers.csv").read_text().splitlines()[0] == "speaker,gender,age,family"
    gender = read_genders(folder / "speakers.csv")
    age, family = (read_column(folder / "speakers.csv", column) for column in ("age", "family"))
    for speaker, name in enumerate(("v00000", "v00001", "v00002")):
        voice = draw_voice(6, speaker)
        described = (gender[name], age[name], family[name])
        assert described == (voice.gender, voice.age, str(voice.family))
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

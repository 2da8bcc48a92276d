import dataclasses

import numpy as np
import soundfile

from chns_jax.config import Sampler
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.reader import Reader
from chns_jax.corpus.speeds import with_speeds
from chns_jax.sampling.pipeline import voiceprint_batches
from chns_jax.sampling.plan import plan


def test_copies_come_after_the_speakers_and_keep_their_recordings_apart(tones, tmp_path):
    corpus = open_corpus(tones, tmp_path)
    copied = with_speeds(corpus, (0.9, 1.25))
    speakers, utterances = len(corpus.speakers), len(corpus)
    assert len(copied.speakers) == 3 * speakers and len(copied) == 3 * utterances
    assert list(copied.speakers[:speakers]) == list(corpus.speakers)
    assert copied.speakers[speakers] == "s00/x0.9" and copied.speakers[-1] == "s11/x1.25"
    assert len(np.unique(copied.speakers)) == 3 * speakers
    assert (np.diff(copied.speaker) >= 0).all() and (np.diff(copied.recording) >= 0).all()
    assert len(np.unique(copied.recording)) == 3 * len(np.unique(corpus.recording))
    assert copied.speed is not None
    for row in (0, 5, utterances - 1):
        for j, speed in enumerate((1.0, 0.9, 1.25)):
            at = row + j * utterances
            assert copied.path(at) == corpus.path(row) and copied.speed[at] == speed
            assert copied.speaker[at] == corpus.speaker[row] + j * speakers
            np.testing.assert_allclose(copied.seconds[at], corpus.seconds[row] / speed, rtol=1e-6)
    kept = copied.select(np.arange(3 * speakers) >= speakers)
    assert set(np.unique(kept.speed)) == {0.9, 1.25} and kept.path(0) == corpus.path(0)
    assert with_speeds(corpus, ()) is corpus
    for step in range(5):
        batch = plan(0, step, Sampler(kind="random", speakers=12), copied, None)
        one, other = batch.utterances.reshape(2, -1)
        np.testing.assert_array_equal(copied.speaker[one], copied.speaker[other])
        assert (copied.recording[one] != copied.recording[other]).all()


def pitch(crop, rate=16_000):
    return rate * np.argmax(np.abs(np.fft.rfft(crop * np.hanning(len(crop))))) / len(crop)


def test_crops_are_played_as_fast_as_their_speaker_says(tmp_path):
    """Of sines, whose pitch tells; at every speed a crop fills its length, from all of the file."""
    time = np.arange(32_000) / 16_000
    for name, hertz in (("a", 400), ("b", 700)):
        for i in range(2):
            path = tmp_path / "speech" / name / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * time), 16_000)
    corpus = with_speeds(open_corpus(tmp_path / "speech", tmp_path), (0.8, 1.25))
    reader = Reader(corpus, 16_000, 2)
    for row, (hertz, speed) in enumerate(
        (hertz, speed) for speed in (1, 0.8, 1.25) for hertz in (400, 400, 700, 700)
    ):
        crop = reader.crop(row, 0.5, 16_000)
        assert len(crop) == 16_000 and crop.dtype == np.int16
        assert abs(pitch(crop) - speed * hertz) <= 1
    plain = Reader(dataclasses.replace(corpus, speed=None), 16_000, 2)
    np.testing.assert_array_equal(reader.crop(1, 0.3, 9000), plain.crop(1, 0.3, 9000))
    # Voiceprints, of which clusters are made, are of the copies' own voices.
    (crops,) = voiceprint_batches(
        reader, per_speaker=2, seed=0, round=0, samples=16_000, rows=12
    )  # fmt: skip
    expected = np.repeat(np.outer([1, 0.8, 1.25], [400, 700]).ravel(), 2)
    np.testing.assert_allclose([pitch(crop) for crop in crops], expected, atol=1)

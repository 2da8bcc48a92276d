import dataclasses
import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import pytest
import soundfile
from support import write_tone

from chns_jax import SpeakerEncoder
from chns_jax.common.errors import UserError
from chns_jax.corpus.audio import read_whole
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.reader import Reader
from chns_jax.embedding.utterances import embed_utterances, embed_waveforms
from chns_jax.encoders.features import log_mel


@pytest.fixture(scope="module")
def encoder(untrained):
    return SpeakerEncoder.load(untrained)


@pytest.fixture(scope="module", autouse=True)
def two_seconds_at_most():
    """Of a waveform that is embedded in one piece, instead of a minute."""
    with pytest.MonkeyPatch.context() as patch:
        lengths = "chns_jax.embedding.utterances.bucket_lengths"
        patch.setattr(lengths, lambda rate: [rate // 2, rate, 2 * rate])
        yield


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """The paths of recordings of 0.05 s to 2.4 s, and the waveforms that they hold."""
    folder = tmp_path_factory.mktemp("speech")
    paths = []
    for i, seconds in enumerate([0.05, 0.31, 1.0, 1.234, 2.4, 0.2]):
        paths.append(folder / f"{i}.wav")
        write_tone(paths[-1], seconds, hertz=100 + 30 * i, seed=i)
    return paths, [read_whole(str(path), 16_000) for path in paths]


def alone(encoder, waveform):
    """By the definition: one row, its own length, no mask."""
    from chns_jax.encoders import make_encoder

    config, variables = encoder.model.config, encoder.model.variables
    weights = {"params": variables["params"]["encoder"], "batch_stats": variables["batch_stats"]}

    @jax.jit
    def embed(waveform):
        x = log_mel(waveform[None], config.features)
        return make_encoder(config.encoder).apply(weights, x, False)[0]

    z = np.asarray(embed(waveform), np.float64)
    return z / np.linalg.norm(z)


def test_a_list_gives_what_each_gives_alone(encoder, speech):
    paths, waveforms = speech
    embeddings = encoder.embed(paths)
    assert embeddings.shape == (6, 8) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    repeated = np.resize(waveforms[0], 3200)
    halves = [alone(encoder, half) for half in np.split(waveforms[4], 2)]
    mean = np.mean(halves, axis=0)
    expected = [alone(encoder, repeated), *(alone(encoder, waveforms[i]) for i in (1, 2, 3))]
    expected += [mean / np.linalg.norm(mean), alone(encoder, waveforms[5])]
    np.testing.assert_allclose(embeddings, expected, atol=1e-4)
    np.testing.assert_allclose(encoder.embed(paths[2]), embeddings[2], atol=1e-5)


def test_a_waveform_is_the_file_that_holds_it(encoder, speech, tmp_path):
    paths, waveforms = speech
    expected = encoder.embed(paths[2])
    floats = (waveforms[2] / 32768).astype(np.float32)
    for waveform in (waveforms[2], floats, floats.astype(np.float64), np.tile(floats[:, None], 2)):
        np.testing.assert_allclose(encoder.embed(waveform, sample_rate=16_000), expected, atol=1e-5)
    stereo = np.random.default_rng(0).normal(0, 0.1, (8000, 2))
    soundfile.write(tmp_path / "8k.wav", stereo, 8000, subtype="FLOAT")
    np.testing.assert_allclose(
        encoder.embed(stereo, sample_rate=8000), encoder.embed(tmp_path / "8k.wav"), atol=1e-4
    )
    assert encoder.embed([]).shape == (0, 8)


def test_similarity_is_the_cosine(encoder, speech):
    paths, waveforms = speech
    embeddings = encoder.embed(paths)
    cosine = encoder.similarity(paths[1], waveforms[3], sample_rate=16_000)
    assert cosine == pytest.approx(embeddings[1] @ embeddings[3], abs=1e-4)
    assert encoder.similarity(paths[1], paths[1]) == pytest.approx(1, abs=1e-5)


def test_an_encoder_that_diverged_is_an_error(encoder, speech):
    model = encoder.model
    spoilt = jax.tree.map(lambda x: x * np.nan, model.variables)
    diverged = dataclasses.replace(encoder, model=model._replace(variables=spoilt))
    with pytest.raises(UserError, match="no finite numbers, as its training diverged"):
        diverged.embed(speech[0][2])


def test_silence_is_finite(encoder):
    assert np.isfinite(encoder.embed(np.zeros(8000, np.int16), sample_rate=16_000)).all()


@pytest.mark.parametrize(
    "speech, rate, message",
    [
        (np.array([0.1, np.nan]), 16_000, "holds NaN"),
        (np.zeros(0), 16_000, "no samples"),
        (np.zeros((2, 8000)), 16_000, r"\(s, channels\), not \(2, 8000\)"),
        (np.zeros(8000, np.int32), 16_000, "not int32"),
        (np.full(8000, 20_000.0), 16_000, "divide"),
        (np.zeros(8000), None, "needs its sample_rate"),
        (np.zeros(8000), 0, "sample_rate 0"),
        (np.zeros(8000), 1, "sample_rate 1 is no number of hertz from 1000 to 768000"),
        (np.zeros(8000), float("nan"), "sample_rate nan"),
        (np.zeros(8000), "16000", "sample_rate '16000'"),
        ("gone.wav", None, "gone.wav .*does not exist"),
        (3, 16_000, "not a int"),
    ],
)
def test_what_is_no_speech_gets_one_sentence(encoder, speech, rate, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    with pytest.raises(UserError, match=message):
        encoder.embed(speech, sample_rate=rate)


def test_a_voice_needs_speech(encoder):
    with pytest.raises(UserError, match="there are no recordings"):
        encoder.voiceprint([])
    left = np.random.default_rng(0).normal(0, 0.1, (16_000, 1))
    with pytest.raises(UserError, match="silent in the mean of its channels"):
        encoder.voiceprint([np.concatenate([left, -left], axis=1)], sample_rate=16_000)


def test_a_checkpoint_by_its_number(untrained):
    assert SpeakerEncoder.load(untrained, 0).model.step == 0
    with pytest.raises(UserError, match="holds no checkpoint 300"):
        SpeakerEncoder.load(untrained, 300)


def test_segments_are_those_of_validation(encoder, tones, tmp_path):
    reader = Reader(open_corpus(tones, tmp_path), 16_000, 2)
    model, rows = encoder.model, np.arange(0, 48, 5)
    theirs = embed_utterances(model.embedder, model.variables, reader, rows, samples=4000)
    waveforms = ((i, read_whole(reader.corpus.path(row), 16_000)) for i, row in enumerate(rows))
    options = {"sample_rate": 16_000, "segment": 4000}
    mine = dict(embed_waveforms(model.embedder, model.variables, waveforms, **options))
    np.testing.assert_allclose([mine[i] for i in range(len(rows))], theirs, atol=1e-4)


def test_importing_the_package_is_light():
    code = """
import chns_jax, sys
assert 'jax' not in sys.modules and 'numpy' not in sys.modules
chns_jax.SpeakerEncoder  # for which a user waits
assert not {'orbax', 'grain', 'optax', 'sklearn', 'scipy', 'librosa'} & {*sys.modules}
"""
    subprocess.run([sys.executable, "-c", code], check=True)

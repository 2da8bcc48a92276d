"""A padded utterance in any batch gives what it gives alone, at its exact length."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import REDIMNET2

from chns_jax.config import Ecapa, Encoder, Features, ThinResNet
from chns_jax.corpus.audio import read_whole
from chns_jax.encoders import make_encoder, redimnet2
from chns_jax.encoders.features import frame_count, log_mel
from chns_jax.encoders.layers import pad_reflect

ECAPA = Encoder(
    embedding=16,
    ecapa=Ecapa(
        channels=(8, 8, 8, 16), kernel_sizes=(5, 3, 3, 1), dilations=(1, 2, 4, 1),
        res2net_scale=2, se_channels=4, attention_channels=4,
    ),
)  # fmt: skip


def thin_resnet(pooling, attend_over):
    options = ThinResNet(
        layers=(1, 1, 1), filters=(8, 8, 16), pooling=pooling, attend_over=attend_over
    )
    return Encoder(kind="thin_resnet", embedding=16, thin_resnet=options)


ENCODERS = {
    "ecapa": ECAPA,
    "redimnet2": REDIMNET2,
    **{
        f"{pooling}-{over}": thin_resnet(pooling, over)
        for pooling in ("sap", "asp")
        for over in ("time", "frequency")
    },
}


def random_variables(encoder, bands):
    """Random weights, and statistics that are not those of the start."""
    x = jnp.zeros((1, 32, bands))
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), x, False))
    rng = np.random.default_rng(0)

    def draw(path, value):
        kind, bound = path[-1].key, max(1, math.prod(value.shape[:-1])) ** -0.5
        if kind in ("mean", "bias"):
            drawn = rng.normal(0, 0.5, value.shape)
        elif kind in ("var", "scale"):
            drawn = rng.uniform(0.5, 2, value.shape)
        else:
            drawn = rng.uniform(-bound, bound, value.shape)
        return jnp.asarray(drawn, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def speechlike(samples, rng):
    """Noise whose level and colour change, so that every frame differs from the others."""
    noise = rng.normal(0, 1, samples + 8)
    coloured = np.convolve(noise, rng.normal(0, 1, 9), "valid")
    envelope = np.interp(np.arange(samples), np.linspace(0, samples, 20), rng.uniform(0, 1, 20))
    return (3000 * envelope**2 * coloured).clip(-32768, 32767).astype(np.int16)


def assert_batched_is_alone(config, features, waveforms, longest):
    encoder = make_encoder(config)
    variables = random_variables(encoder, features.bands)
    rng = np.random.default_rng(1)
    audio = rng.integers(-9000, 9000, (len(waveforms), longest)).astype(np.int16)  # no silence
    for row, waveform in zip(audio, waveforms, strict=True):
        row[: len(waveform)] = waveform
    samples_b = jnp.asarray([len(waveform) for waveform in waveforms], jnp.int32)

    @jax.jit
    def padded(audio, samples_b):
        x = log_mel(audio, features, samples_b)
        return encoder.apply(variables, x, False, frame_count(samples_b, features))

    batched = np.asarray(padded(jnp.asarray(audio), samples_b))
    assert np.isfinite(batched).all()

    @jax.jit
    def unpadded(audio):
        return encoder.apply(variables, log_mel(audio, features), False)[0]

    for row, waveform in zip(batched, waveforms, strict=True):
        alone = np.asarray(unpadded(jnp.asarray(waveform[None])))
        assert np.abs(row - alone).max() < 1e-4 * np.abs(alone).max(), len(waveform)
        cosine = row @ alone / np.linalg.norm(row) / np.linalg.norm(alone)
        assert cosine > 0.99999, len(waveform)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("ecapa", "speechbrain"),
        ("asp-time", "speechbrain"),
        ("redimnet2", "redimnet2"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [
                ("ecapa", "kaldi"),
                ("ecapa", "sherpa"),
                ("ecapa", "kaldi_hamming"),
                ("sap-time", "speechbrain"),
                ("sap-frequency", "speechbrain"),
                ("asp-frequency", "speechbrain"),
            ]
        ),
    ],
)
def test_a_batch_of_random_lengths(name, kind):
    rng = np.random.default_rng(2)
    features = Features(kind=kind, f_min=20, bands=40)
    lengths = [3200, 24_000, rng.integers(3200, 24_000)]
    waveforms = [speechlike(int(samples), rng) for samples in lengths]
    assert_batched_is_alone(ENCODERS[name], features, waveforms, longest=24_000)


@pytest.mark.long
@pytest.mark.parametrize("name", ["sap-time", "asp-frequency", "redimnet2"])
def test_every_remainder_of_the_strides_and_hops(name):
    """Frame counts 21 to 28: each remainder by 8; lengths on both sides of a frame's edge."""
    rng = np.random.default_rng(3)
    lengths = [3200 + 160 * i + (0, 159)[i % 2] for i in range(8)]
    waveforms = [speechlike(samples, rng) for samples in lengths]
    assert_batched_is_alone(ENCODERS[name], Features(bands=20), waveforms, longest=6000)


def test_without_mean_normalisation():
    rng = np.random.default_rng(4)
    waveforms = [speechlike(samples, rng) for samples in (5000, 9000)]
    features = Features(bands=20, mean_normalise=False)
    assert_batched_is_alone(ECAPA, features, waveforms, longest=12_000)


@pytest.mark.parametrize(
    "name", ["ecapa", "asp-time", pytest.param("redimnet2", marks=pytest.mark.long)]
)
def test_silence_is_finite(name):
    """And so are an utterance of zeros alone, and one that ends in them."""
    half = speechlike(8000, np.random.default_rng(5))
    half[4000:] = 0
    waveforms = [np.zeros(5000, np.int16), half]
    assert_batched_is_alone(ENCODERS[name], Features(bands=20), waveforms, longest=9000)


@pytest.mark.parametrize("mean_normalise", [True, False])
@pytest.mark.parametrize("kind", ["speechbrain", "kaldi", "kaldi_hamming", "sherpa", "redimnet2"])
def test_log_mel_ignores_what_follows_the_utterance(kind, mean_normalise):
    """Also where that is louder, which would raise SpeechBrain's floor."""
    rng = np.random.default_rng(6)
    features = Features(kind=kind, f_min=20, mean_normalise=mean_normalise)
    audio = rng.normal(0, 0.001, (4, 4000)).astype(np.float32)
    samples_b = np.array([400, 1599, 1601, 4000], np.int32)
    made = jax.jit(log_mel, static_argnums=1)
    rows = [jnp.asarray(row[None, :samples]) for row, samples in zip(audio, samples_b, strict=True)]
    alone = [made(row, features)[0] for row in rows]
    for row, samples in zip(audio, samples_b, strict=True):
        row[samples:] = 0.9
    padded = made(jnp.asarray(audio), features, jnp.asarray(samples_b))
    for row, single in zip(padded, alone, strict=True):
        np.testing.assert_allclose(row[: len(single)], single, atol=1e-3)
        np.testing.assert_array_equal(row[len(single) :], 0)


def test_reflection_is_at_the_end_of_each_row():
    x = np.random.default_rng(7).normal(size=(3, 9, 2)).astype(np.float32)
    for left, right in [(0, 0), (2, 2), (3, 4), (1, 2)]:
        frames = np.array([5, 7, 9])
        made = pad_reflect(jnp.asarray(x), left, right, jnp.asarray(frames))
        assert made.shape == (3, 9 + left + right, 2)
        for row, padded, t in zip(x, made, frames, strict=True):
            expected = np.pad(row[:t], ((left, right), (0, 0)), mode="reflect")
            np.testing.assert_array_equal(padded[: t + left + right], expected)


def test_fewest_frames_is_what_the_convolutions_ask_for():
    usual, wide = ((5, 3, 3, 3, 1), (1, 2, 3, 4, 1)), ((3, 3, 4, 3, 1), (9, 9, 9, 9, 9))
    for kernel_sizes, dilations in (usual, wide):
        options = Ecapa((8, 8, 8, 8, 16), kernel_sizes, dilations, res2net_scale=4)
        encoder = make_encoder(Encoder(ecapa=options))

        def init(frames, encoder=encoder):
            x = jnp.zeros((1, frames, 20))
            return jax.eval_shape(lambda: encoder.init(jax.random.key(0), x, False))

        init(encoder.fewest_frames)
        with pytest.raises(ValueError, match="frames are too few"):
            init(encoder.fewest_frames - 1)


def test_attention_of_some_queries_at_a_time_is_that_of_all(monkeypatch):
    rng = np.random.default_rng(8)
    query, key, value = rng.normal(size=(3, 2, 21, 4, 5)).astype(np.float32)
    expected = np.zeros_like(value)
    frames_b = np.array([21, 13], np.int32)
    for row, frames in enumerate(frames_b):
        for head in range(4):
            of = row, slice(frames), head
            weight = np.exp(query[row, :, head] @ key[of].T / 5**0.5)
            expected[row, :, head] = weight @ value[of] / weight.sum(1, keepdims=True)
    for at_once in (8, 21):
        monkeypatch.setattr(redimnet2, "QUERIES_AT_ONCE", at_once)
        mine = redimnet2.attend(*map(jnp.asarray, (query, key, value, frames_b)))
        np.testing.assert_allclose(mine, expected, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ecapa", "asp-time", "redimnet2"])
def test_real_speech(real_data, name):
    paths = sorted((real_data / "vox2mini").rglob("*.flac"))[::150]
    waveforms = [read_whole(str(path), 16_000) for path in paths]
    longest = max(map(len, waveforms)) + 777
    assert_batched_is_alone(ENCODERS[name], Features(), waveforms, longest)

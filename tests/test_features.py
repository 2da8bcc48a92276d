import jax
import jax.numpy as jnp
import kaldi_native_fbank
import numpy as np
import pytest

from chns_jax.config import Features
from chns_jax.encoders.features import frame_count, log_mel, mel_filters

RAW = Features(mean_normalise=False)


def test_log_mel_is_speechbrains(golden):
    arrays = golden("fbank")
    mine = log_mel(jnp.asarray(arrays["wav1"])[None], RAW)[0]
    np.testing.assert_allclose(mine, arrays["speechbrain1"], atol=1e-3)


@pytest.mark.parametrize(
    "kind, key", [("kaldi", "kaldi1"), ("kaldi_hamming", "kaldi_hamming_int161")]
)
def test_log_mel_is_kaldis(golden, kind, key):
    arrays = golden("fbank")
    features = Features(kind=kind, f_min=20, mean_normalise=False)
    mine = log_mel(jnp.asarray(arrays["wav1"])[None], features)[0]
    np.testing.assert_allclose(mine, arrays[key], atol=1e-3)


@pytest.mark.parametrize("samples", [3279, 3280, 3281, 8161])
def test_log_mel_is_sherpas(samples):
    """sherpa-onnx computes its log-mel by kaldi-native-fbank, with these options."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges = 0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = 80, -400
    waveform = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16_000, waveform.tolist())
    fbank.input_finished()
    theirs = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    features = Features(kind="sherpa", f_min=20, f_max=7600, mean_normalise=False)
    mine = log_mel(jnp.asarray(waveform)[None], features)[0]
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_log_mel_is_the_plain_dft():
    """One frame at a time, by the definition: window, DFT, triangles, decibels."""
    signal = np.random.default_rng(0).normal(0, 0.1, 1000)
    padded = np.pad(signal, 200)
    n = np.arange(400)
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * n / 400)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(201), n) / 400)
    frames = [padded[160 * t : 160 * t + 400] * hamming for t in range(7)]
    power = np.stack([np.abs(dft @ frame) ** 2 for frame in frames])
    expected = 10 * np.log10(np.maximum(power @ mel_filters(RAW, 400), 1e-10))
    np.testing.assert_allclose(log_mel(jnp.asarray(signal)[None], RAW)[0], expected, atol=1e-3)


def test_log_mel_of_redimnet2_is_the_plain_dft():
    """TFMelBanks by its definition: unit deviation, pre-emphasis, DFT, triangles in mel, nepers."""
    signal = 0.01 + np.random.default_rng(0).normal(0, 0.1, 1000)
    features = Features(kind="redimnet2", bands=72, f_min=20, f_max=7600, mean_normalise=False)
    unit = (signal - signal.mean()) / (signal.std() + 1e-8)
    emphasised = np.pad(unit - 0.97 * np.r_[unit[1], unit[:-1]], 80)
    n = np.arange(400)
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * n / 399)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(256), n) / 512)
    frames = [emphasised[160 * t : 160 * t + 400] * hamming for t in range(5)]
    power = np.maximum([np.abs(dft @ frame) ** 2 for frame in frames], 1e-8)
    energies = np.zeros((5, 72))
    mel = 2595 * np.log10(1 + np.linspace(0, 8000, 256) / 700)
    low, high = 2595 * np.log10(1 + np.array([20, 7600]) / 700)
    edges = np.linspace(low, high, 74)
    for band in range(72):
        triangle = np.interp(mel, edges[band : band + 3], [0, 1, 0], left=0, right=0)
        energies[:, band] = power @ triangle
    expected = np.log(np.maximum(energies, 1e-8) + 1e-8)
    mine = log_mel(jnp.asarray(signal, jnp.float32)[None], features)[0]
    np.testing.assert_allclose(mine, expected, atol=1e-3)


def test_int16_is_the_float_it_stands_for():
    wave = np.random.default_rng(0).integers(-3000, 3000, (2, 4000)).astype(np.int16)
    from_int = log_mel(jnp.asarray(wave), RAW)
    np.testing.assert_array_equal(from_int, log_mel(jnp.asarray(wave / 32768, jnp.float32), RAW))


@pytest.mark.parametrize("kind", ["speechbrain", "kaldi", "sherpa", "redimnet2"])
@pytest.mark.parametrize("samples", [400, 560, 1600, 1601, 48_000])
def test_frame_count(samples, kind):
    features = Features(kind=kind)
    shape = jax.eval_shape(lambda x: log_mel(x, features), jnp.zeros((1, samples))).shape
    assert shape == (1, frame_count(samples, features), 80)


def test_mean_normalised_features_ignore_the_level_and_rows_do_not_mix():
    wave = np.random.default_rng(0).normal(0, 0.1, (2, 8000)).astype(np.float32)
    quiet_loud = log_mel(jnp.asarray([wave[0], 4 * wave[0]]), Features())
    np.testing.assert_allclose(quiet_loud[0], quiet_loud[1], atol=1e-3)
    np.testing.assert_allclose(quiet_loud.mean(axis=1), 0, atol=1e-4)
    alone = log_mel(jnp.asarray(wave[:1]), Features())
    np.testing.assert_allclose(log_mel(jnp.asarray(wave), Features())[0], alone[0], atol=1e-4)


def test_silence_is_finite():
    assert (log_mel(jnp.zeros((1, 1600), jnp.int16), Features()) == 0).all()

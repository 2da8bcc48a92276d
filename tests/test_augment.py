import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax.config import Augment, SpecAugment, Speed
from chns_jax.training.augment import (
    add_noise,
    augment_audio,
    change_speed,
    draw_rirs,
    draw_speeds,
    mask_spectrogram,
    reverberate,
    slot_keys,
)

RATE = 16_000


def keys(step=0, seed=0, slots=2000):
    return slot_keys(seed, step, jnp.arange(slots))


def tone(hertz, samples):
    return np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)


def test_draws_are_a_function_of_seed_step_and_slot():
    drawn = np.asarray(draw_speeds(keys(), 0.6, 2))
    np.testing.assert_array_equal(drawn[5:9], draw_speeds(keys(slots=9)[5:], 0.6, 2))
    assert (drawn != draw_speeds(keys(step=1), 0.6, 2)).mean() > 0.3
    assert (drawn != draw_speeds(keys(seed=1), 0.6, 2)).mean() > 0.3
    share = np.bincount(drawn, minlength=3) / len(drawn)
    np.testing.assert_allclose(share, [0.4, 0.3, 0.3], atol=0.05)
    in_room, which = draw_rirs(keys(), 0.25, 4)
    assert np.mean(in_room) == pytest.approx(0.25, abs=0.04)
    np.testing.assert_allclose(np.bincount(which) / 2000, 0.25, atol=0.04)
    correlation = np.corrcoef(drawn > 0, in_room)[0, 1]
    assert abs(correlation) < 0.1  # one draw does not decide the other


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_speed_moves_the_pitch(factor):
    samples = 3200
    audio = tone(500, round(samples * 1.25) + 1)[None].repeat(2, axis=0)
    changed = change_speed(jnp.asarray(audio), jnp.array([1, 0]), (factor,), samples)
    assert changed.shape == (2, samples)
    expected = tone(500 * factor, samples)
    inner = slice(200, -200)  # the ends ring
    np.testing.assert_allclose(changed[0, inner], expected[inner], atol=0.02)
    np.testing.assert_array_equal(changed[1], jnp.asarray(audio[1, :samples]))


def test_faster_playing_folds_nothing_back():
    """7 kHz would become 8.75 kHz, which 16 kHz cannot hold."""
    audio = jnp.asarray(tone(7000, 4000))[None]
    changed = change_speed(audio, jnp.array([1]), (1.25,), 3200)
    assert np.abs(changed[0, 200:-200]).max() < 0.02


def test_reverberation_is_the_plain_convolution_at_the_same_power():
    rng = np.random.default_rng(0)
    audio, rirs = rng.normal(size=(3, 900)), rng.normal(size=(3, 70))
    wet = reverberate(jnp.asarray(audio), jnp.asarray(rirs))
    for row in range(3):
        expected = np.convolve(audio[row], rirs[row])[:900]
        expected *= np.sqrt(np.square(audio[row]).mean() / np.square(expected).mean())
        np.testing.assert_allclose(wet[row], expected, atol=1e-4)
    silent = reverberate(jnp.zeros((1, 900)), jnp.asarray(rirs[:1]))
    np.testing.assert_array_equal(silent, 0)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 15.0])
def test_noise_is_added_at_its_ratio(snr):
    rng = np.random.default_rng(0)
    audio, noise = 0.1 * rng.normal(size=(2, 5000)), 3.0 * rng.normal(size=(2, 5000))
    noisy = add_noise(jnp.asarray(audio), jnp.asarray(noise), jnp.array([snr, jnp.inf]))
    added = np.asarray(noisy[0]) - audio[0]
    ratio = 10 * np.log10(np.square(audio[0]).mean() / np.square(added).mean())
    assert ratio == pytest.approx(snr, abs=0.01)
    np.testing.assert_allclose(noisy[1], audio[1], rtol=1e-6)


def test_silence_stays_finite():
    silence, noise = jnp.zeros((1, 100)), jnp.ones((1, 100))
    np.testing.assert_array_equal(add_noise(silence, noise, jnp.array([5.0])), 0)
    np.testing.assert_array_equal(add_noise(noise, silence, jnp.array([5.0])), noise)
    gradient = jax.grad(lambda x: add_noise(x, noise, jnp.array([5.0])).sum())(noise)
    assert jnp.isfinite(gradient).all()


def test_masks_have_the_widths_and_shares_that_the_config_says():
    options = SpecAugment(probability=0.5, time_masks=1, time_width=6, band_masks=1, band_width=3)
    rng = np.random.default_rng(0)
    frames = jnp.asarray(rng.normal(size=(2000, 30, 12)), jnp.float32)
    masked = np.asarray(mask_spectrogram(frames, options, keys()))
    mean = np.broadcast_to(np.asarray(frames).mean(axis=1, keepdims=True), masked.shape)
    hidden = masked != np.asarray(frames)
    np.testing.assert_allclose(masked[hidden], mean[hidden], atol=1e-6)
    stretch, bands = hidden.all(axis=2).sum(axis=1), hidden.all(axis=1).sum(axis=1)
    assert stretch.max() == 6 and bands.max() == 3
    # Half are masked; of those a seventh and a quarter have width 0.
    assert (stretch > 0).mean() == pytest.approx(0.5 * 6 / 7, abs=0.04)
    assert (bands > 0).mean() == pytest.approx(0.5 * 3 / 4, abs=0.04)
    whole = hidden.all(axis=2)[stretch > 0]
    edges = np.abs(np.diff(whole.astype(int), axis=1)).sum(axis=1)
    assert edges.max() <= 2  # one stretch, not several
    assert whole[:, 0].any() and whole[:, -1].any()  # they reach both ends


def test_none_of_it_leaves_the_crop_as_it_is():
    audio = np.random.default_rng(0).integers(-9000, 9000, (4, 800)).astype(np.int16)
    batch = {"audio": jnp.asarray(audio), "labels": jnp.arange(4), "slot": jnp.arange(4)}
    out, labels = augment_audio(
        batch, None, Augment(), seed=0, step=jnp.int32(3), samples=800, speakers=4, pairs=2
    )
    np.testing.assert_array_equal(out, audio / np.float32(32768))
    np.testing.assert_array_equal(labels, np.arange(4))


@pytest.mark.parametrize("pairs", [200, None])
def test_new_speakers_keep_their_twins(pairs):
    """A row's label says its speed; views have one label, or they would be negatives."""
    speed = Speed(probability=0.7, factors=(0.8, 1.25), new_speakers=True)
    audio = np.broadcast_to(0.5 * tone(1000, 2000), (400, 2000)).astype(np.float32)
    speakers = np.tile(np.arange(200), 2)
    batch = {"audio": audio, "labels": speakers, "slot": np.arange(400)}
    out, labels = augment_audio(
        jax.tree.map(jnp.asarray, batch), None, Augment(speed=speed),
        seed=0, step=jnp.int32(0), samples=1600, speakers=200, pairs=pairs,
    )  # fmt: skip
    choice = np.asarray(labels) // 200
    np.testing.assert_array_equal(np.asarray(labels) % 200, speakers)
    assert set(choice) == {0, 1, 2}
    pitch = np.abs(np.fft.rfft(out)).argmax(axis=1) * RATE / 1600
    np.testing.assert_allclose(pitch, np.array([1000, 800, 1250])[choice], atol=11)
    first, second = choice.reshape(2, -1)
    assert (first == second).all() == (pairs is not None)

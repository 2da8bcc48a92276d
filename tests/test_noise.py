import numpy as np
import pytest
import soundfile
from support import write_tone

from chns_jax.common.errors import UserError
from chns_jax.config import Noise
from chns_jax.corpus.noise import find_noise

RATE = 16_000


@pytest.fixture(scope="module")
def musan(tmp_path_factory):
    """noise/, music/ and speech/, each of tones of its own pitch."""
    root = tmp_path_factory.mktemp("musan")
    for kind, hertz in [("noise", 100), ("music", 400), ("speech", 1600)]:
        for i in range(3):
            write_tone(root / kind / "source" / f"{i}.wav", 0.5 + i, hertz=hertz, seed=i)
    return root


def draws(options, count=300):
    noise = find_noise(options, RATE)
    return [noise.draw(np.random.default_rng(i), 1600) for i in range(count)]


def test_off_is_none(tmp_path):
    assert find_noise(Noise(root=str(tmp_path)), RATE) is None


def test_kinds_come_alike_each_at_its_own_ratio(musan):
    options = Noise(
        probability=0.6, root=str(musan),
        noise_snr=(0.0, 1.0), music_snr=(10.0, 11.0), speech_snr=(20.0, 21.0), talkers=(3, 3),
    )  # fmt: skip
    drawn = draws(options)
    heard = np.array([np.abs(noise).max() > 0 for noise, _ in drawn])
    snr = np.array([snr for _, snr in drawn])
    np.testing.assert_array_equal(heard, np.isfinite(snr))
    assert heard.mean() == pytest.approx(0.6, abs=0.1)
    kinds = np.bincount((snr[heard] // 10).astype(int)) / heard.sum()
    np.testing.assert_allclose(kinds, 1 / 3, atol=0.1)
    for (noise, _), ratio in zip(drawn, snr, strict=True):
        assert noise.dtype == np.int16 and noise.shape == (1600,)
        if np.isfinite(ratio):
            spectrum = np.abs(np.fft.rfft(noise.astype(float)))[5:]  # harmonics of the kind's pitch
            strongest = (5 + spectrum.argmax()) * 10
            assert strongest % [100, 400, 1600][int(ratio // 10)] == 0
    again = draws(options, 20)
    np.testing.assert_array_equal([n for n, _ in again], [n for n, _ in drawn[:20]])


def test_any_folder_is_noise(tmp_path):
    write_tone(tmp_path / "hum.wav", 1.0, hertz=50)
    write_tone(tmp_path / "deep" / "er" / "hiss.flac", 1.0, hertz=70)
    noise = find_noise(Noise(probability=1.0, root=str(tmp_path)), RATE)
    assert {kind: len(files) for kind, files in noise.files.items()} == {"noise": 2}


def test_a_broken_file_is_passed_over_and_a_broken_folder_is_an_error(tmp_path):
    write_tone(tmp_path / "good.wav", 1.0, hertz=50)
    soundfile.write(tmp_path / "bad.wav", np.full(1600, np.nan, np.float32), RATE, "FLOAT")
    options = Noise(probability=1.0, root=str(tmp_path))
    assert all(np.abs(noise).max() > 0 for noise, _ in draws(options, 20))
    (tmp_path / "good.wav").unlink()
    with pytest.raises(UserError, match="bad.wav holds NaN"):
        draws(options, 1)


def test_no_folder_and_no_audio(tmp_path):
    with pytest.raises(UserError, match="augment.noise.root .*gone is not a folder"):
        find_noise(Noise(probability=0.5, root=str(tmp_path / "gone")), RATE)
    with pytest.raises(UserError, match="holds no audio"):
        find_noise(Noise(probability=0.5, root=str(tmp_path)), RATE)

import shutil

import numpy as np
import pytest
import soundfile

from chns_jax.common.errors import UserError
from chns_jax.corpus.audio import AudioError, check, read_crop, read_header, read_whole

RATE = 16_000


@pytest.fixture
def ramp(tmp_path):
    """A second whose samples say where they are."""
    path = tmp_path / "ramp.flac"
    soundfile.write(path, np.arange(RATE, dtype=np.int16), RATE)
    return str(path)


@pytest.mark.parametrize("position, first", [(0.0, 0), (0.5, 6000), (1.0, 12_000)])
def test_a_crop_lies_where_its_position_says(ramp, position, first):
    crop = read_crop(ramp, position, 4000, RATE)
    np.testing.assert_array_equal(crop, np.arange(first, first + 4000))


def test_positions_are_spread_evenly(ramp):
    firsts = {int(read_crop(ramp, p, RATE - 3, RATE)[0]) for p in np.linspace(0, 0.999, 40)}
    assert firsts == {0, 1, 2, 3}


def test_a_short_file_is_repeated(ramp):
    crop = read_crop(ramp, 0.7, 2 * RATE + 5, RATE)
    np.testing.assert_array_equal(crop, np.resize(np.arange(RATE), 2 * RATE + 5))


def test_a_whole_file_is_all_its_samples(ramp):
    np.testing.assert_array_equal(read_whole(ramp, RATE), np.arange(RATE))
    assert len(read_whole(ramp, 11_025)) == 11_025  # none repeated to fill up a rounded length


def test_channels_are_averaged(tmp_path):
    left, right = np.full(800, 1000, np.int16), np.full(800, 3000, np.int16)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), RATE)
    assert set(read_crop(str(tmp_path / "x.wav"), 0.0, 400, RATE)) == {2000}


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_other_rates_are_resampled(tmp_path, rate):
    time = np.arange(rate) / rate
    soundfile.write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 440 * time), rate)
    assert read_header(str(tmp_path / "x.wav")) == (1.0, rate)
    crop = read_crop(str(tmp_path / "x.wav"), 0.5, 8000, RATE)
    assert crop.shape == (8000,) and crop.dtype == np.int16
    spectrum = np.abs(np.fft.rfft(crop * np.hanning(8000)))
    assert np.argmax(spectrum) * RATE / 8000 == pytest.approx(440, abs=2)
    assert np.abs(crop[2000:6000]).max() == pytest.approx(0.5 * 32768, rel=0.02)


@pytest.mark.parametrize(
    "name, kind, tolerance",
    [
        ("x.wav", {"subtype": "PCM_24"}, 2),
        ("x.wav", {"subtype": "FLOAT"}, 2),
        ("x.flac", {}, 2),
        ("x.ogg", {"subtype": "VORBIS"}, 3000),
        ("x.opus", {"format": "OGG", "subtype": "OPUS"}, 3000),
        ("x.mp3", {}, 3000),
    ],
)
def test_formats(tmp_path, name, kind, tolerance):
    time = np.arange(2 * RATE) / RATE
    wave = 0.5 * np.sin(2 * np.pi * 300 * time)
    soundfile.write(tmp_path / name, wave.astype(np.float32), RATE, **kind)
    assert read_header(str(tmp_path / name)).seconds == pytest.approx(2, abs=0.1)
    crop = read_crop(str(tmp_path / name), 0.5, RATE, RATE)
    assert np.sqrt(np.mean(crop.astype(float) ** 2)) == pytest.approx(11_585, abs=tolerance)


def test_float_samples_beyond_one_are_clipped(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.full(500, -1.5, np.float32), RATE, subtype="FLOAT")
    assert set(read_crop(str(tmp_path / "x.wav"), 0.0, 500, RATE)) == {-32768}


def test_a_file_of_no_samples(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(0), RATE)
    with pytest.raises(AudioError, match="x.wav holds no samples"):
        read_header(str(tmp_path / "x.wav"))
    with pytest.raises(AudioError, match="x.wav holds no samples"):
        read_crop(str(tmp_path / "x.wav"), 0.0, 100, RATE)


@pytest.mark.parametrize("content", [b"", b"not audio at all" * 50])
def test_a_file_that_is_not_audio(tmp_path, content):
    (tmp_path / "x.wav").write_bytes(content)
    readers = (read_header, lambda path: read_crop(path, 0.0, 100, RATE))
    for read in (*readers, lambda path: read_whole(path, RATE), lambda path: check(path, RATE)):
        with pytest.raises(AudioError, match="x.wav"):
            read(str(tmp_path / "x.wav"))


def test_a_truncated_file(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * RATE)
    soundfile.write(tmp_path / "x.flac", noise, RATE)
    whole = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AudioError, match="x.flac"):
        read_crop(str(tmp_path / "x.flac"), 1.0, RATE, RATE)


@pytest.mark.parametrize("before", [b"", b"LIST" + (3).to_bytes(4, "little") + b"abc "])
def test_a_truncated_wav(tmp_path, before):
    """A chunk of odd length, which is padded, may come before the samples."""
    path = str(tmp_path / "x.wav")
    soundfile.write(path, np.zeros(8000), RATE)
    whole = (tmp_path / "x.wav").read_bytes()
    whole = whole[:36] + before + whole[36:]
    (tmp_path / "x.wav").write_bytes(whole)
    assert len(read_whole(path, RATE)) == 8000
    (tmp_path / "x.wav").write_bytes(whole[:-5])
    for read in (read_header, lambda path: read_crop(path, 0.0, 100, RATE)):
        with pytest.raises(AudioError, match="is truncated: 5 of 16000 bytes are missing"):
            read(path)
    at = len(whole) - 16_004
    for streamed in (0x7FFFF000, 0xFFFFFFFF):  # by a program that did not know how many
        size = streamed.to_bytes(4, "little")
        (tmp_path / "x.wav").write_bytes(whole[:4] + size + whole[8:at] + size + whole[at + 4 :])
        assert len(read_whole(path, RATE)) == 8000


def test_a_float_file_at_another_scale(tmp_path):
    noise = np.random.default_rng(0).normal(0, 3000, RATE)
    soundfile.write(tmp_path / "x.wav", noise, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"x.wav is far from \[-1, 1\]: divide it"):
        read_crop(str(tmp_path / "x.wav"), 0.0, 4000, RATE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_file_that_holds_no_numbers(tmp_path, bad):
    wave = np.zeros(RATE, np.float32)
    wave[300] = bad
    soundfile.write(tmp_path / "x.wav", wave, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="x.wav holds NaN or infinity"):
        read_crop(str(tmp_path / "x.wav"), 0.0, 4000, RATE)


def test_an_mp3_may_begin_with_other_bytes(tmp_path):
    soundfile.write(tmp_path / "x.mp3", np.sin(np.arange(RATE)) / 2, RATE)
    (tmp_path / "y.mp3").write_bytes(bytes(100) + (tmp_path / "x.mp3").read_bytes())
    whole, other = (read_whole(str(tmp_path / name), RATE) for name in ("x.mp3", "y.mp3"))
    np.testing.assert_array_equal(other, whole)


def test_a_missing_file(tmp_path):
    (tmp_path / "another.flac").touch()
    with pytest.raises(AudioError, match="gone.flac"):
        read_crop(str(tmp_path / "gone.flac"), 0.0, 100, RATE)
    with pytest.raises(AudioError, match="cannot be decoded: it is a folder"):
        read_crop(str(tmp_path), 0.0, 100, RATE)


def test_m4a_needs_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "x.m4a").write_bytes(b"")
    with pytest.raises(UserError, match="x.m4a is m4a, which needs ffprobe: install ffmpeg"):
        read_header(str(tmp_path / "x.m4a"))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg on the PATH")
def test_m4a_through_ffmpeg(tmp_path):
    import subprocess

    time = np.arange(2 * RATE) / RATE
    soundfile.write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 300 * time), RATE)
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "x.wav", tmp_path / "x.m4a"]
    subprocess.run(command, check=True)
    assert read_header(str(tmp_path / "x.m4a")).seconds == pytest.approx(2, abs=0.1)
    crop = read_crop(str(tmp_path / "x.m4a"), 0.5, RATE, RATE)
    assert crop.shape == (RATE,)
    assert np.sqrt(np.mean(crop.astype(float) ** 2)) == pytest.approx(11_585, abs=2000)
    whole = read_whole(str(tmp_path / "x.m4a"), RATE)
    assert len(whole) == pytest.approx(2 * RATE, abs=0.1 * RATE)
    assert np.sqrt(np.mean(whole.astype(float) ** 2)) == pytest.approx(11_585, abs=2000)
    (tmp_path / "y.m4a").write_bytes(b"not audio")
    with pytest.raises(AudioError, match="y.m4a"):
        read_header(str(tmp_path / "y.m4a"))

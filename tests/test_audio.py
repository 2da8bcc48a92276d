import os
import shutil
import subprocess
import tracemalloc

import numpy as np
import pytest
import soundfile

from chns_jax.common.errors import UserError
from chns_jax.common.files import OF_SPEECH
from chns_jax.corpus import audio
from chns_jax.corpus.audio import AudioError, check, read_crop, read_header, read_whole

RATE = 16_000
READERS = (read_header, lambda path: read_crop(path, 0.5, 100, RATE), lambda p: read_whole(p, RATE))
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg on the PATH")


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
    (tmp_path / "x.flac").write_bytes(whole[:42])
    with pytest.raises(AudioError, match="cannot be decoded: it is cut off or damaged"):
        read_crop(str(tmp_path / "x.flac"), 0.0, RATE, RATE)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_truncated_ogg(tmp_path, subtype):
    """libsndfile reads the pages before; what may follow the last one is no matter."""
    path, noise = tmp_path / "x.ogg", np.random.default_rng(0).normal(0, 0.1, 5 * RATE)
    soundfile.write(path, noise, RATE, format="OGG", subtype=subtype)
    whole = path.read_bytes()
    length = len(read_whole(str(path), RATE))
    for cut in (len(whole) - 1, len(whole) // 2, whole.rfind(b"OggS") + 9):
        path.write_bytes(whole[:cut])
        for read in (read_header, lambda path: read_crop(path, 0.0, 100, RATE)):
            with pytest.raises(AudioError, match="is truncated: its last page is not whole"):
                read(str(path))
    path.write_bytes(whole + b"TAG" + bytes(125))
    assert len(read_whole(str(path), RATE)) == length


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_recordings_joined_in_one_ogg(tmp_path, subtype):
    """As Ogg allows; libsndfile reads the first."""
    for i in range(2):
        noise = np.random.default_rng(i).normal(0, 0.1, RATE)
        soundfile.write(tmp_path / f"{i}.ogg", noise, RATE, format="OGG", subtype=subtype)
    both = b"".join((tmp_path / f"{i}.ogg").read_bytes() for i in range(2))
    (tmp_path / "both.ogg").write_bytes(both)
    with pytest.raises(AudioError, match="holds one recording after another: join them"):
        read_whole(str(tmp_path / "both.ogg"), RATE)


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


@needs_ffmpeg
def test_m4a_through_ffmpeg(tmp_path):
    time = np.arange(2 * RATE) / RATE
    soundfile.write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 300 * time), RATE)
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "x.wav", "-movflags", "+faststart"]
    subprocess.run([*command, tmp_path / "x.m4a"], check=True)
    assert read_header(str(tmp_path / "x.m4a")).seconds == pytest.approx(2, abs=0.1)
    crop = read_crop(str(tmp_path / "x.m4a"), 0.5, RATE, RATE)
    assert crop.shape == (RATE,)
    assert np.sqrt(np.mean(crop.astype(float) ** 2)) == pytest.approx(11_585, abs=2000)
    whole = read_whole(str(tmp_path / "x.m4a"), RATE)
    assert len(whole) == pytest.approx(2 * RATE, abs=0.1 * RATE)
    assert np.sqrt(np.mean(whole.astype(float) ** 2)) == pytest.approx(11_585, abs=2000)
    (tmp_path / "cut.m4a").write_bytes((tmp_path / "x.m4a").read_bytes()[:-4000])
    with pytest.raises(AudioError, match="cut.m4a cannot be decoded"):
        read_whole(str(tmp_path / "cut.m4a"), RATE)
    (tmp_path / "y.m4a").write_bytes(b"not audio")
    with pytest.raises(AudioError, match="y.m4a"):
        read_header(str(tmp_path / "y.m4a"))


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.m4a"])
def test_only_files_are_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    os.symlink("/dev/zero", tmp_path / f"zero-{name}")
    for read in READERS:
        for path in (tmp_path / name, tmp_path / f"zero-{name}"):
            with pytest.raises(AudioError, match="is a pipe, a socket or a device, and no file"):
                read(str(path))


def test_raw_samples_are_named(tmp_path):
    (tmp_path / "x.RAW").write_bytes(bytes(32_000))
    for read in READERS:
        with pytest.raises(AudioError, match="x.RAW is raw, and so says neither its rate nor its"):
            read(str(tmp_path / "x.RAW"))


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1:9/x.m4a", "concat:a.m4a|b.m4a", "subfile,,start,0,end,9,,:a.m4a",
             "data:audio/mp4;base64,AAAA.m4a", "pipe:0.m4a", "-x.m4a", "http://127.0.0.1:9/x.wav"],
)  # fmt: skip
def test_a_name_is_that_of_a_file(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: pytest.fail("started"))
    for read in READERS:
        with pytest.raises(AudioError, match="does not exist"):
            read(name)


@needs_ffmpeg
def test_ffmpeg_opens_no_other_file(tmp_path, monkeypatch):
    """Names that are protocols elsewhere are files here, and playlists are no audio."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("x.wav", 0.1 * np.sin(np.arange(RATE)), RATE)
    for name in ("other.m4a", "other.ts"):
        subprocess.run(["ffmpeg", "-v", "error", "-i", "x.wav", name], check=True)
    shutil.copy("other.m4a", "concat:other.m4a")
    assert len(read_whole("concat:other.m4a", RATE)) == pytest.approx(RATE, abs=0.1 * RATE)
    (tmp_path / "list.m4a").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/other.ts\n#EXT-X-ENDLIST\n"
    )
    for read in (read_header, lambda path: read_whole(path, RATE)):
        with pytest.raises(AudioError, match="list.m4a cannot be decoded: "):
            read("list.m4a")


def edited(path, at, value):
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("rate", [0, 1, 100, 999, 768_001, 2**31 - 1])
def test_rates_that_speech_does_not_have(tmp_path, rate):
    soundfile.write(tmp_path / "x.wav", np.zeros(4000), RATE)
    path = edited(tmp_path / "x.wav", 24, rate.to_bytes(4, "little"))
    for read in READERS:
        with pytest.raises(AudioError, match="x.wav (states .* hertz|is no audio|cannot be decod)"):
            read(path)


def test_more_channels_than_anybody_records(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros((100, 1000)), RATE)
    for read in READERS:
        with pytest.raises(AudioError, match="states 1000 channels, more than 128"):
            read(str(tmp_path / "x.wav"))


@pytest.mark.parametrize("samples, said", [(2**36 - 1, "hours"), (2**30, "truncated|decoded")])
def test_nothing_is_allocated_for_samples_that_a_header_claims(tmp_path, samples, said):
    """36 bits of FLAC's first block count the samples."""
    soundfile.write(tmp_path / "x.flac", np.zeros(RATE), RATE)
    first = (tmp_path / "x.flac").read_bytes()[21] & 0xF0
    stated = bytes([first | samples >> 32]) + (samples & 0xFFFFFFFF).to_bytes(4, "big")
    path = edited(tmp_path / "x.flac", 21, stated)
    tracemalloc.start()
    with pytest.raises(AudioError, match=f"x.flac .*({said})"):
        read_whole(path, RATE)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 5 * 2 * audio.BLOCK


def test_long_files_are_read_block_by_block(tmp_path, monkeypatch):
    wave = np.arange(1000, dtype=np.int16).reshape(500, 2)
    soundfile.write(tmp_path / "x.wav", wave, RATE)
    whole = read_whole(str(tmp_path / "x.wav"), RATE)
    for block in (999, 1000, 64):
        monkeypatch.setattr(audio, "BLOCK", block)
        np.testing.assert_array_equal(read_whole(str(tmp_path / "x.wav"), RATE), whole)
        crop = read_crop(str(tmp_path / "x.wav"), 0.5, 100, RATE)
        np.testing.assert_array_equal(crop, whole[200:300])


def test_a_wav_of_chunks_alone(tmp_path):
    chunks = b"LIST\0\0\0\0" * 10_000
    (tmp_path / "x.wav").write_bytes(b"RIFF" + len(chunks).to_bytes(4, "little") + b"WAVE" + chunks)
    with pytest.raises(AudioError, match="has 1000 chunks and no samples"):
        read_header(str(tmp_path / "x.wav"))


def test_no_output_takes_the_place_of_speech():
    assert audio.EXTENSIONS | {audio.records.EXTENSION} == set(OF_SPEECH)


def test_a_flac_that_was_piped_does_not_say_how_long_it_is(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(9000), 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    for read in (read_header, lambda path: read_crop(path, 0, 100, 16_000)):
        with pytest.raises(AudioError, match="does not say how long it is: write it to a file"):
            read(str(path))


@pytest.mark.parametrize("content", [b"", bytes(5000)])
def test_what_is_no_mp3(tmp_path, content):
    (tmp_path / "a.mp3").write_bytes(content)
    with pytest.raises(AudioError, match="it is no mp3$"):
        read_header(str(tmp_path / "a.mp3"))

"""Faults of reading that pass leave crops as they are, and those that last are named; what is
broken is said to be so at once."""

import errno
import io
import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from support import RATE, write_tone

from chns_jax.corpus import audio, records, retry, storage
from chns_jax.corpus.audio import AudioError, read_crop, read_header, read_whole
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.reader import Reader
from chns_jax.corpus.retry import ReadError

PASSING = [errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT]


@pytest.fixture
def slept(monkeypatch):
    """The pauses that would have been made."""
    pauses = []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    return pauses


def failing(function, error, times):
    """`function` that raises `error` the first `times` times; (it, how often it was called)."""
    calls = []

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) <= times:
            raise error
        return function(*arguments, **options)

    return call, calls


@pytest.mark.parametrize("number", PASSING)
def test_a_fault_that_passes_changes_nothing(slept, tmp_path, monkeypatch, number):
    path = str(tmp_path / "x.wav")
    write_tone(tmp_path / "x.wav", 1.0, hertz=200)
    expected = read_crop(path, 0.5, 4000, RATE)
    check, calls = failing(audio._check_length, OSError(number, os.strerror(number)), 2)
    monkeypatch.setattr(audio, "_check_length", check)
    np.testing.assert_array_equal(read_crop(path, 0.5, 4000, RATE), expected)
    assert slept == list(retry.PAUSES[:2]) and len(calls) == 3


@pytest.mark.parametrize("fault", [ConnectionResetError("reset"), TimeoutError("slow")])
@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.m4a"])
def test_a_fault_that_lasts_is_no_broken_file(slept, tmp_path, monkeypatch, name, fault):
    path = str(tmp_path / name)
    write_tone(tmp_path / "x.wav", 1.0, hertz=200)
    if name != "x.wav":
        soundfile.write(tmp_path / "x.flac", *soundfile.read(tmp_path / "x.wav"))
        shutil.copy(tmp_path / "x.flac", path) if name == "x.m4a" else None

    def refuse(*arguments, **options):
        raise fault

    monkeypatch.setattr(audio, "_of_file", refuse)
    monkeypatch.setattr(audio.subprocess, "run", refuse)
    for read in (read_header, lambda path: read_crop(path, 0.0, 100, RATE)):
        slept.clear()
        with pytest.raises(ReadError, match=f"^{path} cannot be read.*{fault}.*same command"):
            read(path)
        assert slept == list(retry.PAUSES) and 30 <= sum(slept) <= 60


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg", "x.mp3"])
def test_a_fault_that_libsndfile_hides(slept, tmp_path, monkeypatch, name):
    """It goes on with what it has, be that fewer samples or others."""
    path = str(tmp_path / name)
    soundfile.write(path, np.sin(np.arange(4 * RATE)) / 2, RATE)
    expected, header = read_crop(path, 0.5, 4000, RATE), read_header(path)
    reads, left, readinto = [], [], io.FileIO.readinto

    class Faulty(io.FileIO):
        def readinto(self, buffer):
            reads.append(len(buffer))
            if len(left) and not left.pop():
                raise OSError(errno.EIO, "Input/output error")
            return readinto(self, buffer)

    class Watched(audio._Watched, Faulty):
        """Whose `super` is the faulty one."""

    monkeypatch.setattr(audio, "_Watched", Watched)
    np.testing.assert_array_equal(read_crop(path, 0.5, 4000, RATE), expected)
    for i in range(min(len(reads), 20)):  # the fault is at each read in turn
        left[:] = [0, *[1] * i]
        slept.clear()
        np.testing.assert_array_equal(read_crop(path, 0.5, 4000, RATE), expected)
        assert not left and slept == [retry.PAUSES[0]]
    left[:] = [0]
    assert read_header(path) == header


def test_ffmpeg_is_asked_again(slept, tmp_path, monkeypatch):
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg is on the PATH")
    write_tone(tmp_path / "x.wav", 1.0, hertz=200)
    path = str(tmp_path / "x.m4a")
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "x.wav", path], check=True)
    expected, run, calls = read_whole(path, RATE), subprocess.run, []

    def fail_first(*arguments, **options):
        calls.append(arguments)
        done = run(*arguments, **options)
        done.returncode = int(len(calls) == 1)
        return done

    monkeypatch.setattr(audio.subprocess, "run", fail_first)
    np.testing.assert_array_equal(read_whole(path, RATE), expected)
    assert len(calls) == 2 and slept == []


@pytest.mark.parametrize(
    "content", [b"no audio", b"", b"RIFF????WAVE", b"fLaC\0\0\0"], ids=range(4)
)
def test_a_broken_file_is_broken_at_once(slept, tmp_path, content):
    for name in ("x.wav", "x.flac", *(["x.m4a"] if content == b"no audio" else [])):
        (tmp_path / name).write_bytes(content)
        for read in (read_header, lambda path: read_crop(path, 0.0, 100, RATE)):
            with pytest.raises(AudioError):
                read(str(tmp_path / name))
    assert slept == []


def test_a_bucket_that_is_busy(slept, monkeypatch):
    """Records and files of a URL: file systems raise what they like."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shard.array_record", np.arange(400, dtype="<i2").tobytes())
    monkeypatch.setattr(records, "_in_file", lambda byte: byte)
    path = f"memory://shard.array_record:0+800@{RATE}"
    expected = read_crop(path, 0.5, 100, RATE)
    for error in (RuntimeError("503 slow down"), fsspec.exceptions.FSTimeoutError(), OSError("x")):
        cat, calls = failing(type(memory).cat_file, error, 3)
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), "cat_file", lambda *a, **o: cat(*a, **o))  # noqa: B023
            np.testing.assert_array_equal(read_crop(path, 0.5, 100, RATE), expected)
        assert len(calls) == 4
    slept.clear()
    memory.rm_file("/shard.array_record")
    with pytest.raises(AudioError, match="does not exist"):
        read_crop(path, 0.5, 100, RATE)
    assert slept == []


def test_a_removed_file_is_replaced_and_a_vanished_folder_is_not(slept, tmp_path, monkeypatch):
    """What was mounted somewhere else comes back as it was."""
    root, away = tmp_path / "root/s", tmp_path / "away"
    for i in range(3):
        write_tone(root / f"{i}.wav", 0.5, hertz=100 + 50 * i)
    reader = Reader(open_corpus(tmp_path / "root", tmp_path), RATE, 1)
    expected = reader.random_crop(0, np.random.default_rng(0), 800)
    root.rename(away)
    root.mkdir()  # where it is mounted
    with pytest.raises(ReadError, match="s/0.wav cannot be read.*folder is gone or empty"):
        reader.random_crop(0, np.random.default_rng(0), 800)
    assert slept == list(retry.PAUSES)
    root.rmdir()
    monkeypatch.setattr(retry.time, "sleep", lambda pause: root.is_dir() or away.rename(root))
    np.testing.assert_array_equal(reader.random_crop(0, np.random.default_rng(0), 800), expected)
    assert not reader.skipped
    (root / "0.wav").unlink()
    slept.clear()
    reader.random_crop(0, np.random.default_rng(0), 800)
    assert list(reader.skipped) == [str(root / "0.wav")] and slept == []


def test_a_local_file_that_is_read_by_ranges(slept, tmp_path):
    """A shard that ends too early is broken, not busy."""
    (tmp_path / "x.array_record").write_bytes(bytes(1000))
    assert storage.read(str(tmp_path / "x.array_record"), 990) == bytes(10)
    with pytest.raises(AudioError, match="ends .* too early"):
        read_crop(f"{tmp_path}/x.array_record:0+80000@{RATE}", 0.0, 30_000, RATE)
    assert slept == []

"""The command, run as a user runs it."""

import json
import signal
import time

import numpy as np
import pytest
import soundfile
from support import write_tone

from chns_jax import prepare
from chns_jax.common.errors import UserError


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Eight minutes in 16 shards of a megabyte, which one thread takes a second to resample."""
    root, rng = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    for speaker in range(12):
        (root / f"s{speaker:02}").mkdir()
        for utterance in range(2):
            noise = rng.normal(0, 0.1, 20 * 44_100)
            soundfile.write(root / f"s{speaker:02}" / f"{utterance}.flac", noise, 44_100)
    return root


def finish(process, status=0):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert "Traceback" not in errors, errors
    return errors


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def complete(out):
    return sorted(path.name for path in out.glob("shard-*.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["flac", pytest.param("pcm16", marks=pytest.mark.long)])
def test_killed_and_started_again_ends_with_the_same_bytes(program, speech, tmp_path, format):
    arguments = ["--shard_mb", 1, "--format", format, "--cache", tmp_path / "cache"]
    finish(program("prepare", speech, tmp_path / "whole", *arguments))
    expected = contents(tmp_path / "whole")
    assert len(expected) == 16 and "index.npz" in expected
    out = tmp_path / "out"
    for shards in (1, 2, 3):
        process = program("prepare", speech, out, *arguments, "--threads", 1)
        started = time.monotonic()
        while len(complete(out)) < shards:
            assert process.poll() is None and time.monotonic() - started < 60
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (out / "index.npz").exists()
    unreadable, changed, *whole = sorted(out.glob("shard-*.npz"))
    unreadable.write_bytes(unreadable.read_bytes()[:500])
    with open(changed.with_suffix(".array_record"), "r+b") as file:
        file.seek(70_000)
        file.write(b"flip")
    times = {path: path.with_suffix(".array_record").stat().st_mtime_ns for path in whole}
    finish(program("prepare", speech, out, *arguments))
    assert contents(out) == expected
    assert times == {p: p.with_suffix(".array_record").stat().st_mtime_ns for p in times}


def test_a_complete_folder_is_verified(command, tones, tmp_path):
    arguments = [tones, tmp_path / "out", "--cache", tmp_path / "cache"]
    _, said = command("prepare", *arguments)
    assert "holds 48 utterances of 12 speakers" in said
    before = contents(tmp_path / "out")
    for again in (arguments, [tmp_path / "out", "--verify"]):
        _, said = command("prepare", *again)
        assert "is complete: 1 shards of 48 utterances" in said
    assert contents(tmp_path / "out") == before
    shard = tmp_path / "out" / "shard-00000-of-00001.array_record"
    content = bytearray(shard.read_bytes())
    content[70_000] ^= 4
    for spoilt, message in [(content, "was changed"), (content[:-9], "bytes and was written with")]:
        shard.write_bytes(spoilt)
        for again in (arguments, [tmp_path / "out", "--verify"]):
            _, errors = command("prepare", *again, status=2)
            (sentence,) = [line for line in errors.splitlines() if line.startswith("error")]
            assert str(shard) in sentence and message in sentence


@pytest.mark.slow
def test_a_disk_that_fills_up(program, speech, tmp_path):
    arguments = [speech, tmp_path / "out", "--shard_mb", 3, "--cache", tmp_path / "cache"]
    errors = finish(program("prepare", *arguments, largest_file_kb=500), 2)
    assert "error: " in errors and "free some space" in errors
    assert not list((tmp_path / "out").iterdir())
    finish(program("prepare", *arguments))


@pytest.mark.long
@pytest.mark.parametrize("format", ["pcm16", "flac"])
def test_training_from_shards_is_training_from_the_folder(command, tiny, tones, tmp_path, format):
    """In seven steps, with a refresh and a validation."""
    tiny = [*tiny, "--training.steps", 7]
    command("train", *tiny)
    expected = json.loads((tmp_path / "run" / "summary.json").read_text())
    shards, out = tmp_path / format, tmp_path / f"run_{format}"
    options = ["--format", format, "--shard_mb", 1, "--cache", tmp_path / "cache"]
    command("prepare", tones, shards, *options)
    command("train", *tiny, "--data.root", shards, "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["parameters_sha256"] == expected["parameters_sha256"]
    assert summary["eer"] == expected["eer"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{tmp}/gone", "{tmp}/out"], "gone does not exist"),
        (["{tones}/s00/r0/u0.flac", "{tmp}/out"], "is not a folder"),
        (["{tones}", "{tones}/out"], "lie within each other"),
        (["{tones}", "{tones}"], "lie within each other"),
        (["{tones}/s00", "{tones}"], "lie within each other"),
        (["{tones}", "{tmp}/file"], "file is a file"),
        (["{tones}", "{tmp}/file/out"], "is a file"),
        (["{tones}", "{tmp}/other"], "other holds notes.txt, which is no part of"),
        (["{tones}", "gs://bucket/out"], "is a URL: give a folder"),
        (["{tones}"], "give two folders"),
        (["{tones}", "{tmp}/out", "--verify"], "or one with --verify"),
        (["{tones}", "--verify"], "has no index.npz"),
        (["{tmp}/gone", "--verify"], "has no index.npz"),
        (["{tones}", "{tmp}/out", "--shard_mb", "0"], "shard_mb"),
        (["{tones}", "{tmp}/out", "--format", "mp3"], "format"),
        (["{tones}", "{tmp}/out", "--sample_rate", "88200"], "at most 65535"),
        (["{tones}", "{tmp}/out", "--sample_rate", "1"], "none of speech"),
    ],
)
def test_mistakes(tones, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    arguments = [argument.format(tmp=tmp_path, tones=tones) for argument in arguments]
    with pytest.raises(UserError, match=message) as caught:
        prepare.main([*arguments, "--cache", str(tmp_path / "cache")])
    assert "\n" not in str(caught.value)
    assert not (tones / "out").exists() and not list(tmp_path.glob("out/*.npz"))


def test_other_options_or_files_need_another_folder(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    for name in ("a/0.wav", "a/1.wav", "b/0.wav"):
        write_tone(root / name, 0.2, hertz=100)
    arguments = [str(root), str(out), "--cache", str(tmp_path / "cache")]
    prepare.main(arguments)
    for other in (["--format", "pcm16"], ["--sample_rate", "8000"]):
        with pytest.raises(UserError, match="other files or with other options"):
            prepare.main([*arguments, *other])
    write_tone(root / "b/1.wav", 0.2, hertz=100)
    with pytest.raises(UserError, match="other files or with other options"):
        prepare.main(arguments)

"""A week of a run, in minutes: kills, signals, full disks, changing files and faults of reading."""

import errno
import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import TINY, finish, wait_for, write_tone

from chns_jax.corpus import audio, retry
from chns_jax.sampling import pipeline

pytestmark = [pytest.mark.slow, pytest.mark.long]

KILLS = int(os.environ.get("CHNS_KILLS", "8"))  # CHNS_KILLS=40 takes a quarter of an hour
STEPS = 75 * KILLS  # of which each start makes some tens
OFTEN = ["--training.steps", STEPS, "--training.checkpoint_every", 10, "--validation.every", 200]
OFTEN += ["--sampler.refresh_every", 15]
AHEAD = ["--sampler.refresh_ahead", 5]


def digest(run):
    return json.loads((run / "summary.json").read_text())["parameters_sha256"]


@pytest.fixture(scope="module")
def arguments(tones, tmp_path_factory):
    return [*TINY, "--data.root", tones, "--data.cache", tmp_path_factory.mktemp("cache"), *OFTEN]


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    program, arguments, tmp_path
):
    """Of the two runs, one refreshes beside training. Half of the kills come within half a second
    of a save or a refresh, a quarter soon after a step, and a quarter at any time of a start."""
    draws = np.random.default_rng().random((2, KILLS // 2))

    def kill(out, start, pause, kind):
        before, process = names(out), start()

        def appeared():
            return any(name.startswith(kind) for name in names(out) - before)

        if kind:
            wait_for(process, appeared, f"something new in {kind}")
            time.sleep(pause / 2)
        else:
            time.sleep(8 * pause)
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()

    def soak(i, options):
        out, undisturbed = tmp_path / f"run{i}", tmp_path / f"undisturbed{i}"
        finish(program("train", *arguments, *options, "--out", undisturbed))

        def start():
            return program("train", *arguments, *options, "--out", out)

        kinds = ["checkpoints/", "tables/", "metrics.jsonl", None]
        for j, pause in enumerate(draws[i]):
            kill(out, start, pause, kinds[j % 4])
            assert not (out / "summary.json").exists(), "it ended before all kills: more STEPS"
        stop_while_saving(out, start)
        finish(start())
        assert digest(out) == digest(undisturbed)
        tables = {path.name: path.read_bytes() for path in (undisturbed / "tables").iterdir()}
        assert {path.name: path.read_bytes() for path in (out / "tables").iterdir()} == tables

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(soak, range(2), [[], AHEAD]))


def names(out):
    """What is in a run folder; the log with its length."""
    found = set()
    for kind in ("checkpoints", "tables"):
        if (out / kind).is_dir():
            found |= {f"{kind}/{name}" for name in os.listdir(out / kind)}
    log = out / "metrics.jsonl"
    return found | ({f"metrics.jsonl {log.stat().st_size}"} if log.exists() else set())


def stop_while_saving(out, start):
    """SIGTERM while a checkpoint is written."""
    process = start()
    wait_for(process, lambda: list(out.glob("checkpoints/*.orbax-checkpoint-tmp")), "a save")
    process.send_signal(signal.SIGTERM)
    assert "which is saved" in finish(process, 128 + signal.SIGTERM)[1]


@pytest.fixture
def disk(tmp_path):
    """disk(kilobytes): a folder on a disk of that size, which a second call makes larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kilobytes):
        again = ["-o", "remount"] if os.path.ismount(folder) else []
        command = ["mount", *again, "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a tmpfs cannot be mounted here")
        return folder

    yield size
    subprocess.run(["umount", folder], capture_output=True, check=False)


def says_that_it_is_full(process):
    """Whether a program says so, in one sentence, the last; else it must be done."""
    errors = process.communicate(timeout=300)[1]
    if process.returncode == 0:
        return False
    said = errors.replace("\r", "\n").strip().splitlines()
    assert process.returncode == 2, errors
    assert said[-1].startswith("error: ") and " space" in said[-1], errors
    assert not [line for line in said if re.match("  File|[A-Z]", line)], errors
    return True


def test_a_disk_that_is_full_wherever_a_run_writes(program, command, arguments, disk, tmp_path):
    """Config, tables, logs, checkpoints, picture and summary: each is too much once."""
    options = [*arguments, "--training.steps", 24, "--validation.every", 12]
    command("train", *options, "--out", tmp_path / "run")
    used = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    out, full = disk(8) / "run", []
    for share in (0.01, 0.3, 0.7, 1.0, 1.4, 2.2):
        disk(max(8, int(share * used / 1024)))
        full.append(says_that_it_is_full(program("train", *options, "--out", out)))
        if not full[-1]:
            break
    disk(10_000)
    finish(program("train", *options, "--out", out))
    assert sum(full) >= 4 and digest(out) == digest(tmp_path / "run")


def test_a_disk_that_is_full_while_shards_are_written(program, command, tones, disk, tmp_path):
    options = ["--shard_mb", 1, "--cache", tmp_path]
    command("prepare", tones, tmp_path / "shards", *options)
    out = disk(20) / "shards"
    for kilobytes in (20, 200, 500):
        disk(kilobytes)
        assert says_that_it_is_full(program("prepare", tones, out, *options))
    disk(20_000)
    finish(program("prepare", tones, out, *options))
    for path in (tmp_path / "shards").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_files_that_change_while_a_run_reads_them(command, tmp_path, monkeypatch):
    """Removed, truncated, and replaced by something else: each is skipped and listed."""
    root, plan = tmp_path / "root", pipeline.plan
    for speaker in range(10):
        for utterance in range(40):
            write_tone(root / f"s{speaker}/{utterance}.wav", 0.5, hertz=100 + 20 * speaker)
    changed = [root / f"s{i}/7.wav" for i in range(3)]

    def change(seed, step, *of_what):
        if step == 20 and changed[0].exists():
            changed[0].unlink()
            os.truncate(changed[1], 5000)
            changed[2].write_bytes(b"no audio")
            write_tone(root / "s3/7.wav", 0.7, hertz=900)
        return plan(seed, step, *of_what)

    monkeypatch.setattr(pipeline, "plan", change)
    monkeypatch.setattr(retry, "PAUSES", ())
    options = [*TINY, "--data.root", root, "--data.cache", tmp_path, "--data.held_out", 0]
    options += ["--training.steps", 300, "--training.log_every", 20, "--out", tmp_path / "run"]
    options += ["--sampler.refresh_every", 100]  # of crops of all files
    command("train", *options, "--training.checkpoint_every", 100)
    listed = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert {line.partition("\t")[0] for line in listed} == set(map(str, changed))


def test_faults_in_one_read_of_two_hundred(command, tones, tmp_path, monkeypatch):
    """Opening and reading fail now and then, as of a busy server; pauses are as they are."""
    options = [*TINY, "--data.root", tones, "--data.cache", tmp_path, "--training.steps", 100]
    options += ["--sampler.refresh_every", 20, "--training.checkpoint_every", 25]
    command("train", *options, "--out", tmp_path / "undisturbed")
    rng, met = np.random.default_rng(), []
    numbers = [errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT]

    class Faulty(audio._Watched):
        def __init__(self, path):
            fail()
            super().__init__(path)

        def readinto(self, buffer):
            try:
                fail()
            except OSError as error:
                self.fault = error
                return 0
            return super().readinto(buffer)

    def fail():
        if rng.random() < 5e-3:
            met.append(number := int(rng.choice(numbers)))
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(audio, "_Watched", Faulty)
    command("train", *options, "--out", tmp_path / "run")
    assert met and digest(tmp_path / "run") == digest(tmp_path / "undisturbed")
    assert not (tmp_path / "run" / "skipped.txt").exists()

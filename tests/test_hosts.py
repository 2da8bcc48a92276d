"""Two hosts, of two devices each, train what one process with four devices trains; and what hosts
say to each other, by two that train nothing."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import TINY, finish, step_of, wait_for

from chns_jax import train
from chns_jax.training.logs import records

pytestmark = pytest.mark.slow

LOST = "another host has stopped"


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture
def start(program, monkeypatch):
    """start(arguments): the processes of two hosts, in `folders`, the second with arguments of its
    own where it is `mistaken`; or of host 0 alone. What is left of them is killed at the end."""
    started = []

    def start_hosts(arguments, mistaken=None, alone=False, folders=(None, None)):
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
        where = ["--hosts.coordinator", f"localhost:{free_port()}", "--hosts.count", 2]
        where += ["--hosts.heartbeat", 10, "--hosts.index"]
        made = [program("train", *arguments, *where, 0, folder=folders[0])]
        if not alone:
            made.append(program("train", *(mistaken or arguments), *where, 1, folder=folders[1]))
        started.extend(made)
        return made

    yield start_hosts
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def pair(made_once):
    """What two hosts saw (host.py), the second of which gets SIGTERM, and how they ended: its
    dictionary, exit status and standard error of each."""
    folder = made_once("pair", two_hosts)
    ended = [json.loads((folder / f"{i}.ended").read_text()) for i in range(2)]
    seen = [json.loads((folder / f"{i}.json").read_text()) for i in range(2)]
    return [(one, *how) for one, how in zip(seen, ended, strict=True)]


def two_hosts(folder):
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("host.py"))]
    pipe, variables = subprocess.PIPE, {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    processes = [
        subprocess.Popen(
            [*command, str(i), str(port), str(folder)], env=variables, stderr=pipe, text=True
        )
        for i in range(2)
    ]
    try:
        for i, process in enumerate(processes):
            wait_for(process, (folder / f"{i}.ready").exists, "it was ready")
        processes[1].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=300)[1] for process in reversed(processes)][::-1]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for i, (process, said) in enumerate(zip(processes, errors, strict=True)):
        (folder / f"{i}.ended").write_text(json.dumps([process.returncode, said]))


def test_a_signal_to_one_host_stops_both_after_the_same_step(pair):
    (first, *_), (second, *_) = pair
    assert first["stop"] == second["stop"] == signal.SIGTERM
    assert first["step"] == second["step"]


def test_a_host_with_other_files_says_so(pair):
    (first, *_), (second, *_) = pair
    assert first["wrong"] is None
    assert "host 1 has other utterances or trials than host 0" in second["wrong"]


def test_a_mistake_on_one_host_is_said_there_and_the_other_loses_it(pair):
    (_, first_status, first_said), (_, second_status, second_said) = pair
    assert (first_status, second_status) == (2, 2)
    assert "error: differs in training.seed" in second_said
    assert_said_lost(first_said)


@pytest.fixture(scope="module")
def alone(tones, tmp_path_factory):
    """A run of one process with four devices: its folder and its arguments, without --out."""
    folder = tmp_path_factory.mktemp("alone")
    arguments = [*TINY, "--data.root", tones, "--data.cache", folder / "cache"]
    # A higher rate makes more of the order of sums.
    arguments += ["--training.devices", 4, "--optimizer.learning_rate", 1e-3]
    arguments += ["--training.steps", 42, "--validation.every", 21]  # more than a stop can be late
    train.main([str(argument) for argument in [*arguments, "--out", folder / "run"]])
    return folder / "run", arguments


def assert_same_run(out, run):
    """The same batches and clusters; metrics but for the order in which hosts add up."""

    def lines(folder):  # where a run stopped, a step may come before the round that begins after it
        return sorted(records(folder / "metrics.jsonl"), key=lambda r: (r["step"], len(r)))

    mine, theirs = lines(out), lines(run)
    assert [line.keys() for line in mine] == [line.keys() for line in theirs]
    for one, other in zip(mine, theirs, strict=True):
        for key in one.keys() - {"utterances_per_second", "data_wait_seconds"}:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-5, atol=1e-6, err_msg=key)
    tables = sorted(path.name for path in (run / "tables").iterdir())
    assert sorted(path.name for path in (out / "tables").iterdir()) == tables
    for name in tables:
        with np.load(out / "tables" / name) as one, np.load(run / "tables" / name) as other:
            np.testing.assert_array_equal(one["cluster"], other["cluster"])


@pytest.mark.long
def test_two_hosts_that_are_killed_train_what_one_trains(start, alone, tmp_path):
    """SIGTERM to one, then SIGKILL of the second, then of the first; each ends both, and only the
    first writes."""
    run, arguments = alone
    out = tmp_path / "run"
    arguments = [*arguments, "--out", out]

    def start_and_train_further():  # a stop may come steps late: no number of them is safe
        before = step_of(out)
        first, second = start(arguments)
        wait_for(first, lambda: step_of(out) > before, f"a step after {before}", 300)
        return first, second

    first, second = start_and_train_further()
    second.send_signal(signal.SIGTERM)
    (_, said), _ = (finish(process, 128 + signal.SIGTERM) for process in (first, second))
    assert "training on 9 speakers" in said and "which is saved" in said

    first, second = start_and_train_further()
    second.kill()
    assert "going on from step" in assert_lost(first)

    first, second = start_and_train_further()
    first.kill()
    assert_lost(second)
    assert not (out / "summary.json").exists()

    _, (_, silent) = (finish(process) for process in start(arguments))
    assert not [line for line in silent.splitlines() if not line.startswith("[Gloo]")]
    assert_same_run(out, run)
    assert {path.name for path in out.iterdir()} == {path.name for path in run.iterdir()}
    assert len(list((out / "tensorboard").iterdir())) == 4


def assert_lost(process):
    """It ends for want of the other, and says so in one sentence, beside a stack trace of JAX's own
    where its heartbeat notices too. Returns what it said."""
    try:
        _, errors = process.communicate(timeout=300)  # of a busy machine
    except subprocess.TimeoutExpired:
        threads = Path(f"/proc/{process.pid}/task").iterdir()
        at = [(thread / "wchan").read_text() for thread in threads]
        process.kill()
        pytest.fail(f"does not end: {process.communicate()[1]}\nwhere its threads wait: {at}")
    assert process.returncode == 2, errors
    assert_said_lost(errors)
    return errors


def assert_said_lost(errors):
    """Once, and if anything follows it, it is what JAX has to say."""
    lines = errors.rstrip().splitlines()
    said = [i for i, line in enumerate(lines) if f"error: {LOST}" in line]
    assert len(said) == 1, errors
    after = lines[said[0] + 1 :]
    assert not after or re.match(r"[EFIW]\d{4} ", after[0]), errors


ABORTED = """
import ctypes, os, signal, sys, threading, time
from chns_jax.devices import processes

processes.explain_aborts()
libc = ctypes.CDLL(None)
libc.signal(signal.SIGALRM, ctypes.cast(libc.abort, ctypes.c_void_p))  # without Python's lock
libc.alarm(1)
if sys.argv[1] == "held":
    threading.Thread(target=ctypes.PyDLL(None).sleep, args=(600,), daemon=True).start()
time.sleep(600)
"""


@pytest.mark.long
@pytest.mark.parametrize("lock, status", [("free", 2), ("held", -signal.SIGABRT)])
def test_an_abort_ends_a_host_whatever_its_threads_do(lock, status):
    """With a sentence, where a thread of Python can still say one."""
    command = [sys.executable, "-c", ABORTED, lock]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == status
    assert status != 2 or f"error: {LOST}" in done.stderr.splitlines()[-1]


def test_a_host_that_never_comes(start, tones, tmp_path):
    keys = ["--data.root", tones, "--out", tmp_path / "run", "--hosts.timeout", 2]
    (process,) = start([*TINY, *keys], alone=True)
    _, errors = finish(process, 2)
    assert errors.startswith("error: the other hosts were not there within hosts.timeout 2 seconds")
    assert len(errors.splitlines()) == 1


@pytest.mark.long
def test_a_mistake_on_one_host_ends_both(start, alone, tmp_path):
    """Another seed, which only that host can notice; the first one loses it."""
    _, arguments = alone
    arguments = [*arguments, "--out", tmp_path / "run", "--training.seed"]
    processes = start([*arguments, 0], mistaken=[*arguments, 5])
    _, errors = finish(processes[1], 2)
    assert "differs in training.seed" in errors
    assert_lost(processes[0])


@pytest.mark.long
def test_hosts_with_other_files(start, alone, tones, tmp_path):
    _, arguments = alone
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        shutil.copytree(tones, folder / "speech")
    next(folders[1].rglob("*.flac")).unlink()
    arguments = [*arguments, "--out", tmp_path / "run", "--data.root", "speech"]
    processes = start(arguments, folders=folders)
    _, errors = finish(processes[1], 2)
    assert "host 1 has other utterances or trials than host 0" in errors
    assert_lost(processes[0])

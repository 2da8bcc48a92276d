import os
import signal
import subprocess
import sys

import pytest

from chns_jax.common.errors import UserError, report

# A program hears SIGINT, also where this one was begun in the background of a shell.
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"

BUSY = f"""
{HEARS}
import sys, threading, time
from chns_jax.common.errors import run

def main(argv):
    threading.Thread(target=time.sleep, args=(60,)).start()
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("kept")

run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_program_keeps_what_is_done_and_waits_for_nothing(number):
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert (output, errors) == ("kept\n", f"stopped by {number.name}\n")


def test_output_that_nobody_reads_ends_quietly():
    code = "from chns_jax.common.errors import run; run(lambda argv: print('x' * 100_000))"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 128 + signal.SIGPIPE)
    process.stderr.close()
    with open("/dev/full", "w") as full:
        short = code.replace("100_000", "9")  # all of which waits in a buffer
        done = subprocess.run([sys.executable, "-c", short], stdout=full, stderr=pipe, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: no space is left")


LOST = f"""
{HEARS}
import gc, signal, sys, time
from chns_jax.common.errors import run

def collecting(phase, info):  # what is raised here, Python discards
    gc.callbacks.remove(collecting)
    signal.raise_signal(int(sys.argv[1]))

def main(argv):
    gc.callbacks.append(collecting)
    gc.collect()
    print("discarded", flush=True)
    time.sleep(60)

run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_errors_are_discarded_ends_a_program(number):
    command = [sys.executable, "-c", LOST, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 128 + number
    assert (done.stdout, done.stderr) == ("discarded\n", f"stopped by {number.name}\n")


IMPORTING = f"""
{HEARS}
import sys
from chns_jax.common.errors import run

def main(argv):
    import slow
    print(slow.whole, flush=True)
    slow.time.sleep(60)

run(main)
"""
SLOW = """
import os, signal, sys, time
os.kill(os.getpid(), int(sys.argv[1]))
for _ in range(20):
    time.sleep(0.01)
whole = "whole"
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_is_being_imported(number, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-c", IMPORTING, str(int(number))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 128 + number
    assert (done.stdout, done.stderr) == ("whole\n", f"stopped by {number.name}\n")


def test_the_status_is_that_of_an_error_that_cannot_be_said():
    code = "from chns_jax.common.errors import run; run(lambda argv: open('/gone'))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stderr=full)
    assert done.returncode == 2


def test_a_program_whose_streams_are_closed(tmp_path):
    """It says nothing, and no file that it opens takes the place of a stream."""
    code = (
        "import os, sys; from chns_jax.common.errors import run\n"
        "def main(argv):\n"
        "    print('b', file=sys.stderr)\n"
        f"    with open({str(tmp_path / 'out')!r}, 'w') as file:\n"
        "        assert file.fileno() > 2; file.write('c')\n"
        "run(main)"
    )
    closed = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c"]
    assert subprocess.run([*closed, code]).returncode == 0
    assert (tmp_path / "out").read_text() == "c"
    # What is asked for and cannot be said is an error.
    answers = "from chns_jax.common.errors import run; run(lambda argv: print('a'))"
    assert subprocess.run([*closed, answers]).returncode == 2


def test_two_threads_that_leave_say_one_sentence():
    code = (
        "import sys, threading; from chns_jax.common.errors import UserError, leave\n"
        "one = threading.Thread(target=leave, args=(UserError('a'),), kwargs={'patience': 60})\n"
        "one.start()\n"
        "sys.stdin.readline()\n"
        "leave(UserError('b'))"
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stderr=pipe, text=True)
    assert process.stderr.readline() == "error: a\n"
    _, more = process.communicate("\n", timeout=20)
    assert (process.returncode, more) == (2, "")


def test_a_folder_that_is_gone_is_named(command, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    _, said = command("train", "--config", "a.yaml", status=2)
    assert said.startswith("error: the folder that this was started in is gone")


@pytest.mark.parametrize(
    "error, said",
    [
        (UserError("a\nb\x1b[2Jc\udcff\u202e is wrong"), r"a\nb\x1b[2Jc\udcff\u202e is wrong"),
        (MemoryError(), "there is not enough memory"),
        (OSError(24, "Too many open files"), "too many files are open: raise the limit"),
        (OSError(24, "Too many open files", "a"), "too many files are open: raise the limit"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"), "there is not enou"),
        (ValueError("RESOURCE_EXHAUSTED: write: No space left on device"), "no space is left for"),
        (ValueError("invalid truth value 'x' for environment 'JAX_X'"), "invalid truth value 'x'"),
        (RuntimeError("Could not determine home directory."), "a path begins with ~"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "a/b is a file, or below one"),
        (
            PermissionError(13, "Permission denied", "a"),
            "a cannot be used: Permission denied: give",
        ),
    ],
)
def test_what_the_system_says_is_one_sentence(error, said, capsys):
    assert report(error) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {said}") and printed.count("\n") == 1

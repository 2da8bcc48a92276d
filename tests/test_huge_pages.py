import os
import signal
import subprocess
import sys

import pytest

from chns_jax.devices import huge_pages
from chns_jax.devices.huge_pages import MODE, TUNABLE, ask_for_huge_pages


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """begun(mode, ...): with what this process would be replaced on such a machine."""

    def ask(mode, *, tunables=None, on_cpus=True, executable=sys.executable):
        (tmp_path / "enabled").write_text(mode)
        monkeypatch.setattr(huge_pages, "MODE", tmp_path / "enabled")
        monkeypatch.setattr(huge_pages, "computes_on_cpus", lambda: on_cpus)
        monkeypatch.setattr(sys, "executable", executable)
        monkeypatch.setattr(sys, "orig_argv", ["python", "-Im", "chns_jax.train", "--steps", "3"])
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if tunables is not None:
            monkeypatch.setenv("GLIBC_TUNABLES", tunables)
        calls = []
        monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
        ask_for_huge_pages()
        return calls

    return ask


def test_the_same_command_begins_again(begun):
    (call,) = begun("always [madvise] never\n")
    path, command, environment = call
    assert path == sys.executable
    assert command == [sys.executable, "-Im", "chns_jax.train", "--steps", "3"]
    assert environment == {**os.environ, "GLIBC_TUNABLES": TUNABLE}


@pytest.mark.parametrize(
    "mode, options",
    [
        ("[always] madvise never\n", {}),
        ("always madvise [never]\n", {}),
        ("always [madvise] never\n", {"tunables": ""}),
        ("always [madvise] never\n", {"tunables": "glibc.malloc.check=1"}),
        ("always [madvise] never\n", {"on_cpus": False}),
        ("always [madvise] never\n", {"executable": ""}),
    ],
)
def test_where_it_makes_no_difference_it_goes_on(begun, mode, options):
    assert not begun(mode, **options)


def test_no_command_without_such_pages_is_kept_from_its_work(begun, monkeypatch, tmp_path):
    def refused(*call):
        raise PermissionError

    begun("always [madvise] never\n")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", refused)
    ask_for_huge_pages()
    monkeypatch.setattr(huge_pages, "MODE", tmp_path / "no such file")
    ask_for_huge_pages()


begins_twice = pytest.mark.skipif(
    not MODE.exists() or "[madvise]" not in MODE.read_text(),
    reason="this kernel gives huge pages to all or to none",
)


@begins_twice
@pytest.mark.parametrize("begins", [["-m", "chns_jax.verify", "--help"], ["-m", "chns_jax"]])
def test_a_command_is_one_process_that_begins_twice(tmp_path, begins):
    """And a program that imports the package begins once."""
    said = tmp_path / "starts"
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        f"print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), file=open({str(said)!r}, 'a'))\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    variables.pop("GLIBC_TUNABLES", None)

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, *arguments], env=variables, text=True, stdout=subprocess.PIPE
        )
        output, _ = process.communicate()
        assert process.returncode == 0
        starts = said.read_text().splitlines()
        said.unlink()
        return output, starts, process.pid

    output, starts, pid = start(*begins)
    assert output.startswith("usage: ")
    assert starts == [f"{pid} None", f"{pid} {TUNABLE}"]
    _, starts, pid = start("-c", "import chns_jax")
    assert starts == [f"{pid} None"]


@begins_twice
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_the_two_ends_it_without_a_word(tmp_path, number):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "if 'GLIBC_TUNABLES' in os.environ:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "else:  # as at a terminal, not as of a job that nohup or a shell began\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    variables.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-m", "chns_jax.verify", "--help"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")

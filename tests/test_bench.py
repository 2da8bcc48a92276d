import contextlib
import io
import json
import os
import subprocess

import numpy as np
import pytest

from chns_jax import bench
from chns_jax.benchmarks import contrast, measure, start, training
from chns_jax.common.errors import UserError


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(measure, "torch_is_here", lambda: False)
    monkeypatch.setattr(training, "torch_is_here", lambda: False)


@pytest.fixture
def without_processes(monkeypatch):
    """What the rows run in processes of their own, run here."""

    def run(code, environment=None):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, {})
        return said.getvalue()

    monkeypatch.setattr(contrast, "child", run)
    monkeypatch.setattr(start, "child", run)


def test_quick_rows(without_torch, without_processes, capsys):
    bench.main(["--quick", "--json"])
    said = capsys.readouterr()
    assert "left out" in said.err
    table = json.loads(said.out)
    assert table["device"]
    assert len(table["rows"]) == 20
    for row in table["rows"]:
        assert row["unit"] and row["what"]
        if not row["what"].startswith("import"):  # which has happened here
            assert row["ours"] > 0 and (row["theirs"] is None) == (row["ratio"] is None)
        assert (row["met"] is None) == (row["target"] == "")


def test_a_child_is_a_process_of_its_own():
    assert int(measure.child("import os; print(os.getppid())")) == os.getpid()
    with pytest.raises(subprocess.CalledProcessError):
        measure.child("raise SystemExit(3)")


def test_the_table(without_torch, capsys):
    bench.main(["--quick", "--rows", "plans", "error_rates"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == bench.HEADER
    assert len(lines) == 4 + 2 + 1
    assert all(line.count("|") == bench.HEADER.count("|") for line in lines[2:])


@pytest.mark.long
@pytest.mark.slow
def test_the_rows_that_start_programs(without_torch, capsys):
    bench.main(["--quick", "--rows", "losses", "start"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == bench.HEADER
    assert len(lines) == 4 + 3 + 2
    assert all(line.count("|") == bench.HEADER.count("|") for line in lines[2:])


def test_functions_run_in_turn():
    order = []
    seconds = measure.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == list("ababab")  # the first round warms up
    assert set(seconds) == {"a", "b"} and np.isfinite(list(seconds.values())).all()


def test_targets():
    assert measure.faster("x", 1.0, "y", 2.0, 2.0).met
    assert not measure.faster("x", 1.0, "y", 1.9, 2.0).met
    assert measure.faster("x", 1.0, "y", 2.0).met is None
    assert measure.below("x", 1.4, "GB", 1.5).met
    assert not measure.below("x", 1.5, "GB", 1.5).met


def test_unknown_rows_are_named():
    with pytest.raises(UserError, match="no rows spam"):
        bench.main(["--rows", "spam"])

import json

import numpy as np
import pytest

from chns_jax import bench
from chns_jax.benchmarks import measure, training
from chns_jax.common.errors import UserError


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(measure, "torch_is_here", lambda: False)
    monkeypatch.setattr(training, "torch_is_here", lambda: False)


IN_PROCESS = [name for name in bench.ROWS if name not in ("losses", "start")]  # these start others


def test_quick_rows(without_torch, capsys):
    bench.main(["--quick", "--json", "--rows", *IN_PROCESS])
    said = capsys.readouterr()
    assert "left out" in said.err
    table = json.loads(said.out)
    assert table["device"]
    assert len(table["rows"]) == 15
    for row in table["rows"]:
        assert row["ours"] > 0 and row["unit"] and row["what"]
        assert (row["theirs"] is None) == (row["ratio"] is None)
        assert (row["met"] is None) == (row["target"] == "")


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

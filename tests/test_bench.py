import json
import os
import subprocess
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax import bench
from chns_jax import config as configs
from chns_jax.benchmarks import encoders, measure, training
from chns_jax.common.errors import UserError
from chns_jax.config import Features
from chns_jax.encoders import sums
from chns_jax.interop import torch_weights


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(measure, "why_no_torch", lambda: "no module named torch")


# What starts processes, or compiles much: how many lines each prints, with one encoder of eight.
AGAIN = {
    "ecapa": 3, "thin_resnet": 2, "redimnet2": 2, "losses": 3, "refresh": 2, "embedding": 1,
    "start": 2, "pages": 1, "loop": 5, "encoders": 2 + 3,
}  # fmt: skip


def test_quick_rows(without_torch, capsys):
    rows = [name for name in bench.ROWS if name not in AGAIN]
    bench.main(["--quick", "--json", "--rows", *rows])
    said = capsys.readouterr()
    assert "left out, as they do not import (no module named torch)" in said.err
    table = json.loads(said.out)
    assert table["device"]
    assert len(table["rows"]) == 9
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
def test_the_rows_that_start_programs(without_torch, capsys, monkeypatch):
    few = dict(list(encoders.ENCODERS.items())[:1])  # all are traced
    monkeypatch.setattr(encoders, "ENCODERS", few)
    bench.main(["--quick", "--rows", *AGAIN])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == bench.HEADER
    assert len(lines) == 4 + sum(AGAIN.values())
    assert all(line.count("|") == bench.HEADER.count("|") for line in lines[2:])


def test_what_does_not_import_is_left_out(tmp_path, monkeypatch):
    """A torchaudio of another PyTorch raises OSError where SpeechBrain imports it."""
    (tmp_path / "torch.py").write_text("print('a greeting')\n")
    broken = "raise OSError('undefined symbol: torch_call\\nand more')\n"
    (tmp_path / "speechbrain.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert measure.why_no_torch.__wrapped__() == "undefined symbol: torch_call"


def test_functions_in_a_process_of_their_own():
    with measure.in_own_process("builtins:dict", {"id": os.getpid}) as functions:
        assert os.getpid() != functions["id"]() == functions["id"]()


def test_multiply_adds_are_those_of_products_and_convolutions():
    def program(x, kernel, square):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NTC", "TIO", "NTC"), feature_group_count=4
        )
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ square), None), x, None, length=3)
        return sums.sum_of_each(x)  # on CPUs a product, which does not count

    shapes = [(2, 10, 4), (5, 1, 4), (4, 4)]
    traced = jax.make_jaxpr(program)(*(jnp.zeros(shape) for shape in shapes))
    assert encoders.products(traced.jaxpr) == 2 * 10 * 4 * 5 + 3 * 2 * 10 * 4 * 4


def test_the_encoders_of_the_cost_table_are_those_of_the_configs():
    names = "chns", "ecapa512", "ecapa1024", "thinresnet", *(f"redimnet2_b{i}" for i in range(4))
    folder = Path(__file__).parents[1] / "configs"
    for name, encoder in zip(names, encoders.ENCODERS.values(), strict=True):
        config = configs.load(["--config", str(folder / f"{name}.yaml")])
        assert config.encoder == encoder
        assert config.features == training.LOG_MEL.get(encoder.kind, Features())


@pytest.mark.long
def test_the_other_sides_redimnet2_is_wespeakers(golden):
    torch = pytest.importorskip("torch")
    from chns_jax.benchmarks.torch_models import make_encoder

    arrays = golden("redimnet2_small")
    state = {
        name.removeprefix("state."): value
        for name, value in arrays.items()
        if name.startswith("state.")
    }
    encoder = torch_weights.infer_encoder(state)
    module = make_encoder(encoder, bands=json.loads(str(arrays["config"]))["F"])
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    module.load_state_dict(tensors)  # which has all its tensors, and no other
    for x, y, train in ("x1", "y1", False), ("train_x", "train_y", True):
        with torch.no_grad():
            given = module.train(train)(torch.from_numpy(arrays[x])).numpy()
        np.testing.assert_allclose(given, arrays[y], atol=1e-5 * np.abs(arrays[y]).max())


def test_functions_run_in_turn():
    order = []
    seconds = measure.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == list("ababab")  # the first round warms up
    assert set(seconds) == {"a", "b"} and np.isfinite(list(seconds.values())).all()


def test_what_a_turn_begins_with_is_not_timed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    seconds_of_call = cycle([5.0, 1.0])  # the first and the second of a turn

    def wait():
        clock[0] += next(seconds_of_call)

    assert measure.alternate({"a": wait}, 3, untimed=1) == {"a": 1.0}
    assert clock[0] == 4 * 6.0  # a round that warms up, and three


def test_targets():
    assert measure.faster("x", 1.0, "y", 2.0, 2.0).met
    assert not measure.faster("x", 1.0, "y", 1.9, 2.0).met
    assert measure.faster("x", 1.0, "y", 2.0).met is None
    assert measure.below("x", 1.4, "GB", 1.5).met
    assert not measure.below("x", 1.5, "GB", 1.5).met


def test_unknown_rows_are_named():
    with pytest.raises(UserError, match="no rows spam"):
        bench.main(["--rows", "spam"])

"""How long a user waits: for an import, and for the first training step."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

from chns_jax.benchmarks.measure import QUICK, Row, Sizes, alternate, child, faster


def start(sizes: Sizes) -> Iterator[Row]:
    """Imports, and the first step with and without a compilation cache."""
    functions = {"package": lambda: child("import chns_jax"), "python": lambda: child("")}
    functions["jax"] = lambda: child("import jax")
    seconds = alternate(functions, min(3, sizes.repeats))
    yield Row(
        "import chns_jax", seconds["package"] - seconds["python"], "s", "import jax",
        seconds["jax"] - seconds["python"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        call = f"from chns_jax.benchmarks.start import first_step; first_step({sizes is QUICK})"
        cold, cached = (_seconds(call, environment) for _ in range(2))
    yield faster("first training step, compilation cached", cached, "cold", cold)


def first_step(quick: bool) -> None:
    """Take one training step of the mobile ECAPA-TDNN."""
    from chns_jax.benchmarks.training import batch_of, config_of, make_steps

    config = config_of("ecapa_tdnn", QUICK if quick else Sizes())
    make_steps(config, *batch_of(config))[0]()


def _seconds(call: str, environment: dict[str, str]) -> float:
    began = time.perf_counter()
    child(call, environment)
    return time.perf_counter() - began

"""How long a user waits, by processes of their own: an import, the first step, and later ones."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from chns_jax.benchmarks.measure import QUICK, Row, Sizes, alternate, child, faster
from chns_jax.devices.huge_pages import TUNABLE


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
        call = f"from chns_jax.benchmarks.start import first_step; first_step({sizes is QUICK})"
        cold, cached = (_seconds(call, _caching(folder)) for _ in range(2))
    yield faster("first training step, compilation cached", cached, "cold", cold)


def pages(sizes: Sizes) -> Iterator[Row]:
    """The mobile ECAPA-TDNN's step with huge pages and without, in processes of their own."""
    call = f"from chns_jax.benchmarks.start import later_step; print(later_step({sizes is QUICK}))"
    seconds = {TUNABLE: [], "": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(min(3, sizes.repeats)):
            for tunables, values in seconds.items():
                environment = {**_caching(folder), "GLIBC_TUNABLES": tunables}
                values.append(float(child(call, environment)))
    huge, small = (float(np.median(values)) for values in seconds.values())
    yield faster("training step, mobile ECAPA-TDNN, with huge pages", huge, "without", small)


def first_step(quick: bool) -> None:
    """Take one training step of the mobile ECAPA-TDNN."""
    _step(QUICK if quick else Sizes())()


def later_step(quick: bool) -> float:
    """Median seconds of a training step of the mobile ECAPA-TDNN."""
    sizes = QUICK if quick else Sizes()
    return alternate({"step": _step(sizes)}, sizes.repeats)["step"]


def _step(sizes: Sizes):
    from chns_jax.benchmarks.training import batch_of, config_of, make_steps

    config = config_of("ecapa_tdnn", sizes)
    return make_steps(config, *batch_of(config))[0]


def _caching(folder: str) -> dict[str, str]:
    """The environment of a process that keeps what it compiles in `folder`."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _seconds(call: str, environment: dict[str, str]) -> float:
    began = time.perf_counter()
    child(call, environment)
    return time.perf_counter() - began

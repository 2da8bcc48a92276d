"""Times of functions that run in turn, and the rows of the table that they make."""

from __future__ import annotations

import multiprocessing
import pkgutil
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chns_jax.config import ReDimNet2


class Sizes(NamedTuple):
    """How large the measured problems are."""

    repeats: int = 7
    rows: Mapping[str, int] = {"ecapa_tdnn": 64, "thin_resnet": 32, "redimnet2": 16}
    frames: int = 301  # 3 s
    channels: tuple[int, ...] = (256, 256, 256, 256, 768)
    res2net_scale: int = 8
    layers: tuple[int, ...] = (3, 4, 6, 3)
    filters: tuple[int, ...] = (16, 32, 64, 128)
    redimnet2: ReDimNet2 = ReDimNet2()
    matrix: int = 2048
    loss_rows: int = 8192
    most_loss_rows: int = 65_536
    batch_speakers: int = 650
    speakers: tuple[int, ...] = (5_994, 120_000)
    batches: int = 8  # of the paper's size, read in one go
    loaded_crops: int = 1_920  # in small batches
    utterances_per_speaker: int = 20
    clusters: int = 50
    epoch_utterances: int = 1_000_000
    files: tuple[int, int, float] = (12, 4, 8.0)  # speakers, utterances of each, seconds
    crop_seconds: float = 3.0
    waveforms: int = 24
    trials: int = 581_480  # of VoxCeleb1-E
    loop_steps: int = 60
    loop_corpus: tuple[int, int, int] = (1_200, 4_800, 24_000)  # speakers, recordings, utterances
    feed_seconds: float = 10.0
    encoder_rows: int = 16
    timed: tuple[str, ...] = ()  # encoders of the cost table; all when empty


QUICK = Sizes(
    repeats=2,
    rows={"ecapa_tdnn": 4, "thin_resnet": 4, "redimnet2": 4},
    frames=32,
    channels=(8, 8, 8, 8, 16),
    res2net_scale=2,
    layers=(1, 1),
    filters=(8, 16),
    redimnet2=ReDimNet2(
        channels=4,
        frequency_strides=(2,),
        time_strides=(2,),
        blocks=(1,),
        expansions=(1.0,),
        reductions=(36,),
    ),
    matrix=256,
    loss_rows=256,
    most_loss_rows=512,
    batch_speakers=16,
    speakers=(60, 120),
    utterances_per_speaker=4,
    clusters=5,
    epoch_utterances=10_000,
    files=(2, 2, 1.0),
    crop_seconds=0.5,
    waveforms=3,
    trials=1_000,
    batches=2,
    loaded_crops=32,
    loop_steps=4,
    loop_corpus=(30, 60, 240),
    feed_seconds=0.2,
    encoder_rows=4,
    timed=("mobile ECAPA-TDNN",),
)


class Row(NamedTuple):
    """One line of the table: ours, what it is compared with, and the ratio that has a target."""

    what: str
    ours: float
    unit: str
    other: str = ""  # what `theirs` is
    theirs: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


def alternate(
    functions: Mapping[str, Callable[[], object]], repeats: int, untimed: int = 0
) -> dict[str, float]:
    """Median seconds of each function; they run in turn, A B A B, after a round that warms up.

    A function returns when its work is done. What else the machine does slows all of them. Each
    turn begins with `untimed` calls: a virtual machine may have given away the memory that another
    turn left free, which those take back.
    """
    seconds = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            for _ in range(untimed):
                function()
            began = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def faster(what: str, ours: float, other: str, theirs: float, target: float | None = None) -> Row:
    """A row of seconds, whose ratio says how many times faster ours is."""
    ratio = theirs / ours
    said = f">= {target:g}" if target else ""
    return Row(what, ours, "s", other, theirs, ratio, said, ratio >= target if target else None)


def below(what: str, ours: float, unit: str, target: float) -> Row:
    """A row whose target is an upper bound."""
    return Row(what, ours, unit, target=f"< {target:g} {unit}".rstrip(), met=ours < target)


@cache
def why_no_torch() -> str | None:
    """Why the rows against PyTorch and SpeechBrain cannot be measured; None when they can.

    They may be there and still not import, as with a torchaudio made for another PyTorch. This
    process does not import them.
    """
    return child(_IMPORT_TORCH).strip() or None


_IMPORT_TORCH = """
import contextlib, sys
try:
    with contextlib.redirect_stdout(sys.stderr):
        import torch
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
except Exception as error:
    said = str(error).strip().splitlines() or [type(error).__name__]
    print(said[0])
"""


@contextmanager
def of_torch(make: str, *arguments: Any) -> Iterator[dict[str, Callable[[], Any]]]:
    """The functions that a function of `torch_models` makes; none where PyTorch is not. It and they
    run in a process of their own, so that neither side has the other's memory or threads."""
    if why_no_torch() is not None:
        yield {}
        return
    with in_own_process(f"chns_jax.benchmarks.torch_models:{make}", *arguments) as functions:
        yield functions


@contextmanager
def in_own_process(make: str, *arguments: Any) -> Iterator[dict[str, Callable[[], Any]]]:
    """The functions that `make`, "module:function", makes by name, each of which runs in a process
    that lasts as long as this context."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        names = pool.submit(_make, make, arguments).result()
        yield {name: lambda name=name: pool.submit(_call, name).result() for name in names}


_made: dict[str, Callable[[], Any]] = {}  # in that process


def _make(make: str, arguments: tuple) -> list[str]:
    _made.update(pkgutil.resolve_name(make)(*arguments))
    return list(_made)


def _call(name: str) -> Any:
    return _made[name]()


def child(code: str, environment: Mapping[str, str] | None = None) -> str:
    """What a Python program prints, in a process of its own. Raises CalledProcessError."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def peak_gb() -> float:
    """The most memory that this process has held, in GB."""
    # On Linux, rusage counts the parent's too.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1]) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def device_gb() -> float | None:
    """The most memory of the first device that this process has held, in GB; None where JAX does
    not know."""
    import jax

    held = jax.devices()[0].memory_stats() or {}
    return held["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in held else None

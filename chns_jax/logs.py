"""Scalars -> JSONL and TensorBoard, and the progress bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from chns_jax import hosts
from chns_jax.files import replacing

SECONDS_BETWEEN_BARS = {True: 0.5, False: 15.0}  # a terminal redraws; a log file gets a line each


class RunLog:
    """Writes the scalars of a run from `step` on; what was written past it is dropped.

    Only host 0 writes.
    """

    def __init__(self, folder: Path, step: int):
        self._writes = hosts.is_first()
        if not self._writes:
            return
        from tensorboardX import SummaryWriter

        path = folder / "metrics.jsonl"
        # A round that begins at `step` begins again, and will be written again.
        earlier = [r for r in records(path) if r["step"] < step + ("round" not in r)]
        with replacing(path) as file:
            file.writelines(json.dumps(record) + "\n" for record in earlier)
        self._jsonl = open(path, "a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, **scalars: float) -> None:
        if not self._writes:
            return
        self._jsonl.write(json.dumps({"step": step, **scalars}) + "\n")
        self._jsonl.flush()
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        if not self._writes:
            return
        self._jsonl.close()
        self._tensorboard.close()


class Pace:
    """Speed since the last restart, and waiting since the last look; pauses are not counted."""

    def __init__(self, rows: int):
        self.rows, self.waiting = rows, 0.0
        self.restart()

    def restart(self) -> None:
        self.steps, self.since = 0, time.perf_counter()

    def step(self) -> None:
        self.steps += 1

    def waited(self, seconds: float) -> None:
        self.waiting += seconds

    def scalars(self) -> dict[str, float]:
        """Utterances per second, and the seconds spent waiting for data since the last call."""
        waiting, self.waiting = self.waiting, 0.0
        rate = self.steps * self.rows / (time.perf_counter() - self.since)
        return {"utterances_per_second": rate, "data_wait_seconds": waiting}


def records(path: Path) -> Iterator[dict]:
    """The objects of a JSONL file; a last line that a kill cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def progress_bar(first: int, steps: int) -> tqdm:
    """A bar over the steps of a run, with the time that is left; only host 0 shows one."""
    seconds, hidden = SECONDS_BETWEEN_BARS[sys.stderr.isatty()], not hosts.is_first()
    return tqdm(initial=first, total=steps, unit="step", mininterval=seconds, dynamic_ncols=True,
                disable=hidden)  # fmt: skip


def say(sentence: str) -> None:
    """A line on standard error that does not tear the progress bar, from host 0."""
    if hosts.is_first():
        tqdm.write(sentence, file=sys.stderr)

"""What a run tells while it trains: metrics.jsonl, TensorBoard, and the loss beside the bar."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.files import replacing
from chns_jax.common.progress import Bar
from chns_jax.common.reading import read_text
from chns_jax.config import Config
from chns_jax.corpus.corpus import Corpus
from chns_jax.devices import processes
from chns_jax.runs.folder import RunFolder
from chns_jax.sampling import negative_cosines
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.sampling.plan import Batch, plan, same_cluster_share


class RunLog:
    """Writes the scalars of a run from `step` on; what was written past it is dropped.

    Only the first process writes.
    """

    def __init__(self, folder: RunFolder, step: int):
        self._writes = processes.is_first()
        if not self._writes:
            return
        # Not SummaryWriter: its thread ends with a traceback where a disk is full, and then waits.
        from tensorboardX.event_file_writer import EventsWriter

        # A round that begins at `step` begins again, and will be written again.
        earlier = [r for r in records(folder.metrics) if r["step"] < step + ("round" not in r)]
        with replacing(folder.metrics) as file:
            file.writelines(json.dumps(record) + "\n" for record in earlier)
        self._jsonl = open(folder.metrics, "a", encoding="utf-8")
        folder.tensorboard.mkdir(exist_ok=True)
        self._tensorboard = EventsWriter(str(folder.tensorboard / "events"))
        self._tell(step + 1, session_log={"status": "START"})  # drops what was past it

    def write(self, step: int, **scalars: float) -> None:
        if not self._writes:
            return
        self._jsonl.write(json.dumps({"step": step, **scalars}) + "\n")
        self._jsonl.flush()
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]
        self._tell(step, summary={"value": values})

    def _tell(self, step: int, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        self._tensorboard.write_event(Event(wall_time=time.time(), step=step, **event))
        self._tensorboard.flush()

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

    def waiting_for(self, batches: Iterator) -> Iterator:
        """The batches; the time until each comes is counted as waiting."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waiting += time.perf_counter() - asked
            yield batch

    def scalars(self) -> dict[str, float]:
        """Utterances per second, and the seconds spent waiting for data since the last call."""
        waiting, self.waiting = self.waiting, 0.0
        rate = self.steps * self.rows / (time.perf_counter() - self.since)
        return {"utterances_per_second": rate, "data_wait_seconds": waiting}


class Journal:
    """Reads the metrics of each step when the next one is under way: the device never waits."""

    def __init__(
        self, config: Config, corpus: Corpus, folder: RunFolder, log: RunLog, bar: Bar, pace: Pace
    ):
        self.config, self.corpus, self.folder = config, corpus, folder
        self.log, self.bar, self.pace = log, bar, pace
        self.unread: deque[tuple[int, dict[str, Any], SpeakerClusters | None]] = deque()

    def add(self, step: int, metrics: dict[str, Any], table: SpeakerClusters | None) -> None:
        """Metrics, on the device, of the step that led to `step` with a batch of this table."""
        self.unread.append((step, metrics, table))

    def read(self, *, all: bool) -> None:
        """Write what is due of all steps but the last, or of `all`.

        Raises UserError for a loss that is no finite number, whose batch is written down.
        """
        while len(self.unread) > (0 if all else 1):
            step, metrics, table = self.unread.popleft()
            if not math.isfinite(metrics["loss"]):  # waits until the device has made it
                raise self._bad_batch(step, table)
            self.pace.step()
            self.bar.set_postfix_str(f"loss {metrics['loss']:.3f}", refresh=False)
            self.bar.update()
            training = self.config.training
            if is_due(step, training.log_every, training.steps):
                z = np.asarray(metrics.pop("z"))
                labels = self._batch(step, table).labels
                self.log.write(
                    step,
                    **{name: float(value) for name, value in metrics.items()},
                    **self.pace.scalars(),
                    same_cluster_share=same_cluster_share(labels, table),
                    **negative_cosines.summary(z, labels, seed=training.seed, step=step),
                )

    def _batch(self, step: int, table: SpeakerClusters | None) -> Batch:
        """The batch that led to `step`."""
        seed = self.config.training.seed
        return plan(seed, step - 1, self.config.sampler, self.corpus, table)

    def _bad_batch(self, step: int, table: SpeakerClusters | None) -> UserError:
        path = self.folder.bad_batch
        if processes.is_first():
            with replacing(path) as file:
                utterances = self._batch(step, table).utterances
                file.writelines(f"{self.corpus.path(row)}\n" for row in utterances)
        return UserError(
            f"the loss is no finite number at step {step}, whose utterances {path} lists: lower "
            "optimizer.learning_rate or raise loss.min_temperature"
        )


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens `every` steps (0: only at the end) happens after `step`."""
    return step == steps or (every > 0 and step % every == 0)


def records(path: Path) -> Iterator[dict]:
    """The objects of a JSONL file; a last line that a kill cut short is left out. Raises UserError
    for another that is none of a run's."""
    if not path.exists():
        return
    lines = read_text(path, "the log of a run").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            if number == len(lines):
                return
            raise UserError(
                f"{path} is damaged in line {number}: remove the lines from there on"
            ) from error
        yield record

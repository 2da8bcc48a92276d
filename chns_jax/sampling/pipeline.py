"""Plan -> audio, with grain: one pipeline per round, as the table is frozen within a round."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import lru_cache
from threading import Event, Lock
from typing import Any

import grain
import numpy as np

from chns_jax.common.randomness import Purpose, generator
from chns_jax.config import Sampler
from chns_jax.corpus.noise import NoiseFiles
from chns_jax.corpus.reader import Reader
from chns_jax.sampling.buffers import Buffers
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.sampling.plan import Batch, plan

BATCHES_AHEAD = 2
MOST_SLICES = 32  # of a batch, each read by one thread; or as many as there are threads
FEWEST_ROWS = 8  # of a slice, where threads leave so many
PLANS_REMEMBERED = 8

Value = np.ndarray | np.generic
Row = Value | dict[str, Value]
Rows = np.ndarray | dict[str, np.ndarray]


def training_batches(
    reader: Reader,
    sampler: Sampler,
    table: SpeakerClusters | None,
    *,
    seed: int,
    samples: int,
    first_step: int,
    end_step: int,
    noise: NoiseFiles | None = None,
    held: np.ndarray | None = None,
) -> Generator[dict[str, np.ndarray], None, None]:
    """What the device needs of steps first_step to end_step - 1, planned with one table.

    "audio" (2b, s) int16 and "labels" (2b,) int32, the speakers; with `noise` also "noise" (2b, s)
    int16 and "snr" (2b,) float32. With `held`, only those of the 2b rows are read and returned.
    """
    rows, planning = 2 * sampler.speakers, Lock()

    @lru_cache(PLANS_REMEMBERED)
    def remembered(step: int) -> Batch:
        return plan(seed, step, sampler, reader.corpus, table)

    def planned(step: int) -> Batch:
        with planning:  # else every thread makes the same plan
            return remembered(step)

    def read(i: int) -> dict[str, Value]:
        step, slot = first_step + i // rows, i % rows
        rng = generator(seed, Purpose.CROP, step, slot)
        batch = planned(step)
        audio = reader.random_crop(int(batch.utterances[slot]), rng, samples)
        row: dict[str, Value] = {"audio": audio, "labels": np.int32(batch.labels[slot])}
        if noise is not None:
            rng = generator(seed, Purpose.NOISE, step, slot)
            row["noise"], row["snr"] = noise.draw(rng, samples)
        return row

    return read_batches(reader, read, (end_step - first_step) * rows, rows, held)


def voiceprint_batches(
    reader: Reader,
    *,
    per_speaker: int,
    seed: int,
    round: int,
    samples: int,
    rows: int,
    held: np.ndarray | None = None,
) -> Generator[Any, None, None]:
    """Random crops for voiceprints: `per_speaker` of each speaker in turn, (rows, s) int16.

    They are of different utterances, as far as the speaker has that many. `held` as of
    `read_batches`.
    """

    def read(i: int) -> np.ndarray:
        speaker, j = divmod(i, per_speaker)
        utterances = np.arange(*reader.corpus.speaker_start[speaker : speaker + 2])
        order = generator(seed, Purpose.REFRESH, round, speaker).permutation(utterances)
        rng = generator(seed, Purpose.REFRESH, round, speaker, 1 + j)
        return reader.random_crop(int(order[j % len(order)]), rng, samples)

    return read_batches(reader, read, len(reader.corpus.speakers) * per_speaker, rows, held)


def read_batches(
    reader: Reader,
    read: Callable[[int], Row],
    count: int,
    rows: int,
    held: np.ndarray | None = None,
) -> Generator[Any, None, None]:
    """read(0), ..., read(count - 1) by the reader's threads ahead of time, stacked in batches.

    A row is an array or a number, or a dict of them. The last batch holds what is left of `rows`.
    With `held`, only these rows of each batch are read; where they hold nothing of the last one, it
    is left out. What `read` raises is raised here, when its batch is asked for. `close()` the
    iterator to end its threads early, each with the row that it is reading.
    """
    held = np.arange(rows) if held is None else held
    source = _Slices(read, count, rows, held, size=_slice_rows(len(held), reader.threads))
    options = grain.ReadOptions(
        num_threads=reader.threads, prefetch_buffer_size=BATCHES_AHEAD * source.slices
    )
    done = iter(grain.MapDataset.source(source).to_iter_dataset(options))
    try:
        for i, batch in enumerate(done, start=1):
            if i % source.slices == 0 or i == len(source):
                yield source.take(batch)
    finally:
        source.stopped.set()
        done.close()


def _slice_rows(rows: int, threads: int) -> int:
    """How many of a batch's rows are an element of grain.

    Each costs it a future, and a look at all those ahead whenever it gives one. Those ahead keep
    all threads at work.
    """
    of_thread = BATCHES_AHEAD * rows // threads
    return max(1, -(-rows // max(MOST_SLICES, threads)), min(FEWEST_ROWS, of_thread))


class _Slices:
    """A source for grain: an element is a slice of a batch, read into its place in there."""

    def __init__(
        self, read: Callable[[int], Row], count: int, rows: int, held: np.ndarray, *, size: int
    ):
        self.read, self.rows, self.held = read, rows, held
        self.size = size  # rows of a slice; the last of a batch may have fewer
        self.slices = -(-len(held) // size)  # of a batch
        self.whole, left = divmod(count, rows)
        self.left = int(np.searchsorted(held, left))  # rows of the batch after the whole ones
        self.stopped = Event()
        self._lock = Lock()
        self._batches: dict[int, Rows] = {}  # those that are being read
        self._buffers = Buffers()

    def __len__(self) -> int:
        return self.whole * self.slices + -(-self.left // self.size)

    def __getitem__(self, index: int) -> int:
        """Read a slice; returns which batch it is of."""
        batch, part = divmod(index, self.slices)
        places = self.held[: self._length(batch)][part * self.size : (part + 1) * self.size]
        for place, slot in enumerate(places.tolist(), start=part * self.size):
            if self.stopped.is_set():
                break
            row = self.read(batch * self.rows + slot)
            arrays: Any = self._arrays(batch, row)  # shaped as the row
            if isinstance(row, dict):
                for name, value in row.items():
                    arrays[name][place] = value
            else:
                arrays[place] = row
        return batch

    def take(self, batch: int) -> Rows:
        """A batch, all of whose slices were read."""
        return self._batches.pop(batch)

    def _length(self, batch: int) -> int:
        return len(self.held) if batch < self.whole else self.left

    def _arrays(self, batch: int, row: Row) -> Rows:
        """Where the rows of a batch go, shaped as one of them."""
        with self._lock:
            if batch not in self._batches:
                length = self._length(batch)

                def empty(value: Value) -> np.ndarray:
                    return self._buffers.empty((length, *np.shape(value)), value.dtype)

                is_dict = isinstance(row, dict)
                self._batches[batch] = (
                    {name: empty(value) for name, value in row.items()} if is_dict else empty(row)
                )
            return self._batches[batch]

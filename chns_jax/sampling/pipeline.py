"""Plan -> audio, with grain: one pipeline per round, as the table is frozen within a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grain
import numpy as np

from chns_jax.common.randomness import Purpose, generator
from chns_jax.config import Sampler
from chns_jax.corpus.noise import NoiseFiles
from chns_jax.corpus.reader import Reader
from chns_jax.sampling.plan import Batch, plan
from chns_jax.sampling.table import Table

BATCHES_AHEAD = 2
PLANS_REMEMBERED = 8


def training_batches(
    reader: Reader,
    sampler: Sampler,
    table: Table | None,
    *,
    seed: int,
    samples: int,
    first_step: int,
    end_step: int,
    noise: NoiseFiles | None = None,
    held: np.ndarray | None = None,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """What the device needs of steps first_step to end_step - 1, planned with one table.

    "audio" (2b, s) int16 and "labels" (2b,) int32, the speakers; with `noise` also "noise" (2b, s)
    int16 and "snr" (2b,) float32. With `held`, only those of the 2b rows are read and returned.
    """
    rows = 2 * sampler.speakers

    @lru_cache(PLANS_REMEMBERED)
    def planned(step: int) -> Batch:
        return plan(seed, step, sampler, reader.corpus, table)

    def read(i: int) -> dict[str, np.ndarray]:
        step, slot = first_step + i // rows, i % rows
        rng = generator(seed, Purpose.CROP, step, slot)
        batch = planned(step)
        audio = reader.random_crop(int(batch.utterances[slot]), rng, samples)
        row = {"audio": audio, "labels": np.int32(batch.labels[slot])}
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
) -> grain.DatasetIterator:
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
    read: Callable[[int], Any],
    count: int,
    rows: int,
    held: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """read(0), ..., read(count - 1) by the reader's threads ahead of time, stacked in batches.

    They are arrays, or trees of arrays. The last batch holds what is left of `rows`. With `held`,
    only these rows of each batch are read; where they hold nothing of the last one, it is left out.
    `close()` the iterator to end its threads early.
    """
    held = np.arange(rows) if held is None else held
    options = grain.ReadOptions(
        num_threads=reader.threads, prefetch_buffer_size=BATCHES_AHEAD * len(held)
    )
    dataset = grain.MapDataset.source(_Rows(read, count, rows, held)).to_iter_dataset(options)
    return iter(dataset.batch(len(held)))


@dataclass(frozen=True)
class _Rows:
    """A source for grain."""

    read: Callable[[int], Any]
    count: int
    rows: int  # of a batch
    held: np.ndarray  # those of them that are read

    def __len__(self) -> int:
        batches, left = divmod(self.count, self.rows)
        return batches * len(self.held) + int(np.searchsorted(self.held, left))

    def __getitem__(self, index: int) -> Any:
        batch, place = divmod(index, len(self.held))
        return self.read(batch * self.rows + int(self.held[place]))

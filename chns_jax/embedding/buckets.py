"""Waveforms of any length -> padded batches of a few shapes, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

LONGEST_BUCKET_SECONDS = 60.0
BUCKETS = 11
RATIO = 2**0.5


class Padded(NamedTuple):
    """Waveforms of one bucket. Rows after `len(keys)` repeat others, and are to be left out."""

    keys: list[Any]  # hashable ones
    audio: np.ndarray  # (b, s) int16, zeros after each waveform
    samples: np.ndarray  # (b,) int32: length of each waveform


def bucket_lengths(sample_rate: int) -> list[int]:
    """Samples of the buckets: 60 s, and ten times the length before divided by sqrt(2)."""
    shrunk = LONGEST_BUCKET_SECONDS * sample_rate / RATIO ** np.arange(BUCKETS)[::-1]
    return np.ceil(shrunk).astype(int).tolist()


def pad(
    waveforms: Iterable[tuple[Hashable, np.ndarray]],
    lengths: Sequence[int],
    *,
    samples: int,
    multiple: int = 1,
) -> Iterator[Padded]:
    """Batches of waveforms (s,) int16, each padded to the least of `lengths` that holds it.

    A batch has as many rows as `samples` samples hold, and a multiple of `multiple`. It is yielded
    once it is full, what is left at the end; a bucket that was never full and ends with `multiple`
    waveforms at most has that many rows. So a bucket has one shape. `lengths` ascend, and the last
    holds every waveform.
    """
    waiting: list[list] = [[] for _ in lengths]
    rows = [max(1, samples // (length * multiple)) * multiple for length in lengths]
    was_full = [False] * len(lengths)
    for key, waveform in waveforms:
        bucket = int(np.searchsorted(lengths, len(waveform)))
        waiting[bucket].append((key, waveform))
        if len(waiting[bucket]) == rows[bucket]:
            yield _padded(waiting[bucket], lengths[bucket], rows[bucket])
            waiting[bucket], was_full[bucket] = [], True
    for bucket, left in enumerate(waiting):
        if left:
            few = not was_full[bucket] and len(left) <= multiple
            yield _padded(left, lengths[bucket], multiple if few else rows[bucket])


def cut(waveform: np.ndarray, *, shortest: int, longest: int) -> list[np.ndarray]:
    """As few pieces of equal length as are no longer than `longest` samples, one after another.

    A waveform (s,) shorter than `shortest` is repeated to that length, as crops are.
    """
    if len(waveform) < shortest:
        return [np.resize(waveform, shortest)]
    pieces = -(-len(waveform) // longest)
    edges = np.arange(pieces + 1) * len(waveform) // pieces
    return [waveform[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True)]


def segments(waveform: np.ndarray, length: int) -> list[np.ndarray]:
    """As few evenly spaced segments of `length` samples as cover a waveform (s,), the last ending
    where it ends. A waveform that is shorter is repeated.
    """
    if len(waveform) < length:
        return [np.resize(waveform, length)]
    count, spare = -(-len(waveform) // length), len(waveform) - length
    starts = [min((spare + 1) * i // max(count - 1, 1), spare) for i in range(count)]
    return [waveform[start : start + length] for start in starts]


def _padded(rows: list[tuple[Hashable, np.ndarray]], length: int, count: int) -> Padded:
    audio, samples = np.zeros((count, length), np.int16), np.zeros(count, np.int32)
    for i in range(count):
        waveform = rows[i % len(rows)][1]
        audio[i, : len(waveform)], samples[i] = waveform, len(waveform)
    return Padded([key for key, _ in rows], audio, samples)

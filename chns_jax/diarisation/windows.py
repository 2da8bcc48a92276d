"""Sliding windows over speech and their embeddings; memory does not grow with the sound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from chns_jax.common.vectors import unit
from chns_jax.embedding.buckets import pad
from chns_jax.embedding.model import Model


class Windows(NamedTuple):
    """In the order of their beginnings."""

    start: np.ndarray  # (n,) int64: first sample
    end: np.ndarray  # (n,) int64: the sample after the last
    region: np.ndarray  # (n,) int64: the stretch of speech that it lies in


def count(speech: np.ndarray, length: int, step: int) -> int:
    """How many windows `place` makes."""
    return int(_counts(speech, length, step).sum())


def place(speech: np.ndarray, length: int, step: int) -> Windows:
    """Windows of `length` samples every `step` samples of each stretch of `speech` (r, 2).

    The last of a stretch ends with it. A stretch that is no longer than a window is one.
    """
    counts = _counts(speech, length, step)
    region = np.repeat(np.arange(len(speech)), counts)
    place_in_region = np.arange(len(region)) - np.repeat(np.cumsum(counts) - counts, counts)
    first, last = speech[region, 0], speech[region, 1]
    start = np.minimum(first + place_in_region * step, np.maximum(first, last - length))
    return Windows(start, np.minimum(start + length, last), region)


def embed(
    model: Model, blocks: Iterable[np.ndarray], windows: Windows, length: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Places (b,) of some windows, and their L2-normalised embeddings (b, d) float32, until all
    are done.

    `blocks` (s,) int16 are the recording. One shape is compiled; a window shorter than `length` is
    padded, and one that is shorter than the encoder takes is repeated.
    """
    embedder = model.embedder

    def pieces() -> Iterator[tuple[int, np.ndarray]]:
        for i, piece in cut(blocks, windows):
            yield (
                i,
                piece if len(piece) >= embedder.shortest else np.resize(piece, embedder.shortest),
            )

    batches = pad(pieces(), [length], samples=embedder.batch_samples, multiple=embedder.mesh.size)
    for places, audio, samples in batches:
        embeddings = embedder.padded(model.variables, audio, samples)[: len(places)]
        yield places, unit(embeddings.astype(np.float64)).astype(np.float32)


def cut(blocks: Iterable[np.ndarray], windows: Windows) -> Iterator[tuple[int, np.ndarray]]:
    """Place and samples (s,) of each window, of a recording that comes in blocks."""
    held, at = np.zeros(0, np.int16), 0  # what is in memory, and where it begins
    i = 0
    for block in blocks:
        held = np.concatenate([held, block])
        while i < len(windows.start) and windows.end[i] <= at + len(held):
            yield i, held[windows.start[i] - at : windows.end[i] - at]
            i += 1
        needed = windows.start[i] - at if i < len(windows.start) else len(held)
        dropped = min(int(needed), len(held))
        held, at = held[dropped:], at + dropped


def _counts(speech: np.ndarray, length: int, step: int) -> np.ndarray:
    spare = np.maximum(speech[:, 1] - speech[:, 0] - length, 0)
    return 1 + -(-spare // step)

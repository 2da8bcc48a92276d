"""Embeddings on the host: lengths, means and neighbours."""

from __future__ import annotations

import numpy as np

BLOCK = 256  # rows whose cosines to all others are in memory at once


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., d) divided by their L2 norm."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def means(embeddings: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """L2-normalised means (v, d) float32 of the embeddings (w, d) of each owner.

    `owner` (w,) ascends from 0 to v - 1 with none left out.
    """
    return unit(sums(embeddings, owner)).astype(np.float32)


def sums(embeddings: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Sums (v, d) float64, as of `means`."""
    start = np.searchsorted(owner, np.arange(owner[-1] + 1))
    return np.add.reduceat(embeddings.astype(np.float64), start, axis=0)


def nearest(vectors: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """(m, count), in no order: the other vectors nearest by cosine to those at `rows` (m,).

    `vectors` (n, d) are L2-normalised, and `count` is 1 to n - 1.
    """
    found = np.empty((len(rows), count), np.int64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        cosine = vectors[block] @ vectors.T
        cosine[np.arange(len(block)), block] = -np.inf
        found[start : start + BLOCK] = np.argpartition(cosine, -count, axis=1)[:, -count:]
    return found

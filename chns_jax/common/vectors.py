"""Embeddings on the host: lengths and means."""

from __future__ import annotations

import numpy as np


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

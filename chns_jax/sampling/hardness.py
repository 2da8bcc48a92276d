"""How hard the negatives of a batch really are."""

from __future__ import annotations

import numpy as np


def negative_cosines(z: np.ndarray, speakers: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of different speakers, (pairs,) float32.

    `z` (2b, d) are L2-normalised embeddings and `speakers` (2b,) says whose each one is. Every
    pair is counted once.
    """
    cosine = z @ z.T
    one, other = np.triu_indices(len(z), k=1)
    return cosine[one, other][speakers[one] != speakers[other]]


def summary(z: np.ndarray, speakers: np.ndarray) -> dict[str, float]:
    """Mean and 95th percentile of the negatives' cosine."""
    cosines = negative_cosines(z, speakers)
    return {
        "negative_cosine_mean": float(cosines.mean()),
        "negative_cosine_p95": float(np.percentile(cosines, 95)),
    }

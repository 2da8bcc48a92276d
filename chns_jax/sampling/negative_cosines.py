"""How hard the negatives of a batch really are."""

from __future__ import annotations

import numpy as np

from chns_jax.common.randomness import Purpose, generator

PAIRS = 2**20  # of rows compared, at most; all pairs of the paper's 1,300 rows are fewer


def negative_cosines(z: np.ndarray, speakers: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """Cosines of pairs of different speakers, (pairs,) float32, each pair once.

    `z` (2b, d) are L2-normalised embeddings and `speakers` (2b,) says whose each one is. Of batches
    with more pairs than PAIRS, about so many, in which every row is found equally often, are a
    function of (seed, step), for which memory grows with the rows and not with their square.
    """
    rows = len(z)
    if rows * (rows - 1) // 2 <= PAIRS:
        cosine = z @ z.T
        one, other = np.triu_indices(rows, k=1)
        return cosine[one, other][speakers[one] != speakers[other]]
    # The rows stand in a ring in random order, and each is compared with the next few.
    reach = max(1, PAIRS // rows)
    order = generator(seed, Purpose.PAIRS, step).permutation(rows)
    ring = np.concatenate([order, order[:reach]])
    z, speakers = z[ring], speakers[ring]
    cosines = []
    for distance in range(1, reach + 1):
        others = slice(distance, distance + rows)
        negative = speakers[:rows] != speakers[others]
        cosines.append(np.einsum("bd,bd->b", z[:rows], z[others])[negative])
    return np.concatenate(cosines)


def summary(z: np.ndarray, speakers: np.ndarray, *, seed: int, step: int) -> dict[str, float]:
    """Mean and 95th percentile of the negatives' cosine; arguments as of `negative_cosines`."""
    cosines = negative_cosines(z, speakers, seed=seed, step=step)
    return {
        "negative_cosine_mean": float(cosines.mean()),
        "negative_cosine_p95": float(np.percentile(cosines, 95)),
    }

"""Who speaks in which window: spectral clusters of the windows' embeddings.

Sources: Ng, Jordan & Weiss, "On spectral clustering" (2001); their number by the eigengap, von
Luxburg, "A tutorial on spectral clustering" (2007), section 8.3; a graph of the nearest neighbours
alone, Park et al., "Auto-tuning spectral clustering for speaker diarization" (2020).
"""

from __future__ import annotations

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.vectors import unit

MOST_CLUSTERED = 1500  # windows: all their pairs are in memory
MOST_SPEAKERS = 8  # that are found where nobody says how many
FEWEST_NEIGHBOURS = 6
# Of the windows, which each is tied to. Few tell voices apart that are given in number; only with
# more does the eigengap not take what one voice says for several.
SHARE, SHARE_TO_COUNT = 0.15, 0.25


def label(embeddings: np.ndarray, speakers: int | None) -> np.ndarray:
    """Speaker (n,) int64 of each window, by its embedding (n, d), L2-normalised; 0 speaks first.

    Where `speakers` is None they are counted, up to `MOST_SPEAKERS`: who says little is not found.
    Of more than `MOST_CLUSTERED` windows so many, evenly spaced, are clustered, and the others go
    to the nearest mean. Raises UserError where there are fewer windows than speakers.
    """
    shown = np.unique(np.linspace(0, len(embeddings) - 1, MOST_CLUSTERED).round().astype(int))
    if speakers is not None and speakers > len(shown):
        raise UserError(
            f"--speakers {speakers} is more than the {len(shown)} windows that are clustered: give "
            "fewer, or a shorter --step"
        )
    found = _cluster(embeddings[shown], speakers or count(embeddings[shown]))
    means = unit(np.stack([embeddings[shown][found == k].mean(axis=0) for k in np.unique(found)]))
    labels = np.argmax(embeddings @ means.T, axis=1)
    labels[shown] = np.unique(found, return_inverse=True)[1]
    _, first, labels = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[labels]


def count(embeddings: np.ndarray) -> int:
    """How many speak in windows (n, d): where the eigenvalues of the graph rise most."""
    eigenvalues = np.linalg.eigvalsh(_laplacian(embeddings, SHARE_TO_COUNT))
    rises = np.diff(eigenvalues[: MOST_SPEAKERS + 1])
    return int(np.argmax(rises)) + 1 if len(rises) else 1


def _cluster(embeddings: np.ndarray, speakers: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    _, vectors = np.linalg.eigh(_laplacian(embeddings, SHARE))
    rows = unit(vectors[:, :speakers])
    kmeans = KMeans(speakers, n_init=10, random_state=0)  # pyright: ignore[reportArgumentType]
    return kmeans.fit_predict(rows)


def _laplacian(embeddings: np.ndarray, share: float) -> np.ndarray:
    """The normalised Laplacian (n, n) of the graph that ties each window to this share of the
    others, the nearest by cosine."""
    cosines = embeddings @ embeddings.T
    neighbours = min(len(cosines), max(FEWEST_NEIGHBOURS, round(share * len(cosines))))
    farthest = np.partition(cosines, -neighbours, axis=1)[:, -neighbours, None]
    tied = (cosines >= farthest).astype(np.float64)
    tied = (tied + tied.T) / 2
    degree = np.sqrt(tied.sum(axis=1))
    return np.eye(len(tied)) - tied / np.outer(degree, degree)

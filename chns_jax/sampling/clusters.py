"""Voiceprints -> the table of each speaker's cluster, on the host, with scikit-learn."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from chns_jax.errors import UserError
from chns_jax.files import replacing
from chns_jax.randomness import Purpose, generator

KMEANS_RESTARTS = 5
FULL_BELOW = 20_000  # speakers
SAMPLED_SHARE, SAMPLED_PER_CLUSTER = 1 / 6, 20  # whichever gives more speakers
REFINEMENTS = 10


@dataclass(frozen=True)
class Table:
    """Clusters of speakers, frozen for one round of training."""

    cluster: np.ndarray  # (n,) int32: the cluster of each speaker
    centroids: np.ndarray  # (k, d) float32

    @cached_property
    def members(self) -> np.ndarray:
        """(n,) speakers, ordered by cluster."""
        return np.argsort(self.cluster, kind="stable")

    @cached_property
    def start(self) -> np.ndarray:
        """(k + 1,): cluster c's speakers are members[start[c]:start[c + 1]]."""
        return np.searchsorted(self.cluster[self.members], np.arange(len(self.centroids) + 1))

    @cached_property
    def sizes(self) -> np.ndarray:
        """(k,) number of speakers of each cluster."""
        return np.diff(self.start)

    @cached_property
    def nearest(self) -> np.ndarray:
        """(k, k): each row lists all clusters by falling cosine to that one, itself first."""
        directions = unit(self.centroids)
        cosine = directions @ directions.T
        np.fill_diagonal(cosine, np.inf)
        return np.argsort(-cosine, axis=1, kind="stable")

    def speakers_of(self, cluster: int) -> np.ndarray:
        """The speakers of one cluster."""
        return self.members[self.start[cluster] : self.start[cluster + 1]]


def voiceprints(embeddings: np.ndarray, *, normalise_first: bool = False) -> np.ndarray:
    """(n, k, d) embeddings of n speakers -> (n, d) voiceprints of length 1.

    The mean of a speaker's embeddings, then L2-normalised; as in the paper's code, long embeddings
    weigh more unless `normalise_first`. Source: CHNS, section 2.2.
    """
    if normalise_first:
        embeddings = unit(embeddings)
    return unit(embeddings.astype(np.float64).mean(axis=1)).astype(np.float32)


def cluster(
    voiceprints_nxd: np.ndarray,
    clusters: int,
    *,
    seed: int,
    round: int = 0,
    kmeans: Literal["auto", "full", "sampled"] = "auto",
) -> Table:
    """k-means of voiceprints (scikit-learn's KMeans, best of 5 starts), in one thread.

    full: of all speakers at once; sampled: of a sixth of them, from whose centroids 10 iterations
    over all speakers go on; auto: full below 20,000 speakers. One thread, because the order in
    which threads add up changes the last bits, and with them the run that follows. With fewer
    speakers than clusters, warns and makes one cluster a speaker.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    speakers = len(voiceprints_nxd)
    if clusters > speakers:
        warnings.warn(
            f"{clusters} clusters were asked of {speakers} speakers: {speakers} are made",
            stacklevel=2,
        )
        clusters = speakers
    rng = generator(seed, Purpose.CLUSTERS, round)
    state = int(rng.integers(2**31))
    full = kmeans == "full" or (kmeans == "auto" and speakers < FULL_BELOW)
    fit = KMeans(clusters, n_init=KMEANS_RESTARTS, random_state=state)
    with threadpool_limits(1), warnings.catch_warnings():
        # Identical voiceprints leave clusters empty; the sampler never draws an empty one.
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        if full:
            fit.fit(voiceprints_nxd)
        else:
            count = max(int(SAMPLED_SHARE * speakers), SAMPLED_PER_CLUSTER * clusters)
            fit.fit(voiceprints_nxd[rng.permutation(speakers)[:count]])
            fit = KMeans(clusters, init=fit.cluster_centers_, n_init=1, max_iter=REFINEMENTS)
            fit.fit(voiceprints_nxd)
    return Table(fit.labels_.astype(np.int32), fit.cluster_centers_.astype(np.float32))


def save(path: Path | str, table: Table, speakers: Sequence[str]) -> None:
    """Write `table` as .npz with the names of its speakers; complete or not at all."""
    with replacing(path, "wb") as file:
        np.savez(
            file,
            speakers=np.array(speakers, dtype=str),
            cluster=table.cluster,
            centroids=table.centroids,
        )


def load(path: Path | str, speakers: Sequence[str]) -> Table:
    """Read a table for `speakers`, in their order; the file may hold more of them.

    Raises UserError when the file is no table, or does not have one of the speakers.
    """
    named, table = read(path)
    order = np.argsort(named)
    place = np.searchsorted(named, speakers, sorter=order).clip(max=len(named) - 1)
    row = order[place]
    missing = np.flatnonzero(named[row] != np.asarray(speakers))
    if len(missing):
        raise UserError(
            f"the table {path} lacks {len(missing)} of the {len(speakers)} training speakers, "
            f"{speakers[missing[0]]} first: make it from the same corpus with chns_jax.cluster"
        )
    return Table(table.cluster[row], table.centroids)


def read(path: Path | str) -> tuple[np.ndarray, Table]:
    """Names of the speakers (n,) and table of a file. Raises UserError when it is no table."""
    try:
        with open(Path(path).expanduser(), "rb") as file, np.load(file) as arrays:
            named, labels, centroids = (arrays[key] for key in ("speakers", "cluster", "centroids"))
        fits = labels.shape == named.shape and len(named) and centroids.ndim == 2
        if not fits or labels.min() < 0 or labels.max() >= len(centroids):
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"the table {path} does not exist: make it with chns_jax.cluster") from None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a table of clusters (.npz of chns_jax.cluster)") from error
    return named, Table(labels.astype(np.int32), centroids.astype(np.float32))


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

"""Which cluster each speaker is in: frozen for a round, kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from chns_jax.common import arrays
from chns_jax.common.errors import UserError
from chns_jax.common.files import replacing
from chns_jax.common.randomness import Purpose, generator
from chns_jax.common.vectors import unit


@dataclass(frozen=True)
class SpeakerClusters:
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

    def speakers_of(self, cluster: int | np.integer) -> np.ndarray:
        """The speakers of one cluster."""
        return self.members[self.start[cluster] : self.start[cluster + 1]]


def by_chance(table: SpeakerClusters, *, seed: int, round: int) -> SpeakerClusters:
    """Clusters of the same sizes whose speakers are drawn: what batches from clusters do where the
    voices in them are not alike. The centroids stay, and mean nothing."""
    drawn = generator(seed, Purpose.CHANCE, round).permutation(table.cluster)
    return SpeakerClusters(drawn, table.centroids)


def within_groups(groups: np.ndarray, clusters: int, *, seed: int) -> SpeakerClusters:
    """About `clusters` clusters of speakers whose values in `groups` (n,) are the same, and who are
    drawn otherwise.

    A group has as many of the clusters as it has of the speakers, and one at least; those of a
    group are of one size, or differ by one. The centroids are drawn too, and mean nothing.
    """
    rng = generator(seed, Purpose.GROUPS)
    _, sizes = np.unique(groups, return_counts=True)
    cluster, count = np.empty(len(groups), np.int32), 0
    for members in np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1]):
        parts = min(max(1, round(clusters * len(members) / len(groups))), len(members))
        for part in np.array_split(rng.permutation(members), parts):
            cluster[part] = count
            count += 1
    return SpeakerClusters(cluster, rng.standard_normal((count, 8), dtype=np.float32))


def save(path: Path | str, table: SpeakerClusters, speakers: Sequence[str] | np.ndarray) -> None:
    """Write `table` as .npz with the names of its speakers; complete or not at all."""
    with replacing(path, "wb") as file:
        np.savez(
            file,
            speakers=np.array(speakers, dtype=str),
            cluster=table.cluster,
            centroids=table.centroids,
        )


def load(path: Path | str, speakers: Sequence[str] | np.ndarray) -> SpeakerClusters:
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
    return SpeakerClusters(table.cluster[row], table.centroids)


def read(path: Path | str) -> tuple[np.ndarray, SpeakerClusters]:
    """Names of the speakers (n,) and table of a file. Raises UserError when it is no table."""
    try:
        held = arrays.load(Path(path).expanduser())
        named = arrays.need(held, "speakers", "U", 1)
        labels = arrays.need(held, "cluster", "iu", 1)
        with np.errstate(over="ignore"):
            centroids = arrays.need(held, "centroids", "f", 2).astype(np.float32)
    except FileNotFoundError:
        raise UserError(f"the table {path} does not exist: make it with chns_jax.cluster") from None
    except OSError as error:
        raise UserError(f"the table {path} cannot be read: {error.strerror}") from error
    except arrays.Damaged as error:
        raise _no_table(path, f"it {error}") from error
    if not 0 < len(named) == len(labels):
        raise _no_table(path, f"it names {len(named)} speakers, and the clusters of {len(labels)}")
    if len(np.unique(named)) < len(named):
        raise _no_table(path, "it names a speaker twice")
    if labels.min() < 0 or labels.max() >= len(centroids):
        raise _no_table(path, f"its clusters are not from 0 to {len(centroids) - 1}")
    if not np.isfinite(centroids).all():
        raise _no_table(path, "its centroids hold NaN or infinity")
    return named, SpeakerClusters(labels.astype(np.int32), centroids)


def _no_table(path: Path | str, why: str) -> UserError:
    return UserError(f"{path} is not a table of clusters (.npz of chns_jax.cluster): {why}")

"""Voiceprints -> the table of each speaker's cluster, on the host, with scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any, Literal, cast

import numpy as np

from chns_jax.common.randomness import Purpose, generator
from chns_jax.common.vectors import unit
from chns_jax.sampling.clusters import SpeakerClusters

KMEANS_RESTARTS = 5
FULL_BELOW = 20_000  # speakers
SAMPLED_SHARE, SAMPLED_PER_CLUSTER = 1 / 6, 20  # whichever gives more speakers
REFINEMENTS = 10


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
) -> SpeakerClusters:
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
    make = cast(Any, KMeans)  # its types are guessed by defaults, which are wrong
    fit = make(clusters, n_init=KMEANS_RESTARTS, random_state=state)
    with threadpool_limits(1), warnings.catch_warnings():
        # Identical voiceprints leave clusters empty; the sampler never draws an empty one.
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        if full:
            fit.fit(voiceprints_nxd)
        else:
            count = max(int(SAMPLED_SHARE * speakers), SAMPLED_PER_CLUSTER * clusters)
            fit.fit(voiceprints_nxd[rng.permutation(speakers)[:count]])
            fit = make(clusters, init=fit.cluster_centers_, n_init=1, max_iter=REFINEMENTS)
            fit.fit(voiceprints_nxd)
    return SpeakerClusters(fit.labels_.astype(np.int32), fit.cluster_centers_.astype(np.float32))

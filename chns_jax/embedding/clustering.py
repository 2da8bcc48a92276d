"""Speakers -> clusters, by their voices as an encoder hears them now."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from threading import Event
from typing import Any

import numpy as np

from chns_jax.config import Sampler
from chns_jax.corpus.reader import Reader
from chns_jax.devices import processes
from chns_jax.embedding.embedder import Embedder
from chns_jax.embedding.utterances import embed_crops
from chns_jax.sampling import clusters, kmeans
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.sampling.pipeline import voiceprint_batches


def make_table(
    embedder: Embedder,
    variables: dict[str, Any],
    reader: Reader,
    sampler: Sampler,
    *,
    samples: int,
    seed: int,
    round: int,
    stopped: Event | None = None,
) -> tuple[SpeakerClusters, np.ndarray]:
    """Clusters of the reader's speakers, by their voices as the encoder hears them now; and these
    voiceprints (n, d), L2-normalised.

    Embeds `sampler.utterances_per_speaker` random crops of each speaker, a function of seed and
    round. Several hosts read a part each, and all get the table of host 0. Raises CancelledError
    soon after another thread has set `stopped`. Source: CHNS, section 2.
    """
    speakers, per_speaker = len(reader.corpus.speakers), sampler.utterances_per_speaker
    batches = voiceprint_batches(
        reader, per_speaker=per_speaker, seed=seed, round=round, samples=samples,
        rows=embedder.rows, held=embedder.held,
    )  # fmt: skip
    if stopped is not None:
        batches = _until(stopped, batches)
    count = speakers * per_speaker
    embeddings = embed_crops(embedder, variables, batches, count, samples, "embedding speakers")
    voiceprints = kmeans.voiceprints(
        embeddings.reshape(speakers, per_speaker, -1), normalise_first=sampler.normalise_first
    )
    table = kmeans.cluster(
        voiceprints, sampler.clusters, seed=seed, round=round, kmeans=sampler.kmeans
    )
    if sampler.cluster_by == "chance":
        table = clusters.by_chance(table, seed=seed, round=round)
    # Another version of a library, or another processor, may cluster otherwise.
    return SpeakerClusters(*processes.broadcast((table.cluster, table.centroids))), voiceprints


def _until(stopped: Event, batches: Iterator) -> Iterator:
    for batch in batches:
        if stopped.is_set():
            raise CancelledError
        yield batch

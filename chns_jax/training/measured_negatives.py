"""Cosines of the negatives in batches that are composed in different ways."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np

from chns_jax.common.vectors import unit
from chns_jax.config import Config
from chns_jax.corpus.reader import Reader
from chns_jax.embedding.embedder import Embedder
from chns_jax.sampling import negative_cosines
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.sampling.pipeline import training_batches

ROWS = 256


def negatives_of(
    embedder: Embedder,
    variables: dict[str, Any],
    reader: Reader,
    config: Config,
    table: SpeakerClusters | None,
) -> np.ndarray:
    """Cosines (pairs,) in a few batches past the last step, in inference mode; None: random."""
    seed, steps, rows = config.training.seed, config.training.steps, 2 * config.sampler.speakers
    batches = training_batches(
        reader, config.sampler, table, samples=config.crop_samples, seed=seed,
        first_step=steps, end_step=steps + max(1, ROWS // rows),
    )  # fmt: skip
    cosines = []
    with closing(batches):
        for step, batch in enumerate(batches, start=steps):
            parts = np.split(batch["audio"], range(embedder.rows, rows, embedder.rows))
            embedded = [
                embedder.crops(variables, embedder.own(part))[: len(part)] for part in parts
            ]
            z = unit(np.concatenate(embedded))
            of_batch = negative_cosines.negative_cosines(z, batch["labels"], seed=seed, step=step)
            cosines.append(of_batch)
    return np.concatenate(cosines)

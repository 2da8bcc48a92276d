"""The impostors of AS-norm, and what scores depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chns_jax.common import arrays
from chns_jax.common.errors import UserError
from chns_jax.common.files import replacing
from chns_jax.common.vectors import means
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.split import make_split
from chns_jax.embedding import cache as embedding_cache
from chns_jax.embedding.embedder import segment_samples
from chns_jax.embedding.model import Model, checkpoint_digest
from chns_jax.runs.folder import RunFolder
from chns_jax.scoring.norm import check_enough


@dataclass(frozen=True)
class Cohort:
    """Impostors for AS-norm."""

    embeddings: np.ndarray  # (n, d) L2-normalised, one for each speaker
    top: int  # how many of the nearest give the statistics
    made_of: str  # digest of the names of its utterances
    named: np.ndarray | None = None  # (n,) their names, where a folder was given for them


def describe(model: Model, segments: float | None, cohort: Cohort | None) -> dict[str, Any]:
    """What scores depend on besides the recordings: a calibration holds for these alone."""
    norm = cohort and {
        "kind": "as-norm",
        "speakers": len(cohort.embeddings),
        "top": cohort.top,
        "cohort": cohort.made_of,
    }
    return {"checkpoint": checkpoint_digest(model), "segments": segments, "norm": norm}


def make_cohort(
    model: Model,
    cache: str | Path,
    *,
    root: str | Path | None = None,
    top: int = 300,
    per_speaker: int = 5,
    segments: float | None = None,
) -> Cohort:
    """One embedding for each training speaker of the model, or for each speaker of folder `root`.

    It is the mean of those of `per_speaker` utterances, evenly spaced among the speaker's. Of fewer
    speakers than `top`, all give the statistics. Raises UserError when there is no such folder,
    or a single speaker.
    """
    if root is None and model.published:
        raise UserError(
            "whom a published model was trained on is not in its folder: --cohort DIR makes the "
            "cohort of another folder"
        )
    if root is None:
        data = dataclasses.replace(model.config.data, cache=str(cache))
        try:
            corpus = make_split(dataclasses.replace(model.config, data=data)).training
        except UserError as error:
            raise UserError(f"{error}; --cohort DIR makes the cohort of another folder") from error
    else:
        corpus = open_corpus(root, cache)
    check_enough(corpus.speakers, corpus.roots[0])
    utterances = corpus.evenly_spaced(per_speaker)
    segment = segment_samples(model.embedder, model.config.features.sample_rate, segments)
    embeddings = embedding_cache.embed(model, corpus, utterances, cache, segment=segment)
    names = "\n".join(corpus.names[row] for row in utterances.tolist())
    made_of = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
    embeddings = means(embeddings, corpus.speaker[utterances])
    named = None if root is None else corpus.speakers
    return Cohort(embeddings, min(top, len(embeddings)), made_of, named)


def save(run: Path, cohort: Cohort, made_by: dict[str, Any]) -> None:
    """Keep the cohort of a calibration in its run folder."""
    with replacing(_file(run, made_by), "wb") as file:
        np.savez(file, embeddings=cohort.embeddings)


def remove_others(run: Path, made_by: dict[str, Any]) -> None:
    """Remove the cohorts of earlier calibrations."""
    for path in RunFolder(run).cohorts():
        if path != _file(run, made_by):
            path.unlink(missing_ok=True)


def load(run: Path, made_by: dict[str, Any], dimension: int) -> Cohort | None:
    """The cohort that `save` kept, of embeddings (n, d); None for scores without one. Raises
    UserError when it is gone or damaged."""
    norm, path = made_by["norm"], _file(run, made_by)
    if norm is None:
        return None
    try:
        embeddings = arrays.need(arrays.load(path), "embeddings", "f", 2)
    except (OSError, arrays.Damaged) as error:
        raise UserError(f"the cohort {path} cannot be read: calibrate again") from error
    if embeddings.shape != (norm["speakers"], dimension) or not np.isfinite(embeddings).all():
        raise UserError(f"the cohort {path} is not that of the calibration: calibrate again")
    return Cohort(embeddings, norm["top"], norm["cohort"])


def _file(run: Path, made_by: dict[str, Any]) -> Path:
    about = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
    return RunFolder(run).cohort(about)

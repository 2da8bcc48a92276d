"""EER and minDCF of an encoder on trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chns_jax.embedding import Encode, embed_utterances, embed_whole
from chns_jax.sampling.pipeline import Reader
from chns_jax.scoring import metrics
from chns_jax.scoring.trials import Trials


def validate(
    encode: Encode,
    variables: dict[str, Any],
    reader: Reader,
    trials: Trials,
    *,
    samples: int,
) -> dict[str, Any]:
    """{"eer", "min_dcf": {"0.01", "0.05"}, "targets", "nontargets"} of cosine scores.

    Arguments and errors as in `score`.
    """
    (scores,) = score(encode, variables, reader, [trials], samples=samples)
    return summary(trials.labels, scores)


def summary(labels: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """What `validate` returns, of scores (m,)."""
    rates = metrics.error_rates(labels, scores)
    return {
        "eer": metrics.eer_of(rates),
        "min_dcf": {f"{p:g}": metrics.min_dcf_of(rates, p) for p in metrics.P_TARGETS},
        "targets": int(np.count_nonzero(labels)),
        "nontargets": int(np.count_nonzero(~labels)),
    }


def score(
    encode: Encode,
    variables: dict[str, Any],
    reader: Reader,
    lists: Sequence[Trials],
    *,
    samples: int | None,
) -> list[np.ndarray]:
    """Cosine scores (m,) of each of several trial lists; an utterance of several is embedded once.

    The trials are of the reader's corpus. `samples` is the length of the segments whose embeddings
    are averaged; without it, utterances are embedded whole. Raises UserError
    when one of their files cannot be read.
    """
    utterances = np.unique(np.concatenate([trials.utterances() for trials in lists]))
    if samples is None:
        embeddings = embed_whole(encode, variables, reader, utterances)
    else:
        embeddings = embed_utterances(encode, variables, reader, utterances, samples=samples)
    return [trials.scores(utterances, embeddings) for trials in lists]

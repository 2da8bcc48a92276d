"""EER and minDCF of an encoder on trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from chns_jax.corpus.reader import Reader
from chns_jax.corpus.trials import Trials, utterances_of
from chns_jax.embedding.embedder import Embedder
from chns_jax.embedding.utterances import embed_utterances
from chns_jax.scoring import metrics


def validate(
    embedder: Embedder,
    variables: dict[str, Any],
    reader: Reader,
    trials: Mapping[str, Trials],
    *,
    samples: int,
) -> dict[str, dict[str, Any]]:
    """{"eer", "min_dcf": {"0.01", "0.05"}, "targets", "nontargets"} of each list's cosine scores.

    The trials are of the reader's corpus, whose utterances are embedded once. `samples` is the
    length of the segments whose embeddings are averaged. Raises UserError when one of their files
    cannot be read.
    """
    utterances = utterances_of(trials.values())
    embeddings = embed_utterances(embedder, variables, reader, utterances, samples=samples)
    return {
        name: _error_rates(some.labels, some.scores(utterances, embeddings))
        for name, some in trials.items()
    }


def scalars(results: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """What is logged of a validation: the first list's rates, and of several each one's."""
    logged = _scalars(next(iter(results.values())), "")
    if len(results) > 1:
        for name, result in results.items():
            logged |= _scalars(result, f"/{name}")
    return logged


def in_words(results: Mapping[str, dict[str, Any]]) -> str:
    """The EER of each list, which is named where there are several."""
    eers = {name: f"{100 * result['eer']:.2f} %" for name, result in results.items()}
    if len(eers) == 1:
        return f"EER {next(iter(eers.values()))}"
    return "EER " + ", ".join(f"{name} {eer}" for name, eer in eers.items())


def _error_rates(labels: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    rates = metrics.error_rates(labels, scores)
    return {
        "eer": metrics.eer_of(rates),
        "min_dcf": {f"{p:g}": metrics.min_dcf_of(rates, p) for p in metrics.P_TARGETS},
        "targets": int(np.count_nonzero(labels)),
        "nontargets": int(np.count_nonzero(~labels)),
    }


def _scalars(result: dict[str, Any], ending: str) -> dict[str, float]:
    costs = {f"min_dcf_{p}{ending}": cost for p, cost in result["min_dcf"].items()}
    return {f"eer{ending}": result["eer"], **costs}

"""EER and minDCF of an encoder on trials."""

from __future__ import annotations

from typing import Any

import numpy as np

from chns_jax.corpus.reader import Reader
from chns_jax.corpus.trials import Trials
from chns_jax.embedding.embedder import Embedder
from chns_jax.embedding.utterances import embed_utterances
from chns_jax.scoring import metrics


def validate(
    embedder: Embedder,
    variables: dict[str, Any],
    reader: Reader,
    trials: Trials,
    *,
    samples: int,
) -> dict[str, Any]:
    """{"eer", "min_dcf": {"0.01", "0.05"}, "targets", "nontargets"} of cosine scores.

    The trials are of the reader's corpus. `samples` is the length of the segments whose embeddings
    are averaged. Raises UserError when one of their files cannot be read.
    """
    utterances = trials.utterances()
    embeddings = embed_utterances(embedder, variables, reader, utterances, samples=samples)
    rates = metrics.error_rates(trials.labels, trials.scores(utterances, embeddings))
    return {
        "eer": metrics.eer_of(rates),
        "min_dcf": {f"{p:g}": metrics.min_dcf_of(rates, p) for p in metrics.P_TARGETS},
        "targets": int(np.count_nonzero(trials.labels)),
        "nontargets": int(np.count_nonzero(~trials.labels)),
    }

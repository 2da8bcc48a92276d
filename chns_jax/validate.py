"""EER and minDCF of an encoder on trials."""

from __future__ import annotations

from typing import Any

import numpy as np

from chns_jax.embedding import Encode, embed_utterances
from chns_jax.sampling.pipeline import Reader
from chns_jax.scoring import metrics
from chns_jax.scoring.trials import Trials

P_TARGETS = (0.01, 0.05)


def validate(
    encode: Encode,
    variables: dict[str, Any],
    reader: Reader,
    trials: Trials,
    *,
    samples: int,
) -> dict[str, Any]:
    """{"eer", "min_dcf": {"0.01", "0.05"}, "targets", "nontargets"} of cosine scores.

    `trials` are of the reader's corpus; `samples` is the length of a segment. Raises UserError when
    one of their files cannot be read.
    """
    utterances = trials.utterances()
    embeddings = embed_utterances(encode, variables, reader, utterances, samples=samples)
    scores = trials.scores(utterances, embeddings)
    return {
        "eer": metrics.eer(trials.labels, scores),
        "min_dcf": {f"{p:g}": metrics.min_dcf(trials.labels, scores, p) for p in P_TARGETS},
        "targets": int(np.count_nonzero(trials.labels)),
        "nontargets": int(np.count_nonzero(~trials.labels)),
    }

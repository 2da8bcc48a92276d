"""AS-norm: scores relative to those of the impostors that sound most alike.

Source: Matejka et al., "Analysis of score normalization in multilingual speaker recognition",
Interspeech 2017, equations 6 and 7 (adaptive S-norm 1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from chns_jax.common.errors import UserError

BLOCK_ELEMENTS = 2**24  # scores at once, 64 MiB
SMALLEST_DEVIATION = 1e-6  # of float32 cosines


class Statistics(NamedTuple):
    """Of the highest scores of embeddings (v, d) against a cohort."""

    mean: np.ndarray  # (v,)
    deviation: np.ndarray  # (v,)


def statistics(embeddings: np.ndarray, cohort: np.ndarray, top: int) -> Statistics:
    """Mean and standard deviation of the `top` highest cosines of each embedding (v, d).

    All embeddings are L2-normalised; the cohort (n, d) holds `top` at least. Raises UserError when
    they score alike.
    """
    rows = max(1, BLOCK_ELEMENTS // len(cohort))
    mean, deviation = np.empty((2, len(embeddings)))
    for start in range(0, len(embeddings), rows):
        block = slice(start, start + rows)
        scores = embeddings[block] @ cohort.T
        scores.partition(len(cohort) - top, axis=1)
        highest = scores[:, len(cohort) - top :].astype(np.float64)
        mean[block], deviation[block] = highest.mean(axis=1), highest.std(axis=1)
    if not (deviation > SMALLEST_DEVIATION).all():
        raise UserError(
            f"the {top} nearest speakers of the cohort score alike, so that there is no AS-norm: "
            "give a cohort of more speakers or a larger --cohort_size"
        )
    return Statistics(mean, deviation)


def as_norm(scores: np.ndarray, enrolment: Statistics, test: Statistics) -> np.ndarray:
    """Normalised scores (m,) of trials with these scores, and statistics of their two sides."""
    by_enrolment = (scores - enrolment.mean) / enrolment.deviation
    by_test = (scores - test.mean) / test.deviation
    return (by_enrolment + by_test) / 2


def check_apart(of_trials: np.ndarray, cohort: np.ndarray) -> None:
    """Raises UserError when impostors of AS-norm are speakers of the trials, by their names."""
    both = of_trials[np.isin(of_trials, cohort)]
    if len(both):
        raise UserError(
            f"--cohort holds {len(both)} of the {len(of_trials)} speakers of the trials, {both[0]} "
            "first, whose scores it would normalise by themselves: give a folder of others"
        )


def check_enough(cohort: np.ndarray, root: str) -> None:
    """Raises UserError for a cohort of folder `root` whose impostors (n,) are fewer than two."""
    if len(cohort) < 2:
        raise UserError(f"{root} has a single speaker: AS-norm needs a cohort of more")

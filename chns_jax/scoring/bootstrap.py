"""95 % intervals of a trial list, by resampling its speakers.

Trials that share a speaker are not independent, so that resampling trials gives intervals that are
too narrow. Drawing whole speakers keeps their trials together. Sources: Bolle, Ratha & Pankanti,
"Error analysis of pattern recognition systems: the subsets bootstrap" (2004), for targets; Snijders
& Borgatti, "Non-parametric standard errors and tests for network statistics" (1999), for pairs of
speakers: a pair counts as often as the product of the draws of its two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.progress import progress_bar
from chns_jax.common.randomness import Purpose, generator

LEVEL = 0.95
FEWEST_REPLICATES = 20  # with fewer, none lies beyond the ends of an interval of 95 %
MOST_REPLICATES = 1_000_000
WHOLE = (slice(None),)  # a list of one part
# The draws of fewer speakers are nearly always the same few, whose spread says nothing.
FEWEST_SPEAKERS = 5


def check_replicates(count: int) -> None:
    """Raises UserError for a number of replicates that makes no interval."""
    if count < FEWEST_REPLICATES:
        raise UserError(
            f"--replicates {count} are too few for an interval: give {FEWEST_REPLICATES} or more"
        )
    if count > MOST_REPLICATES:
        raise UserError(
            f"--replicates {count} are more than any interval needs: give {MOST_REPLICATES:,} or "
            "fewer"
        )


def speaker_weights(
    labels: np.ndarray,
    enrolment: np.ndarray,
    test: np.ndarray,
    speakers: int,
    *,
    seed: int,
    replicate: int,
    parts: Sequence[slice | np.ndarray] = WHOLE,
) -> np.ndarray:
    """How often each trial (m,) counts in a replicate: whole numbers, a function of its arguments.

    As many speakers as there are, are drawn with replacement. `enrolment` and `test` (m,) are the
    speakers of the trials, 0 to `speakers` - 1; a trial of one speaker counts as often as the
    speaker is drawn, a trial of two as the product of their draws. Drawn again until there are
    target and impostor trials, which `labels` (m,) bool tell apart, in each of the `parts` of the
    list.
    """
    rng = generator(seed, Purpose.BOOTSTRAP, replicate)
    while True:
        draws = np.bincount(rng.integers(speakers, size=speakers), minlength=speakers).astype(float)
        weights = draws[enrolment] * np.where(enrolment == test, 1.0, draws[test])
        of_parts = [(weights[part], labels[part]) for part in parts]
        if all(0 < w.sum(where=targets) < w.sum() for w, targets in of_parts):
            return weights


def replicates(
    statistic: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    enrolment: np.ndarray,
    test: np.ndarray,
    *,
    seed: int,
    count: int,
    parts: Sequence[slice | np.ndarray] = WHOLE,
) -> np.ndarray:
    """`statistic` of the trial weights of each replicate, (count, ...).

    Labels and speakers of the trials are as in `speaker_weights`, but their speakers may have any
    numbers. Statistics of one seed and one list are paired: replicate i draws the same speakers.
    Raises ValueError when there are no target or no impostor trials, in one of the `parts` even.
    """
    labels = np.asarray(labels).astype(bool)
    if any(labels[part].all() or not labels[part].any() for part in parts):
        raise ValueError("a bootstrap needs both target and impostor trials")
    names, speaker = np.unique(np.stack([enrolment, test]), return_inverse=True)
    enrolment, test = speaker.reshape(2, -1)
    return np.stack(
        [
            statistic(
                speaker_weights(
                    labels, enrolment, test, len(names), seed=seed, replicate=i, parts=parts
                )
            )
            for i in progress_bar(
                range(count), what="resampling speakers", unit="replicate", total=count
            )
        ]
    )


def interval(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the 95 % percentile interval of replicates (r, ...).

    With few speakers it is a little too narrow: on simulated lists of 12 to 80 it held the true EER
    90 to 92 % of the time, where resampling trials held it 58 to 89 %.
    """
    tail = (1 - LEVEL) / 2
    # No interpolation: a relative change may be infinite.
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0, method="inverted_cdf")
    return np.asarray(low), np.asarray(high)

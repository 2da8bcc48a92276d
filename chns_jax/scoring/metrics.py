"""EER, detection costs and the cost of log-likelihood ratios.

Everywhere `labels` (n,) are 1 for target trials and 0 for others; `scores` (n,) are higher for the
same speaker; `weights` (n,), non-negative, say how often each trial counts: once when not given.
ValueError is raised when the trials of either kind are missing or weigh nothing, or a score is not
a number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

P_TARGETS = (0.01, 0.05)  # of the minDCFs that are reported
MISSING = "error rates need both target and impostor trials"


class Ranking(NamedTuple):
    """Trials in the order in which a falling threshold accepts them."""

    order: np.ndarray  # (n,) the trials, by falling score
    labels: np.ndarray  # (n,) bool, in that order
    accepted: np.ndarray  # (m,) place of the last trial that each threshold accepts

    def of_thresholds(self, values: np.ndarray) -> np.ndarray:
        """Sums (..., m) of values (..., n), in `order`, of what each threshold accepts anew."""
        return np.add.reduceat(values, np.append(0, self.accepted[:-1] + 1), axis=-1)


class Rates(NamedTuple):
    """Error rates at every threshold, from accepting nothing to accepting all."""

    false_alarm: np.ndarray  # (m + 1,) rising from 0 to 1
    miss: np.ndarray  # (m + 1,) falling from 1 to 0


def rank(labels: np.ndarray, scores: np.ndarray) -> Ranking:
    """The order of trials, made once for `rates` with many weights.

    Trials of equal score are accepted together. Also raises ValueError for infinite scores.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores)
    if not np.isfinite(scores).all():
        raise ValueError("error rates need finite scores")
    order = np.argsort(-scores)
    falling = scores[order]
    accepted = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(scores) - 1)
    return Ranking(order, labels[order], accepted)


def corners(ranking: Ranking) -> Ranking:
    """Only the thresholds at which the ROC may turn: those that accept a target, and the ones
    before them.

    Whatever the weights, `eer_of` and `min_dcf_of` are those of all thresholds, at a fraction of
    the cost where targets are few: between these points there are false alarms alone, so that the
    ROC is straight, and the cost rises.
    """
    targets = np.cumsum(ranking.labels)[ranking.accepted]
    turns = np.diff(targets, prepend=0) > 0
    return ranking._replace(accepted=ranking.accepted[turns | np.append(turns[1:], True)])


def rates(ranking: Ranking, weights: np.ndarray | None = None) -> Rates:
    """False-alarm and miss rate at every threshold."""
    weights = _in_order(ranking, weights)
    hits = weights * ranking.labels
    false_alarms = np.cumsum(ranking.of_thresholds(weights - hits))
    hits = np.cumsum(ranking.of_thresholds(hits))
    if not (hits[-1] > 0 and false_alarms[-1] > 0):
        raise ValueError(MISSING)
    false_alarm_rate = np.append(0.0, false_alarms / false_alarms[-1])
    return Rates(false_alarm_rate, np.append(1.0, 1.0 - hits / hits[-1]))


def error_rates(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Rates:
    """False-alarm and miss rate at every threshold."""
    return rates(rank(labels, scores), weights)


def eer_of(rates: Rates) -> float:
    """Equal error rate, a fraction: where the ROC, its points joined by lines, has both alike."""
    false_alarm, miss = rates
    above = np.argmax(false_alarm >= miss)  # never 0: there the rates are 0 and 1
    gap_before = miss[above - 1] - false_alarm[above - 1]
    gap_after = false_alarm[above] - miss[above]
    share = gap_before / (gap_before + gap_after)
    return float(false_alarm[above - 1] + share * (false_alarm[above] - false_alarm[above - 1]))


def min_dcf_of(rates: Rates, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Smallest detection cost over all thresholds, divided by that of a system that never looks.

    Source: NIST SRE evaluation plans.
    """
    return float(_cost(rates.false_alarm, rates.miss, p_target, c_miss, c_fa).min())


def eer(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """`eer_of` the error rates of these trials."""
    return eer_of(error_rates(labels, scores, weights))


def min_dcf(
    labels: np.ndarray,
    scores: np.ndarray,
    p_target: float,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
    weights: np.ndarray | None = None,
) -> float:
    """`min_dcf_of` the error rates of these trials."""
    return min_dcf_of(error_rates(labels, scores, weights), p_target, c_miss, c_fa)


def act_dcf(
    labels: np.ndarray,
    llrs: np.ndarray,
    p_target: float,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
    weights: np.ndarray | None = None,
) -> float:
    """Detection cost of accepting what Bayes' rule accepts, normalised as `min_dcf_of`.

    `llrs` (n,) are log-likelihood ratios (natural logarithm), infinite ones among them. Source:
    NIST SRE evaluation plans.
    """
    targets, impostors = _shares_of_llrs(labels, llrs, weights)
    accepted = np.asarray(llrs) >= np.log(c_fa * (1 - p_target) / (c_miss * p_target))
    return float(_cost(impostors @ accepted, targets @ ~accepted, p_target, c_miss, c_fa))


def cllr(labels: np.ndarray, llrs: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Cost of log-likelihood ratios, in bits: 0 for a perfect system, 1 for one that knows nothing.

    `llrs` as in `act_dcf`. Source: Bruemmer & du Preez, "Application-independent evaluation of
    speaker detection", Computer Speech & Language 20 (2006).
    """
    return _cllr(*_shares_of_llrs(labels, llrs, weights), np.asarray(llrs, float))


def min_cllr_of(ranking: Ranking, weights: np.ndarray | None = None) -> float:
    """Smallest `cllr` of all maps of the scores to log-likelihood ratios that keep their order.

    The map is found by pooling adjacent violators. Source: as `cllr`.
    """
    from sklearn.isotonic import isotonic_regression

    sides = np.stack(_shares(ranking.labels, _in_order(ranking, weights)))
    # Both kinds weigh 1 altogether, so that the odds of the posterior are the likelihood ratio.
    sides = ranking.of_thresholds(sides)
    sides = sides[:, sides.any(axis=0)]
    posterior = sides[0] / sides.sum(axis=0)
    # Neighbours of one posterior keep one: pooled first, as most are, they cost nothing below.
    sides = np.add.reduceat(sides, np.flatnonzero(np.diff(posterior, prepend=-1.0)), axis=1)
    targets, impostors = sides
    total = targets + impostors
    posterior = isotonic_regression(targets / total, sample_weight=total, increasing=False)
    posterior = np.clip(posterior, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return _cllr(targets, impostors, np.log(posterior) - np.log1p(-posterior))


def min_cllr(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """`min_cllr_of` these trials."""
    return min_cllr_of(rank(labels, scores), weights)


def _in_order(ranking: Ranking, weights: np.ndarray | None) -> np.ndarray:
    """The weights of ranked trials, (n,)."""
    order = ranking.order
    return np.ones(len(order)) if weights is None else np.asarray(weights, float).take(order)


def _shares(labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each trial contributes to a mean over the targets, and to one over the others, (n,)."""
    targets, impostors = weights * labels, weights * ~labels
    if not (targets.any() and impostors.any()):
        raise ValueError(MISSING)
    return targets / targets.sum(), impostors / impostors.sum()


def _shares_of_llrs(
    labels: np.ndarray, llrs: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    if np.isnan(llrs).any():
        raise ValueError("error rates need scores that are numbers")
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    return _shares(np.asarray(labels).astype(bool), weights)


def _cllr(targets: np.ndarray, impostors: np.ndarray, llrs: np.ndarray) -> float:
    target, impostor = targets > 0, impostors > 0  # what weighs nothing may cost infinitely much
    nats = targets[target] @ np.logaddexp(0.0, -llrs[target])
    nats += impostors[impostor] @ np.logaddexp(0.0, llrs[impostor])
    return float(nats / (2 * np.log(2)))


def _cost(false_alarm, miss, p_target: float, c_miss: float, c_fa: float):
    cost = c_miss * p_target * miss + c_fa * (1 - p_target) * false_alarm
    return cost / min(c_miss * p_target, c_fa * (1 - p_target))

"""EER and minDCF."""

from __future__ import annotations

import numpy as np


def error_rates(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False-alarm and miss rate at every threshold, from accepting nothing to accepting all.

    `labels` (n,) are 1 for target trials and 0 for others, `scores` (n,) are higher for the same
    speaker. Trials of equal score are accepted together. Raises ValueError when there is no
    target, no non-target, or a score that is not finite.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores)
    if labels.all() or not labels.any():
        raise ValueError("error rates need both target and non-target trials")
    if not np.isfinite(scores).all():
        raise ValueError("error rates need finite scores")
    order = np.argsort(-scores, kind="stable")
    accepted = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(labels[order])[accepted]
    false_alarms = accepted + 1 - hits
    false_alarm_rate = np.concatenate([[0.0], false_alarms / false_alarms[-1]])
    miss_rate = np.concatenate([[1.0], 1.0 - hits / hits[-1]])
    return false_alarm_rate, miss_rate


def eer(labels: np.ndarray, scores: np.ndarray) -> float:
    """Equal error rate, a fraction: where the ROC, its points joined by lines, has both alike.

    Arguments and errors as in `error_rates`.
    """
    false_alarm, miss = error_rates(labels, scores)
    above = np.argmax(false_alarm >= miss)  # never 0: there the rates are 0 and 1
    gap_before = miss[above - 1] - false_alarm[above - 1]
    gap_after = false_alarm[above] - miss[above]
    share = gap_before / (gap_before + gap_after)
    return float(false_alarm[above - 1] + share * (false_alarm[above] - false_alarm[above - 1]))


def min_dcf(
    labels: np.ndarray,
    scores: np.ndarray,
    p_target: float,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> float:
    """Smallest detection cost over all thresholds, divided by that of a system that never looks.

    Source: NIST SRE evaluation plans. Arguments and errors as in `error_rates`.
    """
    false_alarm, miss = error_rates(labels, scores)
    cost = c_miss * p_target * miss + c_fa * (1 - p_target) * false_alarm
    return float(cost.min() / min(c_miss * p_target, c_fa * (1 - p_target)))

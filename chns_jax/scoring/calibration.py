"""Calibration: scores -> log-likelihood ratios, and the threshold that means "the same speaker".

An affine map by prior-weighted logistic regression. Source: Bruemmer & de Villiers, "The BOSARIS
toolkit user guide" (2011), section 3; quality terms as in its "quality measure functions".
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.files import replacing
from chns_jax.scoring import metrics

FOLDS = 5
LARGEST_FILE = 1 << 20  # bytes; calibrations take a thousand
SAME = 1e-6  # of the largest value: what rounding alone makes
FEWEST_SPEAKERS = 2 * FOLDS


@dataclass(frozen=True)
class Calibration:
    """log-likelihood ratio = scale * score + offset + the sum of quality weights * qualities."""

    scale: float
    offset: float
    quality: dict[str, float]  # weight of each quality
    threshold: float  # accept log-likelihood ratios from here on
    set_for: dict[str, float]  # {"false_accept_rate": r} or {"prior": p}
    scores: dict[str, Any]  # what scores it is for: checkpoint, segments, norm
    speakers: int  # it was made from
    targets: int
    nontargets: int
    cllr: float  # on speakers that each fold left out
    min_cllr: float  # of the log-likelihood ratios of all trials

    def log_likelihood_ratios(
        self, scores: np.ndarray, qualities: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """(m,) natural logarithms, of scores (m,) with the qualities (m,) that `quality` names."""
        terms = [weight * qualities[name] for name, weight in self.quality.items()]
        return self.scale * scores + self.offset + sum(terms)

    def mismatch(self, scores: Mapping[str, Any]) -> str | None:
        """Why it is not for scores that are made so; None when it is."""
        if self.scores["checkpoint"] != scores["checkpoint"]:
            return "is for another checkpoint"
        if self.scores["segments"] != scores["segments"]:
            seconds = self.scores["segments"]
            return "is for " + (
                "whole utterances" if seconds is None else f"--segments {seconds:g}"
            )
        if self.scores["norm"] != scores["norm"]:
            norm = self.scores["norm"]
            if norm is None:
                return "is for scores without --norm"
            return f"is for --norm {norm['kind']} by {norm['top']} of {norm['speakers']} speakers"
        return None


def calibrate(
    labels: np.ndarray,
    scores: np.ndarray,
    qualities: Mapping[str, np.ndarray],
    enrolment: np.ndarray,
    test: np.ndarray,
    *,
    made_by: dict[str, Any],
    false_accept_rate: float | None = None,
    prior: float | None = None,
) -> Calibration:
    """The calibration of trials (m,) whose speakers are `enrolment` and `test` (m,).

    The threshold is set for a false-accept rate of these trials, or for a prior of the target and
    costs that are equal, by Bayes' rule; either of them is given. The prior also weighs the
    regression, 0.5 when not given. Raises UserError for fewer than 10 speakers, for trials
    that are told apart without an error, for a quality that does not vary, and for scores that fall
    where speakers are the same.
    """
    labels = np.asarray(labels).astype(bool)
    count = len(np.union1d(enrolment, test))
    if count < FEWEST_SPEAKERS:
        raise UserError(
            f"the trials are of {count} speakers: a calibration needs {FEWEST_SPEAKERS} at least"
        )
    for name, values in qualities.items():
        if np.std(values) <= SAME * np.abs(values).max():
            raise UserError(
                f"{name} is the same in all trials, which cannot say what it weighs: leave it out, "
                "or give recordings that differ in it"
            )
    features = np.stack([scores, *qualities.values()], axis=1).astype(np.float64)
    weight = 0.5 if prior is None else prior
    scale, *of_quality, offset = fit(labels, features, weight).tolist()
    if scale <= 0:
        raise UserError(
            "higher scores do not mean the same speaker in these trials: train the model, or "
            "correct the labels of the list"
        )
    llrs = features @ [scale, *of_quality] + offset
    if prior is not None:
        threshold, set_for = float(-_log_odds(prior)), {"prior": prior}
    elif false_accept_rate is not None:
        threshold = threshold_for(llrs[~labels], false_accept_rate)
        set_for = {"false_accept_rate": false_accept_rate}
    else:
        raise ValueError("a threshold is set for a false-accept rate or a prior")
    held_out = cross_validated(labels, features, enrolment, test, weight)
    return Calibration(
        scale=scale,
        offset=offset,
        quality=dict(zip(qualities, of_quality, strict=True)),
        threshold=threshold,
        set_for=set_for,
        scores=made_by,
        speakers=count,
        targets=int(labels.sum()),
        nontargets=int((~labels).sum()),
        cllr=metrics.cllr(labels, held_out),
        min_cllr=metrics.min_cllr(labels, llrs),
    )


def fit(labels: np.ndarray, features: np.ndarray, prior: float) -> np.ndarray:
    """Weights of features (m, q) and the offset, (q + 1,), of log-likelihood ratios.

    They minimise the prior-weighted cross-entropy of targets, `labels` (m,) bool, without a
    penalty. Raises UserError when there is no minimum, or not both kinds of trials.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if labels.all() or not labels.any():
        raise UserError(f"a calibration cannot be fitted: {metrics.MISSING}")
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    if not (deviation > 0).all():
        raise UserError(
            "a score or quality is the same in all trials: leave the quality out or give other "
            "trials"
        )
    standard = (features - mean) / deviation
    weights = np.where(labels, prior / labels.sum(), (1 - prior) / (~labels).sum())
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-9, max_iter=200)
    with warnings.catch_warnings():
        # Of trials that are told apart, which are refused below, the weights grow without end.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        model.fit(standard, labels, sample_weight=weights * len(labels))
    logits = model.decision_function(standard)
    if not np.isfinite(logits).all() or logits[labels].min() > logits[~labels].max():
        raise UserError(
            "the trials are told apart without an error, so that no calibration fits them best: "
            "give more or harder trials"
        )
    coefficients = model.coef_[0] / deviation
    offset = np.ravel(model.intercept_)[0] - coefficients @ mean - _log_odds(prior)
    return np.append(coefficients, offset)


def cross_validated(
    labels: np.ndarray,
    features: np.ndarray,
    enrolment: np.ndarray,
    test: np.ndarray,
    prior: float,
) -> np.ndarray:
    """Log-likelihood ratios (m,) of each trial by a calibration that heard neither of its speakers.

    The speakers are divided into 5 folds; the trials between two folds are those of a calibration
    fitted to the trials within the others.
    """
    speakers, speaker = np.unique(np.stack([enrolment, test]), return_inverse=True)
    first, second = np.sort(speaker.reshape(2, -1) % FOLDS, axis=0)
    llrs = np.empty(len(labels))
    for one, other in combinations_with_replacement(range(FOLDS), 2):
        held_out = (first == one) & (second == other)
        kept = ~np.isin(first, (one, other)) & ~np.isin(second, (one, other))
        if held_out.any():
            *weights, offset = fit(labels[kept], features[kept], prior)
            llrs[held_out] = features[held_out] @ weights + offset
    return llrs


def threshold_for(impostors: np.ndarray, false_accept_rate: float) -> float:
    """The lowest threshold that accepts this share of impostor scores (n,) at most.

    Of equal scores all are accepted or none. Raises UserError when the rate is less than one trial.
    """
    allowed = int(false_accept_rate * len(impostors) + 1e-9)
    if allowed < 1:
        raise UserError(
            f"a false-accept rate of {false_accept_rate:g} is less than one of "
            f"{len(impostors)} impostor trials: give more trials or a higher rate"
        )
    falling = np.sort(impostors)[::-1]
    return float(np.nextafter(falling[allowed], np.inf))


def save(path: Path, calibration: Calibration) -> None:
    """Write it as JSON, complete or not at all."""
    with replacing(path) as file:
        json.dump(dataclasses.asdict(calibration), file, indent=1)
        file.write("\n")


def load(path: Path) -> Calibration | None:
    """The calibration of a run, if it has one. Raises UserError when it is damaged."""
    damaged = UserError(
        f"{path} is not what chns_jax.calibrate writes: remove it and calibrate again"
    )
    try:
        if path.exists() and not path.is_file():  # a pipe or a device might never end
            raise damaged
        if path.stat().st_size > LARGEST_FILE:
            raise damaged
        return from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise damaged from error


def from_json(text: str) -> Calibration:
    """The calibration that was written as JSON. Raises ValueError when it is damaged."""
    try:
        made = Calibration(**json.loads(text))
        if _is_whole(made):
            return made
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError("its values are not such as a calibration has") from error
    raise ValueError("its values are not such as a calibration has")


def _is_whole(made: Calibration) -> bool:
    """Whether its values are such as `calibrate` makes them. Raises KeyError, TypeError,
    AttributeError or OverflowError for some that are not."""
    weights, scores, norm = made.quality, made.scores, made.scores["norm"]
    numbers = [made.scale, made.offset, made.threshold, *weights.values(), *made.set_for.values()]
    counts = [made.speakers, made.targets, made.nontargets]
    if norm is not None:
        counts += [norm["top"], norm["speakers"]]
    of_norm = norm is None or (
        norm.keys() >= {"kind", "cohort"} and norm["top"] <= norm["speakers"]
    )
    segments = scores["segments"]
    return (
        all(_is_number(number) for number in numbers)
        and made.scale > 0
        and all(isinstance(count, int) and count > 0 for count in counts)
        and all(isinstance(cost, int | float) for cost in (made.cllr, made.min_cllr))
        and len(made.set_for) == 1
        and weights.keys() <= {"duration", *(() if norm is None else ("cohort_mean",))}
        and "checkpoint" in scores
        and (segments is None or (_is_number(segments) and segments > 0))
        and of_norm
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _log_odds(p: float) -> float:
    return np.log(p) - np.log1p(-p)

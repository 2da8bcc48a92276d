import dataclasses
import json

import numpy as np
import pytest

from chns_jax.common.errors import UserError
from chns_jax.corpus import trials
from chns_jax.corpus.audio import read_whole
from chns_jax.scoring import calibration, metrics
from chns_jax.scoring.calibration import calibrate, cross_validated, fit, threshold_for
from chns_jax.scoring.mfcc_baseline import mfcc_statistics

MADE_BY = {"checkpoint": "c", "segments": None, "norm": None}


def simulated(seed=0, speakers=20, each=4):
    """Labels, cosines, durations and speakers of all pairs of utterances of simulated speakers."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(speakers), each)
    x = rng.normal(size=(speakers, 8))[owner] + 1.1 * rng.normal(size=(len(owner), 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    first, second = np.triu_indices(len(owner), k=1)
    enrolment, test = owner[first], owner[second]
    scores = np.sum(x[first] * x[second], axis=1)
    return enrolment == test, scores, rng.normal(1, 0.5, len(scores)), enrolment, test


def test_a_quality_that_does_not_vary_is_refused():
    labels, scores, _, enrolment, test = simulated()
    same = {"duration": np.full(len(scores), np.log(3.0)) + 1e-12 * scores}
    with pytest.raises(UserError, match="^duration is the same in all trials"):
        calibrate(labels, scores, same, enrolment, test, prior=0.5, made_by=MADE_BY)


def newton(labels, features, prior, steps=60):
    """The minimum of the prior-weighted loss, by its definition, with a damped Newton."""
    x = np.column_stack([features, np.ones(len(labels))])
    sign = np.where(labels, 1.0, -1.0)
    weights = np.where(labels, prior / labels.sum(), (1 - prior) / (~labels).sum())
    tau = np.log(prior / (1 - prior))

    def loss(w):
        return weights @ np.logaddexp(0, -sign * (x @ w + tau))

    w = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-(x @ w + tau)))
        gradient = x.T @ (weights * (p - labels))
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x
        move, size = np.linalg.solve(hessian, gradient), 1.0
        while loss(w - size * move) > loss(w) and size > 1e-9:
            size /= 2
        w = w - size * move
    return w


@pytest.mark.parametrize("prior", [0.5, 0.01])
def test_the_fit_is_the_minimum_of_the_prior_weighted_loss(prior):
    labels, scores, duration, _, _ = simulated()
    for features in (scores[:, None], np.column_stack([scores, duration])):
        np.testing.assert_allclose(
            fit(labels, features, prior), newton(labels, features, prior), rtol=1e-3, atol=1e-4
        )


def test_affine_scores_give_the_same_log_likelihood_ratios():
    labels, scores, duration, enrolment, test = simulated()
    made = [
        calibrate(labels, s, {"duration": d}, enrolment, test, made_by=MADE_BY, prior=0.1)
        for s, d in ((scores, duration), (40 * scores - 7, 3 - 0.2 * duration))
    ]
    ratios = [
        made[0].log_likelihood_ratios(scores, {"duration": duration}),
        made[1].log_likelihood_ratios(40 * scores - 7, {"duration": 3 - 0.2 * duration}),
    ]
    np.testing.assert_allclose(*ratios, atol=1e-4)
    assert made[0].threshold == made[1].threshold == pytest.approx(np.log(9))
    assert made[0].cllr == pytest.approx(made[1].cllr, abs=1e-5)


def test_what_is_stored_describes_the_trials(tmp_path):
    labels, scores, _, enrolment, test = simulated()
    made = calibrate(labels, scores, {}, enrolment, test, made_by=MADE_BY, false_accept_rate=0.02)
    llrs = made.scale * scores + made.offset
    assert (made.speakers, made.targets, made.nontargets) == (20, labels.sum(), (~labels).sum())
    accepted = np.mean(llrs[~labels] >= made.threshold)
    assert 0.02 - 1 / made.nontargets < accepted <= 0.02
    assert made.min_cllr == pytest.approx(metrics.min_cllr(labels, scores), abs=1e-9)
    assert made.min_cllr < metrics.cllr(labels, llrs) < made.cllr < 1
    calibration.save(tmp_path / "calibration.json", made)
    assert calibration.load(tmp_path / "calibration.json") == made
    assert json.loads((tmp_path / "calibration.json").read_text())["set_for"] == {
        "false_accept_rate": 0.02
    }
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]
    (tmp_path / "calibration.json").write_text('{"scale": 1}')
    with pytest.raises(UserError, match="is not what chns_jax.calibrate writes"):
        calibration.load(tmp_path / "calibration.json")


def test_no_speaker_calibrates_the_trials_it_is_in():
    labels, scores, _, enrolment, test = simulated()
    features = scores[:, None]
    held_out = cross_validated(labels, features, enrolment, test, 0.5)
    fold = lambda speaker: speaker % 5  # noqa: E731
    for trial in (0, 100, 1500, len(labels) - 1):
        folds = {fold(enrolment[trial]), fold(test[trial])}
        kept = [
            i
            for i in range(len(labels))
            if fold(enrolment[i]) not in folds and fold(test[i]) not in folds
        ]
        a, b = newton(labels[kept], features[kept], 0.5)
        assert held_out[trial] == pytest.approx(a * scores[trial] + b, abs=1e-3)


def test_thresholds_of_ties_and_of_few_trials():
    scores = np.array([5.0, 4.0, 4.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0])
    for rate, accepted in ((0.1, 1), (0.2, 1), (0.3, 1), (0.4, 4), (0.5, 5), (0.95, 7)):
        assert np.sum(scores >= threshold_for(scores, rate)) == accepted
    with pytest.raises(UserError, match="rate of 0.05 is less than one of 10 impostor trials"):
        threshold_for(scores, 0.05)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda y, s, e, t: (y, -s, e, t), "higher scores do not mean"),
        (lambda y, s, e, t: (y, s + 9 * y, e, t), "told apart without an error"),
        (lambda y, s, e, t: (y, 0 * s, e, t), "is the same in all trials"),
        (lambda y, s, e, t: (y, s, e % 9, t % 9), "are of 9 speakers: .* needs 10"),
        (lambda y, s, e, t: (y & (e % 5 == 0), s, e, t), "needs? both target"),
    ],
)  # fmt: skip
def test_trials_that_cannot_calibrate(change, message):
    labels, scores, _, enrolment, test = simulated()
    changed = change(labels, scores, enrolment, test)
    with pytest.raises(UserError, match=message):
        calibrate(changed[0], changed[1], {}, *changed[2:], made_by=MADE_BY, prior=0.5)


def test_what_a_calibration_is_for():
    labels, scores, _, enrolment, test = simulated()
    made = calibrate(labels, scores, {}, enrolment, test, made_by=MADE_BY, prior=0.5)
    assert made.mismatch(dict(MADE_BY)) is None
    norm = {"kind": "as-norm", "top": 3, "speakers": 9, "cohort": "x"}
    assert made.mismatch({**MADE_BY, "checkpoint": "d"}) == "is for another checkpoint"
    assert made.mismatch({**MADE_BY, "segments": 2.0}) == "is for whole utterances"
    assert made.mismatch({**MADE_BY, "norm": norm}) == "is for scores without --norm"
    normalised = dataclasses.replace(made, scores={**MADE_BY, "segments": 4.0, "norm": norm})
    assert normalised.mismatch(MADE_BY) == "is for --segments 4"
    assert "--norm as-norm by 3 of 9" in normalised.mismatch({**MADE_BY, "segments": 4.0})


@pytest.mark.long
def test_a_threshold_holds_for_other_speakers(real_data):
    """Set for 1 % of false accepts on half of the speakers; the scores are of MFCCs."""
    named = trials.read(real_data / "librimini_trials.txt")
    names = sorted({*named.enrolment, *named.test})
    x = np.stack(
        [
            mfcc_statistics(read_whole(str(real_data / "librimini" / name), 16_000), 16_000)
            for name in names
        ]
    )
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    x = dict(zip(names, x / np.linalg.norm(x, axis=1, keepdims=True), strict=True))
    scores = np.array([x[a] @ x[b] for a, b in zip(named.enrolment, named.test, strict=True)])
    speakers = [[name.split("/")[0] for name in side] for side in (named.enrolment, named.test)]
    everyone, speaker = np.unique(speakers, return_inverse=True)
    enrolment, test = speaker.reshape(2, -1)
    rates = []
    for seed in range(10):
        half = np.random.default_rng(seed).permutation(len(everyone)) % 2 == 0
        mine = half[enrolment] & half[test]
        made = calibrate(
            named.labels[mine], scores[mine], {}, enrolment[mine], test[mine],
            made_by=MADE_BY, false_accept_rate=0.01,
        )  # fmt: skip
        theirs = ~half[enrolment] & ~half[test] & ~named.labels
        rates.append(np.mean(made.log_likelihood_ratios(scores[theirs], {}) >= made.threshold))
    assert 0.003 <= np.median(rates) <= 0.03, rates

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chns_jax.scoring.metrics import (
    act_dcf,
    cllr,
    corners,
    eer,
    eer_of,
    error_rates,
    min_cllr,
    min_dcf,
    min_dcf_of,
    rank,
    rates,
)


def rates_at(labels, scores, threshold):
    accepted = [s >= threshold for s in scores]
    targets = sum(labels)
    misses = sum(1 for y, a in zip(labels, accepted, strict=True) if y and not a)
    false_alarms = sum(1 for y, a in zip(labels, accepted, strict=True) if not y and a)
    return false_alarms / (len(labels) - targets), misses / targets


def every_rate(labels, scores):
    thresholds = [np.inf, *sorted(set(scores), reverse=True)]
    return [rates_at(labels, scores, threshold) for threshold in thresholds]


def eer_loop(labels, scores):
    points = every_rate(labels, scores)
    for (fa0, miss0), (fa1, miss1) in zip(points, points[1:], strict=False):
        if fa1 >= miss1:
            share = (miss0 - fa0) / ((miss0 - fa0) + (fa1 - miss1))
            return fa0 + share * (fa1 - fa0)
    raise AssertionError("the rates never meet")


def min_dcf_loop(labels, scores, p, c_miss, c_fa):
    costs = [c_miss * p * miss + c_fa * (1 - p) * fa for fa, miss in every_rate(labels, scores)]
    return min(costs) / min(c_miss * p, c_fa * (1 - p))


trials = st.lists(
    st.tuples(st.booleans(), st.sampled_from([-0.5, 0.0, 0.1, 0.2, 0.25]) | st.floats(-1, 1)),
    min_size=2,
    max_size=40,
).filter(lambda pairs: len({y for y, _ in pairs}) == 2)


@given(trials)
def test_metrics_are_the_plain_loops(pairs):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    assert eer(labels, scores) == pytest.approx(eer_loop(labels, scores), abs=1e-9)
    for p, c_miss, c_fa in [(0.01, 1, 1), (0.05, 1, 1), (0.5, 10, 1)]:
        expected = min_dcf_loop(labels, scores, p, c_miss, c_fa)
        assert min_dcf(labels, scores, p, c_miss, c_fa) == pytest.approx(expected, abs=1e-9)


def test_metrics_are_the_authors(golden):
    arrays = golden("metrics")
    for i in range(5):
        labels, scores = arrays[f"{i}.labels"], arrays[f"{i}.scores"]
        assert eer(labels, scores) == pytest.approx(arrays[f"{i}.eer"], abs=1e-6)
        for p in ("0.01", "0.05"):
            expected = arrays[f"{i}.mindcf_p{p}"]
            assert min_dcf(labels, scores, float(p)) == pytest.approx(expected, abs=1e-6)


def test_known_cases():
    labels = np.array([1, 1, 0, 0])
    assert eer(labels, np.array([4.0, 3, 2, 1])) == 0
    assert eer(labels, np.array([1.0, 2, 3, 4])) == 1
    assert eer(labels, np.zeros(4)) == 0.5
    assert min_dcf(labels, np.zeros(4), 0.01) == 1


@given(trials, st.data())
def test_corners_are_enough(pairs, data):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    weights = st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))
    weights = np.array(data.draw(weights.filter(lambda w: 0 < np.dot(w, labels) < sum(w))))
    every = rank(labels, scores)
    few = corners(every)
    assert len(few.accepted) <= min(len(every.accepted), 2 * labels.sum() + 1)
    assert eer_of(rates(few, weights)) == pytest.approx(eer_of(rates(every, weights)), abs=1e-12)
    for p in (0.01, 0.5, 0.9):
        assert min_dcf_of(rates(few, weights), p) == min_dcf_of(rates(every, weights), p)


def test_what_cannot_be_scored():
    with pytest.raises(ValueError, match="both target and impostor"):
        error_rates(np.ones(3), np.arange(3.0))
    with pytest.raises(ValueError, match="finite"):
        error_rates(np.array([0, 1]), np.array([0.0, np.nan]))


@settings(deadline=None)  # the first example imports scikit-learn
@given(trials, st.data())
def test_weights_are_how_often_trials_occur(pairs, data):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=40)))
    weights = weights[: len(labels)]
    repeated = np.repeat(labels, weights), np.repeat(scores, weights)
    if repeated[0].all() or not repeated[0].any():
        for metric in (eer, cllr, min_cllr):
            with pytest.raises(ValueError, match="both target and impostor"):
                metric(labels, scores, weights=weights)
        return
    for metric in (eer, cllr, min_cllr):
        expected = metric(*repeated)
        assert metric(labels, scores, weights=weights) == pytest.approx(expected, abs=1e-9)
        assert metric(labels, scores, weights=0.1 * weights) == pytest.approx(expected, abs=1e-9)
    for metric in (min_dcf, act_dcf):
        expected = metric(*repeated, 0.05, 10, 1)
        assert metric(labels, scores, 0.05, 10, 1, weights) == pytest.approx(expected, abs=1e-9)


@given(trials, st.sampled_from([(0.01, 1, 1), (0.5, 1, 1), (0.3, 10, 2)]))
def test_actual_dcf_is_the_cost_at_the_threshold_of_bayes(pairs, application):
    labels, llrs = (np.array(column) for column in zip(*pairs, strict=True))
    llrs = 10 * llrs
    p, c_miss, c_fa = application
    false_alarm, miss = rates_at(labels, llrs, np.log(c_fa * (1 - p) / (c_miss * p)))
    cost = c_miss * p * miss + c_fa * (1 - p) * false_alarm
    actual = act_dcf(labels, llrs, p, c_miss, c_fa)
    assert actual == pytest.approx(cost / min(c_miss * p, c_fa * (1 - p)), abs=1e-9)
    assert actual >= min_dcf(labels, llrs, p, c_miss, c_fa) - 1e-9


def cllr_loop(labels, llrs):
    targets = [np.log2(1 + np.exp(-x)) for y, x in zip(labels, llrs, strict=True) if y]
    others = [np.log2(1 + np.exp(x)) for y, x in zip(labels, llrs, strict=True) if not y]
    return (sum(targets) / len(targets) + sum(others) / len(others)) / 2


def pool_adjacent_violators(labels, scores):
    """Log-likelihood ratio of each trial, by pooling one pair of neighbours after another."""
    targets = sum(labels)
    blocks = []  # [sum of labels, trials]
    for score in sorted(set(scores)):
        same = [y for y, s in zip(labels, scores, strict=True) if s == score]
        blocks.append([sum(same), len(same)])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            hits, count = blocks.pop()
            blocks[-1][0] += hits
            blocks[-1][1] += count
    steps = iter([block for block in blocks for _ in range(block[1])])
    llrs = np.empty(len(labels))
    for i in np.argsort(scores, kind="stable"):
        hits, count = next(steps)
        odds = np.divide(hits, count - hits) if count > hits else np.inf
        llrs[i] = np.log(odds * (len(labels) - targets) / targets) if odds else -np.inf
    return llrs


@settings(deadline=None)
@given(trials)
def test_cllr_is_its_definition(pairs):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    assert cllr(labels, scores) == pytest.approx(cllr_loop(labels, scores), abs=1e-9)
    best = min_cllr(labels, scores)
    llrs = pool_adjacent_violators(labels.tolist(), scores.tolist())
    assert best == pytest.approx(cllr_loop(labels, llrs), abs=1e-9)
    assert best <= cllr(labels, scores) + 1e-9
    assert best <= 1 + 1e-9


def test_min_cllr_knows_only_the_order():
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.3
    scores = rng.normal(size=2000) + labels
    best = min_cllr(labels, scores)
    assert 0.5 < best < 0.9
    for warp in (lambda x: 1e-9 * x, np.arctan, np.exp, lambda x: 100 * x + 5):
        assert min_cllr(labels, warp(scores)) == pytest.approx(best, abs=1e-12)
    assert min_cllr(labels, -scores) == pytest.approx(1)  # nothing to learn from the order


def test_known_costs():
    labels = np.array([1, 1, 0, 0])
    assert cllr(labels, np.zeros(4)) == 1
    assert cllr(labels, np.array([np.inf, np.inf, -np.inf, -np.inf])) == 0
    assert cllr(labels, np.array([-np.inf, 1, 0, 0])) == np.inf
    assert cllr(labels, np.array([-np.inf, 0, 0, 0]), weights=np.array([0, 1, 1, 1])) == 1
    assert min_cllr(labels, np.array([4, 3, 2, 1])) == 0
    assert act_dcf(labels, np.array([np.inf, np.inf, -np.inf, -np.inf]), 0.01) == 0
    assert act_dcf(labels, np.array([0, 0, 0, 0]), 0.01) == 1  # accepts nothing
    with pytest.raises(ValueError, match="both target and impostor"):
        cllr(np.array([1, 1]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="numbers"):
        act_dcf(np.array([1, 0]), np.array([0.0, np.nan]), 0.01)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chns_jax.scoring.metrics import eer, error_rates, min_dcf


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


def test_what_cannot_be_scored():
    with pytest.raises(ValueError, match="both target and non-target"):
        error_rates(np.ones(3), np.arange(3.0))
    with pytest.raises(ValueError, match="finite"):
        error_rates(np.array([0, 1]), np.array([0.0, np.nan]))

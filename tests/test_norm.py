import numpy as np
import pytest

from chns_jax.common.errors import UserError
from chns_jax.scoring import norm
from chns_jax.scoring.norm import as_norm, statistics


def directions(rng, count, d=16):
    x = rng.normal(size=(count, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("top", [2, 7, 40])
def test_as_norm_is_that_of_a_plain_loop(monkeypatch, top):
    monkeypatch.setattr(norm, "BLOCK_ELEMENTS", 130)  # three rows a block
    rng = np.random.default_rng(0)
    embeddings, cohort = directions(rng, 20), directions(rng, 40)
    enrolment, test = rng.integers(20, size=(2, 50))
    scores = np.sum(embeddings[enrolment] * embeddings[test], axis=1)
    expected = []
    for e, t, score in zip(enrolment, test, scores, strict=True):
        total = 0.0
        for side in (e, t):
            nearest = sorted(float(embeddings[side] @ other) for other in cohort)[-top:]
            mean = sum(nearest) / top
            deviation = (sum((x - mean) ** 2 for x in nearest) / top) ** 0.5
            total += (score - mean) / deviation
        expected.append(total / 2)
    of_all = statistics(embeddings, cohort, top)
    sides = [norm.Statistics(*(x[side] for x in of_all)) for side in (enrolment, test)]
    np.testing.assert_allclose(as_norm(scores, *sides), expected, rtol=1e-4, atol=1e-4)


def test_a_cohort_of_copies_is_refused():
    one = directions(np.random.default_rng(0), 1)
    with pytest.raises(UserError, match="the 3 nearest speakers of the cohort score alike"):
        statistics(one, np.repeat(one, 5, axis=0), 3)

import tracemalloc

import numpy as np
import pytest

from chns_jax.common.vectors import unit
from chns_jax.sampling import negative_cosines


def batch(rows, clusters=40, d=16):
    """Rows of speakers who stand beside others of their cluster; views lie half a batch apart."""
    rng = np.random.default_rng(0)
    speakers = np.tile(np.arange(rows // 2), 2)
    centres, voices = rng.normal(size=(clusters, d)), rng.normal(size=(rows // 2, d))
    voices += centres[np.arange(rows // 2) * clusters // (rows // 2)]
    z = unit(np.tile(voices, (2, 1)) + 0.3 * rng.normal(size=(rows, d)))
    return z.astype(np.float32), speakers


def all_negatives(z, speakers):
    """Cosines of all pairs of different speakers, an anchor at a time."""
    return np.concatenate(
        [(z[i + 1 :] @ z[i])[speakers[i + 1 :] != speakers[i]] for i in range(len(z))]
    )


def test_few_rows_are_all_compared():
    z, speakers = batch(60)
    cosines = negative_cosines.negative_cosines(z, speakers, seed=0, step=0)
    assert len(cosines) == 60 * 59 // 2 - 30
    np.testing.assert_allclose(np.sort(cosines), np.sort(all_negatives(z, speakers)), atol=1e-6)
    again = negative_cosines.summary(z, speakers, seed=1, step=2)
    assert again == negative_cosines.summary(z, speakers, seed=0, step=0)


def test_the_papers_batch_is_compared_whole():
    assert 1300 * 1299 // 2 <= negative_cosines.PAIRS


def test_many_rows_are_sampled():
    z, speakers = batch(4096)
    exact = all_negatives(z, speakers)
    sampled = negative_cosines.negative_cosines(z, speakers, seed=0, step=5)
    assert 0.99 * negative_cosines.PAIRS < len(sampled) <= negative_cosines.PAIRS
    # Pairs of the same rows are not independent: ten times the error of independent ones.
    error = 10 * exact.std() / len(sampled) ** 0.5
    assert abs(sampled.mean() - exact.mean()) < error < 0.01
    assert abs(np.percentile(sampled, 95) - np.percentile(exact, 95)) < 0.01
    own, other = (negative_cosines.summary(z, speakers, seed=0, step=step) for step in (5, 6))
    assert own["negative_cosine_mean"] == pytest.approx(sampled.mean())
    assert own != other


def test_no_pair_is_counted_twice_and_no_row_is_left_out(monkeypatch):
    """Rows that are powers of a small angle: a cosine tells how far the two are apart."""
    monkeypatch.setattr(negative_cosines, "PAIRS", 40)
    angle = 1.7 ** np.arange(10) * 1e-2
    z = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    cosines = negative_cosines.negative_cosines(z, np.arange(10), seed=3, step=0)
    assert len(cosines) == len(np.unique(cosines)) == 40
    one, other = np.triu_indices(10, k=1)
    known = np.cos(angle[one] - angle[other])
    pairs = [np.argmin(np.abs(known - cosine)) for cosine in cosines]
    times = np.bincount(np.concatenate([one[pairs], other[pairs]]), minlength=10)
    assert times.tolist() == [8] * 10


def test_memory_grows_with_the_rows():
    z, speakers = batch(65_536, d=192)
    tracemalloc.start()
    try:
        summary = negative_cosines.summary(z, speakers, seed=0, step=0)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 300e6
    assert 0 < summary["negative_cosine_mean"] < summary["negative_cosine_p95"] < 1

from statistics import NormalDist

import numpy as np
import pytest

from chns_jax.scoring import metrics
from chns_jax.scoring.bootstrap import interval, replicates, speaker_weights

SPEAKERS, UTTERANCES = 20, 4


def all_trials(speakers=SPEAKERS, utterances=UTTERANCES):
    """Labels and the two speakers of every pair of utterances."""
    owner = np.repeat(np.arange(speakers), utterances)
    first, second = np.triu_indices(len(owner), k=1)
    return owner[first] == owner[second], owner[first], owner[second]


def simulate(seed, deviation):
    """Scores of all trials, where speakers deviate from each other, and their true EER.

    A target's score is 2 + a + e and an impostor's (b_1 + b_2) / sqrt(2) + e, with effects a and b
    of each speaker.
    """
    rng = np.random.default_rng([1, seed])
    labels, one, other = all_trials()
    as_target, as_impostor = deviation * rng.normal(size=(2, SPEAKERS))
    scores = np.where(labels, 2 + as_target[one], (as_impostor[one] + as_impostor[other]) / 2**0.5)
    scores += rng.normal(size=len(labels))
    return scores, NormalDist().cdf(-2 / (2 * (1 + deviation**2) ** 0.5))


def eers(scores, labels, one, other, *, seed=0, count=100):
    ranking = metrics.rank(labels, scores)
    statistic = lambda weights: metrics.eer_of(metrics.rates(ranking, weights))  # noqa: E731
    return replicates(statistic, labels, one, other, seed=seed, count=count)


def by_trials(scores, labels, count=100):
    """EERs with trials resampled as if they were independent."""
    rng, ranking = np.random.default_rng(0), metrics.rank(labels, scores)
    draws = [
        np.bincount(rng.integers(len(labels), size=len(labels)), minlength=len(labels))
        for _ in range(count)
    ]
    return np.array([metrics.eer_of(metrics.rates(ranking, weights)) for weights in draws])


def test_weights_are_the_draws_of_the_speakers():
    labels, one, other = all_trials()
    weights = speaker_weights(labels, one, other, SPEAKERS, seed=3, replicate=5)
    draws = {int(s): w for s, w in zip(one[labels], weights[labels], strict=True)}
    assert sum(draws.values()) == SPEAKERS
    for a, b, weight in zip(one, other, weights, strict=True):
        assert weight == (draws[a] if a == b else draws[a] * draws[b])
    everyone = np.zeros(SPEAKERS)
    for replicate in range(400):
        drawn = speaker_weights(labels, one, other, SPEAKERS, seed=3, replicate=replicate)
        everyone += np.bincount(one[labels], drawn[labels], SPEAKERS) / 6
    np.testing.assert_allclose(everyone / 400, 1, atol=0.25)  # five standard errors


def test_a_replicate_is_a_function_of_seed_and_place():
    labels, one, other = all_trials()
    scores, _ = simulate(0, 0.5)
    np.testing.assert_array_equal(
        eers(scores, labels, one, other, seed=7, count=9),
        eers(scores, labels, one, other, seed=7, count=20)[:9],
    )
    renamed = eers(scores, labels, 3 * one + 100, 3 * other + 100, seed=7, count=9)
    np.testing.assert_array_equal(renamed, eers(scores, labels, one, other, seed=7, count=9))
    assert (renamed != eers(scores, labels, one, other, seed=8, count=9)).any()


def test_a_replicate_without_targets_or_impostors_is_drawn_again():
    labels = np.array([True, False])
    one, other = np.array([4, 8]), np.array([4, 9])  # all three speakers must be drawn
    weights = replicates(lambda weights: weights, labels, one, other, seed=0, count=20)
    np.testing.assert_array_equal(weights, 1)
    with pytest.raises(ValueError, match="both target and impostor"):
        replicates(lambda weights: weights, labels[:1], one[:1], other[:1], seed=0, count=1)


def test_each_part_of_a_replicate_has_targets_and_impostors():
    labels = np.array([True, False, True, False])
    one, other = np.array([0, 1, 2, 3]), np.array([0, 0, 2, 2])
    parts = [slice(0, 2), slice(2, 4)]
    options = {"seed": 0, "count": 20, "parts": parts}
    weights = replicates(lambda weights: weights, labels, one, other, **options)
    np.testing.assert_array_equal(weights, 1)  # all four speakers must be drawn
    with pytest.raises(ValueError, match="both target and impostor"):
        parts = [slice(0, None, 2), slice(1, None, 2)]
        replicates(np.sum, labels, one, other, seed=0, count=20, parts=parts)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    labels, one, other = all_trials()
    by_speakers, of_trials = [], []
    for seed in range(50):
        scores, truth = simulate(seed, 1.0)
        low, high = interval(eers(scores, labels, one, other))
        by_speakers.append(low <= truth <= high)
        low, high = interval(by_trials(scores, labels))
        of_trials.append(low <= truth <= high)
    assert np.mean(by_speakers) > 0.8  # 0.92 of 300 simulations
    assert np.mean(of_trials) < 0.75  # 0.61


def test_an_interval_is_wide_where_speakers_differ():
    labels, one, other = all_trials()

    def width(values):
        low, high = interval(values)
        return high - low

    differing, _ = simulate(1, 1.0)
    assert width(eers(differing, labels, one, other)) > 1.5 * width(by_trials(differing, labels))
    alike, _ = simulate(1, 0.0)
    ratio = width(eers(alike, labels, one, other)) / width(by_trials(alike, labels))
    assert 0.6 < ratio < 1.7


def test_an_interval_has_nineteen_in_twenty_of_the_replicates():
    values = np.random.default_rng(0).permutation(1000)[:, None] * np.array([1.0, -1.0])
    low, high = interval(values)
    for column in range(2):
        inside = (values[:, column] >= low[column]) & (values[:, column] <= high[column])
        assert inside.sum() in (950, 951)
    low, high = interval(np.array([0.0] * 90 + [np.inf] * 10))
    assert (low, high) == (0, np.inf)

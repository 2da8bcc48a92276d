import numpy as np
import pytest

from chns_jax.common.randomness import Purpose, generator
from chns_jax.common.vectors import nearest, unit
from chns_jax.config import Sampler
from chns_jax.sampling import forecast as forecasts
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.sampling.forecast import forecast
from chns_jax.sampling.plan import draw_speakers


def voices(groups, members, d=16, seed=0):
    """Voiceprints in groups, and the table of these."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(groups, d)))
    around = 0.3 * unit(rng.normal(size=(groups * members, d)))
    voiceprints = unit(np.repeat(centres, members, axis=0) + around).astype(np.float32)
    labels = np.repeat(np.arange(groups), members).astype(np.int32)
    return voiceprints, SpeakerClusters(labels, centres.astype(np.float32))


def test_the_nearest_are_those_of_the_highest_cosines(monkeypatch):
    monkeypatch.setattr("chns_jax.common.vectors.BLOCK", 7)
    vectors = unit(np.random.default_rng(0).normal(size=(30, 4)))
    rows = np.array([3, 29, 0, *range(10, 25)])
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -2)
    expected = np.argsort(-cosine, axis=1)[rows, :5]
    np.testing.assert_array_equal(np.sort(nearest(vectors, rows, 5)), np.sort(expected))


@pytest.mark.parametrize("repeats", [False, True])
def test_a_forecast_is_what_planned_batches_hold(monkeypatch, repeats):
    """All anchors of a few batches, one after another."""
    monkeypatch.setattr(forecasts, "BATCHES", 6)
    voiceprints, table = voices(10, 6)
    sampler = Sampler(speakers=16, hard_ratio=0.5, clusters=10, repeats=repeats)
    made = forecast(voiceprints, table, sampler, seed=3, step=20)
    shares, cosines = [], []
    for step in range(20, 26):
        batch, hard = draw_speakers(generator(3, Purpose.PLAN, step), sampler, 60, table)
        assert hard == 8 and (len(set(batch)) < 16) == repeats
        of_batch = []
        for anchor in batch:
            cosine = voiceprints @ voiceprints[anchor]
            near = [other for other in np.argsort(-cosine) if other != anchor][:10]
            shares.append(sum(other in batch for other in near) / 10)
            of_batch += [cosine[other] for other in batch if other != anchor]
        cosines.append(np.mean(of_batch))
    assert made.nearest_chns == pytest.approx(np.mean(shares))
    assert made.voiceprint_cosine_chns == pytest.approx(np.mean(cosines), abs=1e-5)
    everyone = voiceprints @ voiceprints.T
    off_diagonal = everyone[~np.eye(60, dtype=bool)]
    assert made.voiceprint_cosine_random == pytest.approx(off_diagonal.mean(), abs=1e-5)
    assert made.nearest_random == 15 / 59
    assert (made.speakers_over_batch, made.cluster_over_batch) == (60 / 16, 6 / 16)


def test_without_hard_speakers_batches_are_random():
    voiceprints, table = voices(30, 10)
    made = forecast(voiceprints, table, Sampler(speakers=24, hard_ratio=0), seed=0, step=0)
    assert made.nearest_chns == pytest.approx(made.nearest_random, rel=0.1)
    assert made.voiceprint_cosine_chns == pytest.approx(made.voiceprint_cosine_random, abs=0.005)


@pytest.mark.parametrize(
    "speakers, hard_ratio, warns",
    [
        (32, 0.5, "lower sampler.speakers, raise sampler.hard_ratio, or train on more speakers"),
        (4, 0.0, "raise sampler.hard_ratio or sampler.clusters, or"),
        (8, 0.5, None),
    ],
)
def test_it_warns_where_chns_cannot_matter(speakers, hard_ratio, warns):
    """48 speakers in 6 clusters, as `small.yaml` has by its defaults."""
    voiceprints, table = voices(6, 8)
    sampler = Sampler(speakers=speakers, hard_ratio=hard_ratio, clusters=6)
    said = forecast(voiceprints, table, sampler, seed=0, step=0).lines(sampler)
    assert "of a speaker's 10 nearest, a random one" in said[0]
    assert (len(said) > 1) == (warns is not None)
    assert not warns or (said[1].startswith("warning: CHNS can hardly") and warns in said[1])


@pytest.mark.long
def test_a_corpus_of_the_papers_size():
    voiceprints, table = voices(50, 120, d=192)
    sampler = Sampler(speakers=650, hard_ratio=1.0)
    made = forecast(voiceprints, table, sampler, seed=0, step=0)
    assert made.nearest_chns > 5 * made.nearest_random

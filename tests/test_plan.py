import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chns_jax.common.errors import UserError
from chns_jax.config import Sampler
from chns_jax.corpus.corpus import Corpus, Strings
from chns_jax.sampling import plan as plan_module
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.sampling.plan import hard_count, plan, same_cluster_share


def make_corpus(recordings_of: list[list[int]]) -> Corpus:
    """A corpus without files; recordings_of[speaker] lists how many utterances each one holds."""
    speaker, recording = [], []
    for i, recordings in enumerate(recordings_of):
        for utterances in recordings:
            number = recording[-1] + 1 if recording else 0
            speaker += [i] * utterances
            recording += [number] * utterances
    count = len(speaker)
    names = Strings.of(f"{i}" for i in range(count))
    return Corpus(
        roots=("/nowhere",),
        speakers=np.array([f"s{i:05d}" for i in range(len(recordings_of))]),
        names=names,
        files=names,
        root=np.zeros(count, np.uint8),
        speaker=np.array(speaker, np.int32),
        recording=np.array(recording, np.int32),
        seconds=np.ones(count, np.float32),
        rate=np.full(count, 16_000, np.int32),
    )


def make_table(sizes: list[int], seed: int = 0) -> SpeakerClusters:
    """Clusters of the given sizes, their speakers in no order."""
    rng = np.random.default_rng(seed)
    cluster = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    return SpeakerClusters(cluster, rng.normal(size=(len(sizes), 4)).astype(np.float32))


def speakers_of(batch) -> np.ndarray:
    """Of the first views, which are those of the second ones too."""
    first, second = batch.labels.reshape(2, -1)
    np.testing.assert_array_equal(first, second)
    return first


SAMPLER = Sampler(speakers=16, hard_ratio=0.5)
sizes = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(lambda s: sum(s) >= 8)
samplers = st.builds(
    Sampler,
    speakers=st.integers(2, 40),
    hard_ratio=st.floats(0, 1),
    fill=st.sampled_from(["pool", "whole"]),
    next_cluster=st.sampled_from(["random", "nearest"]),
    cluster_weight=st.sampled_from(["size", "uniform"]),
)


@settings(max_examples=400, deadline=None)
@given(sizes, samplers, st.integers(0, 2**40), st.integers(0, 2**20))
def test_properties_of_every_plan(sizes, sampler, seed, step):
    speakers = sum(sizes)
    sampler = dataclasses.replace(sampler, speakers=min(sampler.speakers, speakers))
    corpus, table = make_corpus([[2, 2]] * speakers), make_table(sizes)
    batch = plan(seed, step, sampler, corpus, table)
    assert batch.hard == int(np.floor(sampler.hard_ratio * sampler.speakers + 1e-9))
    assert len(set(speakers_of(batch))) == len(speakers_of(batch)) == sampler.speakers
    assert batch.labels.min() >= 0 and batch.labels.max() < speakers
    first, second = batch.utterances.reshape(2, -1)
    np.testing.assert_array_equal(corpus.speaker[first], speakers_of(batch))
    np.testing.assert_array_equal(corpus.speaker[second], speakers_of(batch))
    assert (corpus.recording[first] != corpus.recording[second]).all()
    if batch.hard and sampler.fill == "whole":
        count = Counter(table.cluster[speakers_of(batch)[: batch.hard]].tolist())
        partial = [c for c, n in count.items() if n < table.sizes[c]]
        assert len(partial) <= 1  # all clusters whole, but the last
    again = plan(seed, step, sampler, corpus, table)
    np.testing.assert_array_equal(again.utterances, batch.utterances)


@pytest.mark.parametrize("next_cluster", ["random", "nearest"])
def test_hard_speakers_are_of_one_cluster_while_it_suffices(next_cluster):
    table = make_table([20, 30, 8, 12])
    sampler = dataclasses.replace(SAMPLER, next_cluster=next_cluster)
    corpus = make_corpus([[1, 1]] * 70)
    for step in range(2000):
        hard = speakers_of(plan(1, step, sampler, corpus, table))[:8]
        assert len(set(table.cluster[hard])) == 1


def test_small_clusters_spill_into_the_next():
    table, corpus = make_table([3] * 20), make_corpus([[1, 1]] * 60)
    for fill, most in [("whole", 3), ("pool", 3)]:
        sampler = dataclasses.replace(SAMPLER, fill=fill)
        for step in range(500):
            hard = speakers_of(plan(0, step, sampler, corpus, table))[:8]
            assert len(hard) == 8 and len(set(table.cluster[hard])) <= most


def test_the_nearest_cluster_joins_next():
    centroids = np.array([[1, 0], [0.9, 0.1], [-1, 0], [0, 1]], np.float32)
    table = SpeakerClusters(np.repeat(np.arange(4), 5).astype(np.int32), centroids)
    np.testing.assert_array_equal(table.nearest[:, :2], [[0, 1], [1, 0], [2, 3], [3, 1]])
    sampler = dataclasses.replace(SAMPLER, fill="whole", next_cluster="nearest")
    corpus = make_corpus([[1, 1]] * 20)
    pairs = Counter()
    for step in range(500):
        hard = speakers_of(plan(0, step, sampler, corpus, table))[:8]
        pairs[tuple(dict.fromkeys(table.cluster[hard].tolist()))] += 1
    assert set(pairs) == {(0, 1), (1, 0), (2, 3), (3, 1)}


@pytest.mark.parametrize("table", [None, "equal", "unequal", "tiny"])
def test_all_speakers_are_seen_equally_often(table):
    speakers, steps = 120, 6000
    table = {
        None: None,
        "equal": make_table([10] * 12),
        "unequal": make_table([8, 12, 16, 20, 24, 40]),
        "tiny": make_table([2, 4] * 20),
    }[table]
    corpus, seen = make_corpus([[1, 1]] * speakers), np.zeros(speakers)
    for step in range(steps):
        seen[speakers_of(plan(3, step, SAMPLER, corpus, table))] += 1
    expected = steps * SAMPLER.speakers / speakers  # 800, deviation about 26
    assert abs(seen - expected).max() < 0.15 * expected
    if table is None:
        assert abs(seen - expected).max() < 5 * np.sqrt(expected)


def test_clusters_drawn_alike_favour_the_speakers_of_small_ones():
    """The paper's code; why `size` is the default here."""
    table, corpus = make_table([8, 112]), make_corpus([[1, 1]] * 120)
    seen = {weight: np.zeros(120) for weight in ("size", "uniform")}
    for weight, count in seen.items():
        sampler = dataclasses.replace(SAMPLER, cluster_weight=weight)
        for step in range(1000):
            count[speakers_of(plan(0, step, sampler, corpus, table))] += 1
    small = table.speakers_of(0)
    assert seen["uniform"][small].mean() > 3 * seen["size"][small].mean()


def test_utterances_are_drawn_evenly_and_from_two_recordings_where_there_are_two():
    corpus = make_corpus([[1, 2, 3], [4], [1, 1], [2]])
    sampler = Sampler(speakers=4, hard_ratio=0)
    seen, steps = Counter(), 4000
    for step in range(steps):
        first, second = plan(0, step, sampler, corpus, None).utterances.reshape(2, -1)
        assert (first != second).all()
        apart = corpus.recording[first] != corpus.recording[second]
        single = np.isin(corpus.speaker[first], [1, 3])
        np.testing.assert_array_equal(apart, ~single)
        seen.update(first.tolist())
    for speaker in range(4):
        start, end = corpus.speaker_start[speaker : speaker + 2]
        expected = steps / (end - start)
        for utterance in range(start, end):
            assert abs(seen[utterance] - expected) < 6 * np.sqrt(expected)


def test_steps_and_seeds_differ():
    corpus = make_corpus([[1, 1]] * 50)
    batches = {
        tuple(speakers_of(plan(seed, step, SAMPLER, corpus, None)))
        for seed in range(5)
        for step in range(50)
    }
    assert len(batches) == 250


def test_hard_ratio_one_and_zero():
    table, corpus = make_table([16, 16, 16]), make_corpus([[1, 1]] * 48)
    for step in range(200):
        all_hard = plan(0, step, dataclasses.replace(SAMPLER, hard_ratio=1.0), corpus, table)
        assert all_hard.hard == 16 and len(set(table.cluster[speakers_of(all_hard)])) == 1
        none_hard = plan(0, step, dataclasses.replace(SAMPLER, hard_ratio=0.0), corpus, table)
        assert none_hard.hard == 0


def test_the_hard_count_does_not_fall_for_floats():
    assert hard_count(Sampler(speakers=100, hard_ratio=0.29)) == 29
    assert hard_count(Sampler(speakers=650, hard_ratio=0.5)) == 325
    assert hard_count(Sampler(speakers=7, hard_ratio=0.5)) == 3


def test_a_batch_of_the_whole_corpus_is_possible_and_a_larger_one_is_an_error():
    table, corpus = make_table([5, 11]), make_corpus([[1, 1]] * 16)
    assert set(speakers_of(plan(0, 0, SAMPLER, corpus, table))) == set(range(16))
    with pytest.raises(UserError, match="at most 16"):
        plan_module.check(dataclasses.replace(SAMPLER, speakers=17), corpus)


def test_repeats_stay_in_one_cluster_whose_speakers_come_alike():
    table, corpus = make_table([3, 5, 20, 20]), make_corpus([[2, 2]] * 48)
    sampler = dataclasses.replace(SAMPLER, repeats=True)
    repeated = 0
    for step in range(500):
        batch = plan(0, step, sampler, corpus, table)
        hard, rest = np.split(speakers_of(batch), [8])
        assert len(set(table.cluster[hard])) == 1
        count = Counter(hard.tolist()).values()
        assert max(count) - min(count) <= 1
        repeated += max(count) > 1
        assert len(set(rest)) == 8 and not set(rest) & set(hard)
        first, second = corpus.recording[batch.utterances].reshape(2, -1)
        assert (first != second).all()
    assert repeated > 0


def test_a_speaker_alone_in_a_cluster_is_no_batch_of_repeats():
    corpus = make_corpus([[2, 2]] * 6)
    sampler = dataclasses.replace(SAMPLER, speakers=4, repeats=True, hard_ratio=1.0)
    table = make_table([1, 1, 3, 1])
    for step in range(50):
        batch = plan(0, step, sampler, corpus, table)
        assert set(speakers_of(batch)) == set(table.speakers_of(2))
    with pytest.raises(UserError, match="each of 6 clusters holds one speaker"):
        plan(0, 0, sampler, corpus, make_table([1] * 6))


def test_with_repeats_all_speakers_are_seen_equally_often():
    table, corpus, steps = make_table([2, 6, 10, 30, 72]), make_corpus([[1, 1]] * 120), 6000
    sampler, seen = dataclasses.replace(SAMPLER, repeats=True), np.zeros(120)
    for step in range(steps):
        np.add.at(seen, speakers_of(plan(3, step, sampler, corpus, table)), 1)
    expected = steps * 16 / 120
    of_cluster = [seen[table.speakers_of(c)].mean() for c in range(5)]
    assert max(abs(mean - expected) for mean in of_cluster) < 0.15 * expected


def test_single_utterances_come_once_an_epoch_each():
    corpus = make_corpus([[1], [3, 2], [4]])  # also of the speaker who has but one
    sampler = Sampler(kind="utterances", speakers=2)
    drawn = [plan(7, step, sampler, corpus, None) for step in range(15)]
    for batch in drawn:
        np.testing.assert_array_equal(batch.labels, corpus.speaker[batch.utterances])
    epochs = np.concatenate([batch.utterances for batch in drawn]).reshape(6, 10)
    assert all(set(epoch) == set(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    other = plan(8, 0, sampler, corpus, None).utterances
    assert (other != drawn[0].utterances).any()
    many = plan(0, 1, Sampler(kind="utterances", speakers=25), corpus, None).utterances
    assert set(Counter(many.tolist()).values()) == {5}  # five epochs in a batch


def test_same_cluster_share_is_the_plain_count():
    table = make_table([5, 3, 9])
    for labels in (np.array([0, 4, 7, 9, 12, 16]), np.array([0, 4, 4, 9, 0, 0])):
        negatives = [(a, b) for a in labels for b in labels if a != b]
        expected = np.mean([table.cluster[a] == table.cluster[b] for a, b in negatives])
        assert same_cluster_share(labels, table) == pytest.approx(expected)
    assert same_cluster_share(np.array([3, 3]), table) == 0
    assert same_cluster_share(labels, None) == 0

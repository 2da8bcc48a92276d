"""What is found in voiceprints: against plain loops, and planted errors."""

import itertools

import numpy as np
import pytest

from chns_jax.common.errors import UserError
from chns_jax.common.vectors import means, unit
from chns_jax.reports import exploration
from chns_jax.reports.exploration import RefreshedTable
from chns_jax.reports.exploration_page import FIT_PERCENTILE, SAME_PERCENTILE
from chns_jax.sampling import clusters as tables
from chns_jax.sampling.clusters import SpeakerClusters

SPEAKERS, EACH, WIDTH = 40, 8, 64


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(exploration, "BLOCK", 7)


def speech(seed=0, speakers=SPEAKERS):
    """Embeddings around a centre of each speaker; recordings of two utterances."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(speakers), EACH)
    noise = 0.6 * rng.normal(size=(len(speaker), WIDTH))
    embeddings = unit(rng.normal(size=(speakers, WIDTH))[speaker] + noise).astype(np.float32)
    return embeddings, speaker, np.arange(len(speaker)) // 2


@pytest.mark.parametrize("speakers", [1, 2, 20])
def test_voiceprints_and_pairs(small_blocks, speakers):
    embeddings, speaker, _ = speech(speakers=speakers)
    mine = means(embeddings, speaker)
    loop = [np.mean([x for x, s in zip(embeddings, speaker, strict=True) if s == i], axis=0)
            for i in range(speakers)]  # fmt: skip
    np.testing.assert_allclose(mine, unit(np.array(loop)), atol=1e-6)
    pairs = exploration.confusable_pairs(mine, 12)
    cosines = sorted(
        ((-float(mine[i] @ mine[j]), i, j) for i, j in itertools.combinations(range(speakers), 2))
    )[:12]
    assert [*zip(pairs.one, pairs.other, strict=True)] == [(i, j) for _, i, j in cosines]
    np.testing.assert_allclose(pairs.cosine, [-c for c, _, _ in cosines], atol=1e-6)


def test_same_speaker_cosines():
    embeddings, speaker, recording = speech(speakers=4)
    loop = [
        float(embeddings[i] @ embeddings[j])
        for i, j in itertools.combinations(range(len(speaker)), 2)
        if speaker[i] == speaker[j] and recording[i] != recording[j]
    ]
    mine = exploration.same_speaker_cosines(embeddings, speaker, recording)
    np.testing.assert_allclose(np.sort(mine), np.sort(loop), atol=1e-6)
    assert len(exploration.same_speaker_cosines(embeddings, speaker, speaker)) == 0


def test_fit(small_blocks):
    embeddings, speaker, _ = speech(speakers=6)
    embeddings, speaker = np.append(embeddings, embeddings[:1] * -1, axis=0), np.append(speaker, 6)
    fit = exploration.fit(embeddings, speaker)
    voiceprints = means(embeddings, speaker)
    for i in range(len(speaker) - 1):
        others = [j for j in range(len(speaker)) if speaker[j] == speaker[i] and j != i]
        assert fit.own[i] == pytest.approx(
            embeddings[i] @ unit(embeddings[others].mean(0)), abs=1e-5
        )
        cosine, nearest = max((float(embeddings[i] @ v), s)
                              for s, v in enumerate(voiceprints) if s != speaker[i])  # fmt: skip
        assert fit.nearest[i] == nearest and fit.other[i] == pytest.approx(cosine, abs=1e-6)
    assert np.isnan(fit.own[-1])  # the only utterance of its speaker
    wrong = exploration.misfits(fit, 10)
    low = np.percentile(fit.own[:-1], 10)
    assert set(wrong) == {i for i in range(len(speaker) - 1)
                          if fit.own[i] < low or fit.other[i] > fit.own[i]}  # fmt: skip
    assert (np.diff((fit.own - fit.other)[wrong]) >= 0).all()


def test_a_speaker_split_into_two_names_is_found():
    embeddings, speaker, recording = speech()
    half = (speaker == 11) & (np.arange(len(speaker)) % EACH >= EACH // 2)
    speaker = np.where(half, SPEAKERS, speaker)
    order = np.argsort(speaker, kind="stable")
    embeddings, speaker, recording = embeddings[order], speaker[order], recording[order]
    pairs = exploration.confusable_pairs(means(embeddings, speaker), 50)
    same = exploration.same_speaker_cosines(embeddings, speaker, recording)
    above = pairs.cosine > np.percentile(same, SAME_PERCENTILE)
    assert [*zip(pairs.one[above], pairs.other[above], strict=True)] == [(11, SPEAKERS)]


def test_a_moved_utterance_is_found():
    embeddings, speaker, _ = speech()
    moved, of = 5 * EACH + 3, 20
    embeddings[moved] = unit(embeddings[of * EACH : (of + 1) * EACH].sum(axis=0) + 0.1)
    fit = exploration.fit(embeddings, speaker)
    assert exploration.misfits(fit, FIT_PERCENTILE)[0] == moved
    assert fit.nearest[moved] == of


def test_the_most_alike_utterances():
    one, other = (speech(seed)[0][:5] for seed in (0, 1))
    a, b = exploration.most_alike(one, other[:3])
    assert one[a] @ other[b] == max(float(x @ y) for x in one for y in other[:3])


def refresh(step, names, cluster):
    cluster = np.array(cluster, np.int32)
    return RefreshedTable(
        step, np.array(names), SpeakerClusters(cluster, np.zeros((cluster.max() + 1, 2)))
    )


def test_changes_of_tables():
    rng = np.random.default_rng(0)
    names = [f"s{i}" for i in range(30)]
    tables = [refresh(step, names, rng.permutation(30) % 4) for step in (10, 20)]
    tables.append(refresh(30, names, (tables[1].table.cluster + 1) % 4))  # the same, renamed
    tables.append(refresh(40, [*names[10:][::-1], "new"], [*range(10), *range(10), 3]))
    tables.append(refresh(50, names, [0] * 15 + [1] * 15))
    tables.append(refresh(60, names, [0] * 30))  # everyone keeps and gains co-members
    found = list(exploration.changes(tables))
    assert [change.step for change in found] == [20, 30, 40, 50, 60]
    assert (found[4].changed, found[4].kept) == (1.0, 1.0)
    assert (found[1].rand_index, found[1].changed, found[1].kept) == (1.0, 0.0, 1.0)
    for change, (before, after) in zip(found, itertools.pairwise(tables), strict=True):
        common = sorted(set(before.speakers.tolist()) & set(after.speakers.tolist()))
        company = []
        for _, speakers, table in (before, after):
            of = dict(zip(speakers.tolist(), table.cluster.tolist(), strict=True))
            company.append([{t for t in common if of[t] == of[s]} - {s} for s in common])
        changed = np.mean([old != new for old, new in zip(*company, strict=True)])
        kept = np.mean(
            [len(old & new) / len(old) if old else 1 for old, new in zip(*company, strict=True)]
        )
        assert change.changed == pytest.approx(changed) and change.kept == pytest.approx(kept)
        together = [np.array([t in mine for mine, s in zip(side, common, strict=True)
                              for t in common if t > s]) for side in company]  # fmt: skip
        a, b = together
        expected = a.sum() * b.sum() / len(a)
        index = ((a & b).sum() - expected) / ((a.sum() + b.sum()) / 2 - expected)
        assert change.rand_index == pytest.approx(index, abs=1e-9)


def test_pairs_in_tables():
    tables = [refresh(1, "abcd", [0, 0, 1, 1]), refresh(2, "dba", [0, 1, 0])]
    mine = exploration.shared(tables, ["a", "a", "c"], ["b", "d", "x"])
    np.testing.assert_array_equal(mine, [[1, 0], [0, 1], [np.nan, np.nan]])
    np.testing.assert_allclose(exploration.shared_by_chance(tables), [2 / 6, 1 / 3])


def test_tables_of_a_run(tmp_path):
    assert exploration.refreshes(tmp_path) == []
    table = SpeakerClusters(np.array([0, 1], np.int32), np.eye(2, dtype=np.float32))
    for step in (20, 3, 100):
        tables.save(tmp_path / "tables" / f"step_{step:07d}.npz", table, ["a", "b"])
    (tmp_path / "tables" / "step_x.npz").write_text("")
    found = exploration.refreshes(tmp_path)
    assert [refresh.step for refresh in found] == [3, 20, 100]
    assert found[0].speakers.tolist() == ["a", "b"] and found[0].table.cluster.tolist() == [0, 1]
    (tmp_path / "tables" / "step_4.npz").write_text("")
    with pytest.raises(UserError, match="step_4.npz is not a table"):
        exploration.refreshes(tmp_path)


@pytest.mark.parametrize("speakers", [2, 9, 10, 60])
def test_layout_is_repeatable_and_keeps_neighbours(speakers):
    families = np.repeat(np.eye(2, 32) * 5, [speakers // 2, speakers - speakers // 2], axis=0)
    points = unit(families + np.random.default_rng(0).normal(size=(speakers, 32)))
    drawn = exploration.layout(points, seed=0)
    np.testing.assert_array_equal(drawn, exploration.layout(points, seed=0))
    assert drawn.shape == (speakers, 2) and np.isfinite(drawn).all()
    distance = np.linalg.norm(drawn[:, None] - drawn, axis=-1)
    np.fill_diagonal(distance, np.inf)
    family = families.argmax(axis=1)
    if speakers > 2:
        assert (family[distance.argmin(axis=1)] == family).mean() > 0.85


def test_equal_voiceprints_have_a_layout():
    assert np.isfinite(exploration.layout(np.ones((12, 4)) / 2, seed=0)).all()

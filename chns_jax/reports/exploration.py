"""What voiceprints say of a corpus: confusable speakers, label errors, clusters over time.

Embeddings (v, d) are L2-normalised, one an utterance; `speaker` (v,) are their speakers, ascending
from 0 to n - 1 with none left out. Matrices of all speakers are made in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from chns_jax.common.vectors import sums, unit
from chns_jax.runs.folder import RunFolder
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.sampling.clusters import read as read_table

BLOCK = 1024  # rows of a matrix of cosines
FEWEST_FOR_TSNE = 10
PERPLEXITY = 30


class Pairs(NamedTuple):
    """Pairs of speakers, by falling cosine of their voiceprints."""

    one: np.ndarray  # (p,) speakers
    other: np.ndarray  # (p,) speakers, each greater than `one`
    cosine: np.ndarray  # (p,)


class Fit(NamedTuple):
    """How well each utterance fits the speaker that it is said to be of."""

    own: np.ndarray  # (v,) cosine to the mean of the speaker's others; NaN where there are none
    other: np.ndarray  # (v,) cosine to the nearest voiceprint of another speaker
    nearest: np.ndarray  # (v,) that speaker


class RefreshedTable(NamedTuple):
    """The table that a run made before a step."""

    step: int
    speakers: np.ndarray  # (n,) names
    table: SpeakerClusters


class Change(NamedTuple):
    """From one table to the next, of the speakers in both."""

    step: int  # of the latter
    rand_index: float  # adjusted for chance: 1 for the same clusters, 0 for unrelated ones
    changed: float  # share of speakers whose co-members are not exactly the same
    kept: float  # mean share of a speaker's co-members that it keeps


def layout(voiceprints: np.ndarray, seed: int) -> np.ndarray:
    """Voiceprints (n, d) in two dimensions, (n, 2): t-SNE, or of fewer than ten PCA.

    Source: van der Maaten & Hinton, "Visualizing data using t-SNE", JMLR 9 (2008).
    """
    centred = voiceprints - voiceprints.mean(axis=0)
    principal = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    if len(voiceprints) < FEWEST_FOR_TSNE:
        return principal
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(voiceprints) - 1) / 3)
    start = principal * (1e-4 / max(float(principal[:, 0].std()), 1e-12))
    return TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(voiceprints)


def confusable_pairs(voiceprints: np.ndarray, count: int) -> Pairs:
    """The `count` pairs of speakers whose voiceprints (n, d) have the highest cosines."""
    best = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    for start in range(0, len(voiceprints), BLOCK):
        block = voiceprints[start : start + BLOCK] @ voiceprints[start:].T
        block[np.tril_indices(len(block), m=block.shape[1])] = -np.inf
        flat = block.ravel()
        kept = np.argpartition(-flat, min(count, len(flat) - 1))[:count]
        kept = kept[flat[kept] > -np.inf]
        one, other = np.unravel_index(kept, block.shape)
        found = Pairs(start + one, start + other, flat[kept])
        best = Pairs(*(np.concatenate(both) for both in zip(best, found, strict=True)))
        order = np.lexsort((best.other, best.one, -best.cosine))[:count]
        best = Pairs(*(column[order] for column in best))
    return best


def same_speaker_cosines(
    embeddings: np.ndarray, speaker: np.ndarray, recording: np.ndarray
) -> np.ndarray:
    """Cosines of all pairs of utterances of one speaker from different recordings (v,)."""
    start = np.searchsorted(speaker, np.arange(speaker[-1] + 2))
    cosines = [np.zeros(0)]
    for first, end in zip(start[:-1], start[1:], strict=True):
        one, other = np.triu_indices(end - first, k=1)
        across = recording[first + one] != recording[first + other]
        mine = embeddings[first:end]
        cosines.append((mine @ mine.T)[one[across], other[across]])
    return np.concatenate(cosines)


def fit(embeddings: np.ndarray, speaker: np.ndarray) -> Fit:
    """How well each utterance fits its own speaker, and the nearest other one."""
    total = sums(embeddings, speaker)
    voiceprints = unit(total).astype(np.float32)
    own = np.einsum("vd,vd->v", unit(total[speaker] - embeddings), embeddings)
    own[np.bincount(speaker)[speaker] == 1] = np.nan
    other, nearest = np.empty(len(speaker)), np.empty(len(speaker), np.int64)
    for start in range(0, len(speaker), BLOCK):
        rows = slice(start, start + BLOCK)
        cosines = embeddings[rows] @ voiceprints.T
        cosines[np.arange(len(cosines)), speaker[rows]] = -np.inf
        nearest[rows] = cosines.argmax(axis=1)
        other[rows] = cosines.max(axis=1)
    return Fit(own, other, nearest)


def misfits(fitting: Fit, percentile: float) -> np.ndarray:
    """Utterances that fit another speaker better than their own, or their own worse than most.

    The latter have a cosine to their own below the `percentile` of all. By rising difference of
    both cosines, so that the worst comes first.
    """
    known = ~np.isnan(fitting.own)
    if not known.any():
        return np.zeros(0, np.int64)
    low = np.percentile(fitting.own[known], percentile)
    wrong = np.flatnonzero(known & ((fitting.other > fitting.own) | (fitting.own < low)))
    return wrong[np.argsort((fitting.own - fitting.other)[wrong], kind="stable")]


def most_alike(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """The rows of embeddings (a, d) and (b, d) whose cosine is highest."""
    place = int(np.argmax(one @ other.T))
    return place // len(other), place % len(other)


def refreshes(run: Path | str) -> list[RefreshedTable]:
    """The tables of a run folder in order of steps; none where it made none. Raises UserError."""
    made = RunFolder(Path(run).expanduser()).tables()
    return [RefreshedTable(step, *read_table(path)) for step, path in made]


def changes(tables: Sequence[RefreshedTable]) -> Iterator[Change]:
    """What each table changed of the one before it.

    Source: Hubert & Arabie, "Comparing partitions", Journal of Classification 2 (1985).
    """
    from sklearn.metrics import adjusted_rand_score

    for before, after in zip(tables[:-1], tables[1:], strict=True):
        _, i, j = np.intersect1d(before.speakers, after.speakers, return_indices=True)
        if not len(i):
            continue
        old, new = before.table.cluster[i], after.table.cluster[j]
        both = np.zeros((old.max() + 1, new.max() + 1), np.int64)
        np.add.at(both, (old, new), 1)
        stayed = both[old, new] - 1
        company = both.sum(axis=1)[old] - 1
        joined = both.sum(axis=0)[new] - 1
        kept = np.where(company > 0, stayed / np.maximum(company, 1), 1.0)
        changed = (stayed != company) | (stayed != joined)
        index = float(adjusted_rand_score(old, new))
        yield Change(after.step, index, float(changed.mean()), float(kept.mean()))


def shared(
    tables: Sequence[RefreshedTable], one: Sequence[str], other: Sequence[str]
) -> np.ndarray:
    """Whether pairs of speakers were in one cluster, (p, tables): 1 or 0, NaN where not in it."""
    answers = np.full((len(one), len(tables)), np.nan)
    for column, (_, speakers, table) in enumerate(tables):
        cluster = dict(zip(speakers.tolist(), table.cluster.tolist(), strict=True))
        for row, pair in enumerate(zip(one, other, strict=True)):
            if pair[0] in cluster and pair[1] in cluster:
                answers[row, column] = cluster[pair[0]] == cluster[pair[1]]
    return answers


def shared_by_chance(tables: Sequence[RefreshedTable]) -> np.ndarray:
    """Share of all pairs of speakers that are in one cluster, of each table."""
    sizes = [refresh.table.sizes for refresh in tables]
    return np.array([(s * (s - 1)).sum() / max(1, s.sum() * (s.sum() - 1)) for s in sizes])

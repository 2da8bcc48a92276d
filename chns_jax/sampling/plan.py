"""What each batch is made of: a pure function of (seed, step, table). This file is CHNS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.randomness import Purpose, generator
from chns_jax.config import Sampler
from chns_jax.corpus.corpus import Corpus
from chns_jax.sampling.clusters import SpeakerClusters


@dataclass(frozen=True)
class Batch:
    """The utterances of one step: all first views, then all second views in the same order."""

    utterances: np.ndarray  # (2b,) rows of the corpus
    labels: np.ndarray  # (2b,) int32: their speakers; the hard ones first
    hard: int  # how many speakers were drawn from clusters


def plan(
    seed: int, step: int, sampler: Sampler, corpus: Corpus, table: SpeakerClusters | None
) -> Batch:
    """The batch of `step`: hard speakers from clusters of `table`, others from everywhere else.

    Without a table, all speakers are drawn at random. Kind `utterances` knows neither speakers nor
    views: it draws 2b utterances. Source: CHNS (arXiv 2507.17540), section 2.
    """
    if sampler.kind == "utterances":
        utterances = _utterances(seed, step, 2 * sampler.speakers, len(corpus))
        return Batch(utterances, corpus.speaker[utterances], hard=0)
    rng = generator(seed, Purpose.PLAN, step)
    speakers, hard = draw_speakers(rng, sampler, len(corpus.speakers), table)
    utterances = _two_utterances(rng, speakers, corpus)
    return Batch(utterances, corpus.speaker[utterances], hard)


def draw_speakers(
    rng: np.random.Generator, sampler: Sampler, count: int, table: SpeakerClusters | None
) -> tuple[np.ndarray, int]:
    """The speakers (b,) of a batch, of `count`, the hard ones first; and how many those are."""
    hard, chosen = 0, np.empty(0, np.int64)
    if table is not None and hard_count(sampler):
        hard = hard_count(sampler)
        chosen = _hard_speakers(rng, hard, sampler, table)
    rest = _others(rng, sampler.speakers - hard, chosen, count)
    return np.concatenate([chosen, rest]), hard


def hard_count(sampler: Sampler) -> int:
    """floor(hard_ratio * speakers); 0.29 * 100 counts as 29, although floats fall below it."""
    return math.floor(sampler.hard_ratio * sampler.speakers + 1e-9)


def check(sampler: Sampler, corpus: Corpus) -> None:
    """Raises UserError when a batch cannot be made of this corpus."""
    if len(corpus.speakers) < 2:
        raise UserError(
            f"{len(corpus.speakers)} speakers are left to train on, and a batch needs two: hold "
            "fewer out, or give more speech"
        )
    if sampler.speakers > len(corpus.speakers):
        raise UserError(
            f"a batch of {sampler.speakers} speakers cannot be drawn from "
            f"{len(corpus.speakers)} training speakers: set sampler.speakers to at most "
            f"{len(corpus.speakers)}"
        )


def same_cluster_share(labels: np.ndarray, table: SpeakerClusters | None) -> float:
    """Share of a batch's negatives that are from their anchor's own cluster; 0 without a table.

    `labels` are the speakers of its rows; a negative is a row of another speaker.
    """
    if table is None:
        return 0.0
    speakers, rows = np.unique(labels, return_counts=True)
    of_cluster = np.bincount(table.cluster[speakers], rows)
    of_speaker = np.square(rows).sum()
    negatives = len(labels) ** 2 - of_speaker
    return float((np.square(of_cluster).sum() - of_speaker) / negatives) if negatives else 0.0


def _hard_speakers(rng: np.random.Generator, hard: int, sampler: Sampler, table: SpeakerClusters):
    """`hard` speakers from as few clusters as hold them; with repeats, from one."""
    if sampler.repeats:
        cluster = table.speakers_of(_cluster_order(rng, hard, sampler, table)[0])
        rounds = [rng.permutation(cluster) for _ in range(-(-hard // len(cluster)))]
        return np.concatenate(rounds)[:hard]
    drawn, speakers = [], 0
    for cluster in _cluster_order(rng, hard, sampler, table):
        drawn.append(table.speakers_of(cluster))
        speakers += len(drawn[-1])
        if speakers >= hard:
            break
    if sampler.fill == "pool":
        return rng.choice(np.concatenate(drawn), hard, replace=False, shuffle=False)
    needed = hard - (speakers - len(drawn[-1]))
    drawn[-1] = rng.choice(drawn[-1], needed, replace=False, shuffle=False)
    return np.concatenate(drawn)


def _cluster_order(
    rng: np.random.Generator, hard: int, sampler: Sampler, table: SpeakerClusters
) -> np.ndarray:
    """The clusters that have speakers, in the order in which they are drawn."""
    if sampler.cluster_weight == "size":
        # A cluster that fills the quota gives `hard` of its speakers, so it must come in proportion
        # to its size for each to be seen as often; those that are used up come equally often.
        smallest = 0 if sampler.repeats else hard  # with repeats, any cluster fills the quota
        weight = np.where(table.sizes > 0, np.maximum(table.sizes, smallest), 0)
    else:
        weight = np.sign(table.sizes)
    if hard == sampler.speakers and sampler.repeats:
        # One speaker again and again has no negative.
        weight = np.where(table.sizes > 1, weight, 0)
        if not weight.any():
            raise UserError(
                f"each of {len(table.sizes)} clusters holds one speaker, who fills a batch alone: "
                "lower sampler.hard_ratio or sampler.clusters"
            )
    # Sorting by exponential / weight draws without replacement in proportion to the weights.
    with np.errstate(divide="ignore"):
        order = np.argsort(rng.standard_exponential(len(weight)) / weight)
    order = order[: np.count_nonzero(weight)]
    if sampler.next_cluster == "random":
        return order
    nearest = table.nearest[order[0]]
    return nearest[weight[nearest] > 0]


def _others(rng: np.random.Generator, count: int, taken: np.ndarray, speakers: int) -> np.ndarray:
    """`count` distinct speakers that are not `taken`."""
    taken = np.unique(taken)
    place = rng.choice(speakers - len(taken), count, replace=False, shuffle=False)
    # The i-th speaker not taken is i plus the number of taken ones that stand before it.
    gaps = taken - np.arange(len(taken))
    return place + np.searchsorted(gaps, place, side="right")


def _two_utterances(rng: np.random.Generator, speakers: np.ndarray, corpus: Corpus) -> np.ndarray:
    """Two different utterances of each speaker, from different recordings where there are two.

    The first is any of the speaker's; the second is any that is not of the first's recording.
    """
    first_u, second_u = rng.random((2, len(speakers)))
    start, end = corpus.speaker_start[speakers], corpus.speaker_start[speakers + 1]
    first = start + (first_u * (end - start)).astype(np.int64)
    skip_from, skip_to = corpus.recording_start[first], corpus.recording_end[first]
    only_recording = (skip_from == start) & (skip_to == end)
    skip_from = np.where(only_recording, first, skip_from)
    skip_to = np.where(only_recording, first + 1, skip_to)
    skipped = skip_to - skip_from
    second = start + (second_u * (end - start - skipped)).astype(np.int64)
    second = np.where(second >= skip_from, second + skipped, second)
    return np.concatenate([first, second])


def _utterances(seed: int, step: int, count: int, utterances: int) -> np.ndarray:
    """The next `count` utterances of a pass over all, in an order of its own for every epoch."""
    epoch, place = np.divmod(np.arange(step * count, (step + 1) * count), utterances)
    drawn = np.empty(count, np.int64)
    for number in np.unique(epoch):
        here = epoch == number
        drawn[here] = _epoch_order(seed, int(number), utterances)[place[here]]
    return drawn


@lru_cache(2)
def _epoch_order(seed: int, epoch: int, utterances: int) -> np.ndarray:
    return generator(seed, Purpose.EPOCH, epoch).permutation(utterances)

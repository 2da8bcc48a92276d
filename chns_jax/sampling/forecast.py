"""What a table of clusters will do to the batches, before any of them is trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from chns_jax.common.randomness import Purpose, generator
from chns_jax.common.vectors import nearest
from chns_jax.config import Sampler
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.sampling.plan import draw_speakers

NEAREST = 10  # speakers who are an anchor's hardest negatives
BATCHES = 300
ANCHORS = 2000  # of all batches: a share's standard error is 0.3 % at most
# Below so many times as many of them as in a random batch, the loss is hardly another.
LEAST_GAIN = 1.5


class Forecast(NamedTuple):
    """Of batches by a table, and of random ones; nearness is that of voiceprints by cosine."""

    nearest_random: float  # share of an anchor's NEAREST speakers that are in its batch
    nearest_chns: float
    voiceprint_cosine_random: float  # mean of an anchor and the others in its batch
    voiceprint_cosine_chns: float
    speakers_over_batch: float
    cluster_over_batch: float  # size of the mean cluster over speakers in a batch

    def lines(self, sampler: Sampler) -> list[str]:
        """What it says, and a warning where batches by the table are hardly others."""
        shares = f"{100 * self.nearest_chns:.3g} % of a speaker's {NEAREST} nearest"
        random = f"{100 * self.nearest_random:.3g} %"
        said = [
            f"a CHNS batch of {sampler.speakers} will hold {shares}, a random one {random}; mean "
            f"cosine of voiceprints in it {self.voiceprint_cosine_chns:.3f}, in a random one "
            f"{self.voiceprint_cosine_random:.3f}; speakers over batch "
            f"{self.speakers_over_batch:.3g}, cluster over batch {self.cluster_over_batch:.3g}"
        ]
        if self.nearest_chns < LEAST_GAIN * self.nearest_random:
            harder = {
                "sampler.hard_ratio": sampler.hard_ratio < 1,
                "sampler.clusters": self.cluster_over_batch > sampler.hard_ratio,
            }
            keys = " or ".join(key for key, helps in harder.items() if helps)
            said.append(
                f"warning: CHNS can hardly matter here, as its batches hold {shares} where random "
                f"ones hold {random}: lower sampler.speakers, {f'raise {keys}, ' if keys else ''}"
                "or train on more speakers"
            )
        return said


def forecast(
    voiceprints: np.ndarray, table: SpeakerClusters, sampler: Sampler, *, seed: int, step: int
) -> Forecast:
    """Forecast of the BATCHES that would follow `step`, from voiceprints (n, d), L2-normalised.

    Of random batches it is the expectation. Needs as many speakers as are in a batch. Of ANCHORS
    anchors only the nearest are sought, so that the cost grows with n and not with its square.
    """
    speakers = len(voiceprints)
    batches = np.stack(
        [
            draw_speakers(generator(seed, Purpose.PLAN, step + i), sampler, speakers, table)[0]
            for i in range(BATCHES)
        ]
    )
    total = voiceprints.sum(axis=0, dtype=np.float64)
    return Forecast(
        nearest_random=(sampler.speakers - 1) / (speakers - 1),
        nearest_chns=_share_of_nearest(voiceprints, batches, seed, step),
        voiceprint_cosine_random=float((total @ total - speakers) / (speakers * (speakers - 1))),
        voiceprint_cosine_chns=float(np.mean([_mean_cosine(voiceprints, b) for b in batches])),
        speakers_over_batch=speakers / sampler.speakers,
        cluster_over_batch=speakers / np.count_nonzero(table.sizes) / sampler.speakers,
    )


def _share_of_nearest(voiceprints: np.ndarray, batches: np.ndarray, seed: int, step: int) -> float:
    """Share of anchors' nearest speakers that are in their batches, rows of (batches, b)."""
    rng = generator(seed, Purpose.FORECAST, step)
    places = rng.choice(batches.size, min(ANCHORS, batches.size), replace=False)
    batch, column = np.divmod(places, batches.shape[1])
    anchors, which = np.unique(batches[batch, column], return_inverse=True)
    neighbours = nearest(voiceprints, anchors, min(NEAREST, len(voiceprints) - 1))[which]
    shares = [np.isin(near, batches[b]).mean() for near, b in zip(neighbours, batch, strict=True)]
    return float(np.mean(shares))


def _mean_cosine(voiceprints: np.ndarray, batch: np.ndarray) -> float:
    """Of all pairs of different speakers in a batch (b,), where one may come several times."""
    speakers, times = np.unique(batch, return_counts=True)
    total = times @ voiceprints[speakers].astype(np.float64)
    same = np.square(times).sum()
    return (total @ total - same) / (len(batch) ** 2 - same)

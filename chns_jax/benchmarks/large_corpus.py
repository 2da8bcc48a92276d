"""Indices as large as VoxCeleb's whose audio is a small pool of raw samples, said again and again.

Training, sampling and validation see as many speakers, recordings and utterances as there would be,
and read each crop from where a record lies; only the disk is spared, as the system keeps so few
records in memory.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.corpus import shards, synthetic, trials
from chns_jax.corpus.corpus import Corpus, Strings
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.trials import Trials

POOL_SHARD_MB = 256
MOST_POOLED = 2_000  # utterances: of 8 s, 512 MB


class Pool(NamedTuple):
    """Built-in voices that speak for all."""

    speakers: int = 48
    utterances: int = 8
    seconds: float = 8.0  # VoxCeleb's utterances have 7.8 on average


class Size(NamedTuple):
    """How large an index is."""

    speakers: int
    recordings: int
    utterances: int

    def check(self) -> None:
        """Raises UserError when no corpus has this size."""
        if not 4 <= 2 * self.speakers <= self.recordings <= self.utterances:
            raise UserError(
                f"{self.utterances} utterances of {self.recordings} recordings of {self.speakers} "
                "speakers make no corpus: give two speakers or more, two recordings or more for "
                "each, and no fewer utterances than recordings"
            )


VOXCELEB2 = Size(speakers=5_994, recordings=145_569, utterances=1_092_009)  # its dev part
VOXCELEB1_O = Size(speakers=40, recordings=677, utterances=4_708)


def voxceleb1_o(utterances: int) -> Size:
    """So many utterances, of speakers and recordings in VoxCeleb1-O's proportion."""
    share = utterances / VOXCELEB1_O.utterances
    speakers = max(2, round(share * VOXCELEB1_O.speakers))
    recordings = max(2 * speakers, round(share * VOXCELEB1_O.recordings))
    return Size(speakers, recordings, utterances)


def make_pool(cache: Path, sample_rate: int, source: str | Path | Pool) -> Path:
    """A prepared folder in `cache` of raw samples: of built-in voices, or of a folder of speech, of
    which 2,000 utterances are taken at most. Made once."""
    if isinstance(source, Pool):
        about = "-".join(map(str, source))
        root = synthetic.write_corpus(
            cache / f"voices-of-pool-{about}", seed=0, speakers=source.speakers,
            utterances=source.utterances, seconds=source.seconds,
        )  # fmt: skip
    else:
        root = Path(source).expanduser().resolve()
        about = _digest(str(root))
    corpus = open_corpus(root, cache)
    corpus = corpus.only(_spread(len(corpus), MOST_POOLED))
    out = cache / f"pool-{sample_rate}-{about}"
    shards.write(corpus, out, shards.Options("pcm16", sample_rate, POOL_SHARD_MB), threads=4)
    return out


def make_corpus(cache: Path, pool: Path, size: Size, first_speaker: int = 0) -> Path:
    """A prepared folder in `cache` of an index of this size, whose speakers are numbered from
    `first_speaker` on and each speak with the voice of one in the pool. Made once.

    Raises UserError for a size that no corpus has.
    """
    size.check()
    out = cache / f"repeated-{_digest(str(pool), *size, first_speaker)}"
    if out.exists():
        return out
    voices, rng = shards.load(pool), np.random.default_rng(0)
    of_speaker = _divided(rng, size.recordings, size.speakers, least=2)
    of_recording = _divided(rng, size.utterances, size.recordings, least=1)
    recording = np.repeat(np.arange(size.recordings, dtype=np.int32), of_recording)
    speaker = np.repeat(np.arange(size.speakers, dtype=np.int32), of_speaker)[recording]
    speakers = [f"id{first_speaker + i:05d}" for i in range(size.speakers)]
    places = zip(speaker.tolist(), recording.tolist(), range(size.utterances), strict=True)
    shards.write_repeated(
        pool, out, _rows(rng, voices, speaker),
        names=Strings.of(f"{speakers[s]}/r{r:06d}/u{u:07d}.wav" for s, r, u in places),
        speakers=np.array(speakers), speaker=speaker, recording=recording,
    )  # fmt: skip
    return out


def write_trials(path: Path, corpus: Corpus, count: int) -> None:
    """A list of so many trials between the utterances of a corpus; about half are targets.

    All utterances occur, as far as there are enough trials.
    """
    rng = np.random.default_rng(0)
    enrolment = np.resize(rng.permutation(len(corpus)), count)
    start = corpus.speaker_start
    first, end = (start[corpus.speaker[enrolment] + i] for i in (0, 1))
    of_anyone = np.arange(count) % 2 == 0
    first, end = np.where(of_anyone, 0, first), np.where(of_anyone, len(corpus), end)
    # Another utterance than that of the enrolment; the next speaker's, where there is no other.
    test = first + (rng.random(count) * (end - first - 1)).astype(np.int64)
    test = (test + (test >= enrolment)) % len(corpus)
    same = corpus.speaker[enrolment] == corpus.speaker[test]
    trials.write(path, Trials(same, enrolment, test), corpus)


def _divided(rng: np.random.Generator, whole: int, parts: int, *, least: int) -> np.ndarray:
    """`whole` things divided at random among `parts`, `least` or more for each: (parts,)."""
    return least + rng.multinomial(whole - least * parts, np.full(parts, 1 / parts))


def _rows(rng: np.random.Generator, voices: Corpus, speaker: np.ndarray) -> np.ndarray:
    """For each utterance (u,) a row of `voices`, all of a speaker's by one of them."""
    voice = speaker % len(voices.speakers)
    first, end = voices.speaker_start[voice], voices.speaker_start[voice + 1]
    return first + (rng.random(len(speaker)) * (end - first)).astype(np.int64)


def _spread(count: int, most: int) -> np.ndarray:
    """Which of `count` are taken, (count,) bool: evenly spaced, `most` of them at most."""
    taken = np.zeros(count, bool)
    taken[np.linspace(0, count - 1, min(count, most)).round().astype(int)] = True
    return taken


def _digest(*about: object) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

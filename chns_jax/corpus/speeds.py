"""Speakers at other speeds, who are other speakers: more of them to tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from chns_jax.corpus.corpus import Corpus


def with_speeds(corpus: Corpus, speeds: Sequence[float]) -> Corpus:
    """The corpus, and after it all its speakers again at each of `speeds`.

    At a speed of 1.1, voices are higher and utterances shorter. Speaker i of n is speaker
    i + j * n at speed number j = 1, 2, ..., called "name/x1.1", with the same recordings, of which
    two are as different as they are of the speaker. Source: Yamamoto et al. 2019, Speaker
    augmentation and bandwidth extension for deep speaker embedding.
    """
    if not speeds:
        return corpus
    count, speakers = 1 + len(speeds), len(corpus.speakers)
    recordings = int(corpus.recording[-1]) + 1
    played = np.repeat(np.array([1.0, *speeds]), len(corpus))
    names, files = corpus.names, corpus.files
    for _ in speeds:
        names = names.followed_by(corpus.names)
        files = names if corpus.files is corpus.names else files.followed_by(corpus.files)
    called = [f"{name}/x{speed:g}" for speed in speeds for name in corpus.speakers]

    def copies(numbers: np.ndarray, distance: int) -> np.ndarray:
        """The numbers of all copies, which begin `distance` after those of the one before."""
        shifts = np.arange(count, dtype=numbers.dtype) * distance
        return (shifts[:, None] + numbers).reshape(-1)

    return replace(
        corpus,
        speakers=np.concatenate([corpus.speakers, np.array(called, dtype=str)]),
        names=names,
        files=files,
        root=np.tile(corpus.root, count),
        speaker=copies(corpus.speaker, speakers),
        recording=copies(corpus.recording, recordings),
        seconds=(np.tile(corpus.seconds, count) / played).astype(np.float32),
        rate=np.tile(corpus.rate, count),
        speed=played,
    )

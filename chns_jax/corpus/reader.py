"""Crops of a corpus's utterances; what cannot be read is remembered, and replaced."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from chns_jax.corpus.audio import AudioError, check_folder, read_crop
from chns_jax.corpus.corpus import Corpus
from chns_jax.corpus.retry import ReadError, retried


@dataclass(frozen=True)
class Reader:
    """Reads crops of a corpus, and remembers the files that it could not read."""

    corpus: Corpus
    sample_rate: int
    threads: int
    skipped: dict[str, str] = field(default_factory=dict)  # path -> why

    def crop(self, utterance: int, position: float, samples: int) -> np.ndarray:
        """A crop (s,) int16 of an utterance, at `position` in [0, 1], at the speed that the corpus
        says. Raises as `read_crop`, and ReadError for one that is missing with all that its folder
        held."""
        path, sample_rate = self.corpus.path(utterance), self.sample_rate
        if self.corpus.speed is not None:  # of samples at a lower rate, more are heard a second
            sample_rate = sample_rate / float(self.corpus.speed[utterance])

        def read() -> np.ndarray:
            try:
                return read_crop(path, position, samples, sample_rate)
            except AudioError:
                check_folder(path)
                raise

        return retried(read, path)

    def random_crop(self, utterance: int, rng: np.random.Generator, samples: int) -> np.ndarray:
        """A random crop of an utterance, or of another of its speaker where that one is broken.

        Raises ReadError when one cannot be read now, or all are broken.
        """
        position = rng.random()
        try:
            return self.crop(utterance, position, samples)
        except AudioError as error:
            self.skipped[error.path] = error.why
        speaker = self.corpus.speaker[utterance]
        others = rng.permutation(np.arange(*self.corpus.speaker_start[speaker : speaker + 2]))
        for other in others[others != utterance].tolist():
            try:
                return self.crop(other, position, samples)
            except AudioError as error:
                self.skipped[error.path] = error.why
        raise ReadError(
            f"no utterance of speaker {self.corpus.speakers[speaker]} can be read, "
            f"not even {self.corpus.path(utterance)}: repair them or leave the speaker out"
        )

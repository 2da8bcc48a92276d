"""Noise for training crops, read from a folder such as MUSAN. No jax here."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from chns_jax.config import Noise
from chns_jax.corpus.audio import AudioError, read_crop
from chns_jax.corpus.listing import all_audio_files
from chns_jax.corpus.retry import ReadError

KINDS = ("noise", "music", "speech")
ATTEMPTS = 10


@dataclass(frozen=True)
class NoiseFiles:
    """The files of a noise folder by kind; kinds without files are absent."""

    files: dict[str, list[str]]
    options: Noise
    sample_rate: int

    def draw(self, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, np.float32]:
        """Noise (s,) int16 and the signal-to-noise ratio at which to add it, dB.

        With 1 - `probability`, silence and infinity. Babble is the sum of several recordings of
        equal power. Raises ReadError when file after file cannot be read.
        """
        if rng.random() >= self.options.probability:
            return np.zeros(samples, np.int16), np.float32(np.inf)
        kind = list(self.files)[rng.integers(len(self.files))]
        if kind == "speech":
            fewest, most = self.options.talkers
            talkers = [
                self._crop(kind, rng, samples) for _ in range(rng.integers(fewest, most + 1))
            ]
            mixed = sum(talker / max(1.0, np.sqrt(np.square(talker).mean())) for talker in talkers)
            noise = np.rint(mixed * (32767 / max(1.0, np.abs(mixed).max()))).astype(np.int16)
        else:
            noise = self._crop(kind, rng, samples).astype(np.int16)
        low, high = getattr(self.options, f"{kind}_snr")
        return noise, np.float32(rng.uniform(low, high))

    def _crop(self, kind: str, rng: np.random.Generator, samples: int) -> np.ndarray:
        files = self.files[kind]
        for _ in range(ATTEMPTS):
            path = files[rng.integers(len(files))]
            try:
                crop = read_crop(path, rng.random(), samples, self.sample_rate)
                return crop.astype(np.float64)
            except AudioError as error:
                why = error
        raise ReadError(f"the noise cannot be read: {why}; repair the folder augment.noise.root")


def find_noise(options: Noise, sample_rate: int) -> NoiseFiles | None:
    """The files under `options.root`; None when its probability is 0.

    Raises UserError when there is no such folder or no audio in it.
    """
    if not options.probability:
        return None
    files: dict[str, list[str]] = {}
    assert options.root is not None  # the config asks for it
    root = os.path.expanduser(options.root)
    for path in all_audio_files(root, "augment.noise.root"):
        top = os.path.relpath(path, root).partition("/")[0]
        files.setdefault(top if top in KINDS else "noise", []).append(path)
    return NoiseFiles({kind: files[kind] for kind in KINDS if kind in files}, options, sample_rate)

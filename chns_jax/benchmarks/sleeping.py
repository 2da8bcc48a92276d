"""A device that sleeps in place of computing: what is left of a run is what the host does."""

from __future__ import annotations

import time
from threading import Lock
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from chns_jax.common.vectors import unit
from chns_jax.config import Config
from chns_jax.devices.sharding import put
from chns_jax.embedding.embedder import Embedder
from chns_jax.training.build import Build

PIECE, PIECES_APART = 512, 8  # samples of a spectrum, and of how many pieces one is looked at


class SleepingDevice:
    """Does one thing after another, and for each takes the seconds that it is told."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._free_at = 0.0

    def start(self, seconds: float) -> float:
        """Begin something once what went before is done; returns when it will be done."""
        with self._lock:
            _sleep_until(self._free_at)
            self._free_at = time.perf_counter() + seconds
            return self._free_at

    def run(self, seconds: float) -> None:
        """Begin something, and wait for it."""
        _sleep_until(self.start(seconds))


class SleepingEmbedder(Embedder):
    """Takes crops to the devices as they are taken there, and then sleeps `seconds` a batch.

    Spectra stand for embeddings, so that there is something to cluster.
    """

    def __init__(self, config: Config, mesh: Mesh, device: SleepingDevice):
        super().__init__(config, mesh)
        self.device, self.dimension, self.seconds = device, config.encoder.embedding, 0.0

    def crops(self, variables: dict[str, Any], audio: np.ndarray) -> np.ndarray:
        full = np.pad(audio, ((0, len(self.held) - len(audio)), (0, 0)))
        jax.block_until_ready(put(self.mesh, full))
        self.device.run(self.seconds)
        return _spectra(full, self.dimension)


def sleeping_build(built: Build, config: Config, device: SleepingDevice, seconds: float) -> Build:
    """The real first state, and an update that takes a batch to the devices and sleeps.

    As on a device, it returns while the step is under way, and waits for the one before.
    """
    rng = np.random.default_rng(0)
    z = unit(rng.normal(size=(2 * config.sampler.speakers, config.encoder.embedding)))
    z = z.astype(np.float32)

    def update(state, batch, *others):
        jax.block_until_ready(batch)
        device.start(seconds)
        metrics = {"loss": 0.0, "learning_rate": 0.0, "z": z}
        return state.replace(step=state.step + 1), metrics

    return built._replace(update=update)


def _spectra(audio: np.ndarray, dimension: int) -> np.ndarray:
    """Mean log spectra of a few pieces of each row (r, s): (r, dimension) float32."""
    count = audio.shape[1] // PIECE  # a crop has one at least
    pieces = audio[:, : count * PIECE].reshape(len(audio), count, PIECE)[:, ::PIECES_APART]
    power = np.square(np.abs(np.fft.rfft(pieces.astype(np.float32)))).mean(axis=1)
    spectra = np.log(power + 1.0)
    spectra -= spectra.mean(axis=1, keepdims=True) - 0.1
    return np.resize(spectra.T, (dimension, len(audio))).T.astype(np.float32)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))

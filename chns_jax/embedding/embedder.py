"""A frozen encoder compiled for a mesh: waveforms -> speaker embeddings on the host."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int16

from chns_jax.common.errors import UserError
from chns_jax.config import LONGEST_SECONDS, Config
from chns_jax.devices.sharding import by_rows, for_own_rows, held, put, replicated
from chns_jax.devices.xla_flags import quick_to_compile
from chns_jax.encoders import make_encoder
from chns_jax.encoders.features import frame_count, log_mel
from chns_jax.runs.state import of_encoder

MAX_ROWS = 256
SHORTEST_SECONDS = 0.2
# Padded seconds in a batch, on each device. A row or two fill the caches of a CPU, which more rows
# only make slower.
BATCH_SECONDS = {"cpu": 16}
BATCH_SECONDS_OF_ACCELERATORS = 480


class Embedder:
    """`crops` embeds rows of one length, `padded` rows padded to one; both compile once a shape.

    The variables of the encoder are an argument, so that one embedder serves all of a run's. Both
    raise UserError for an encoder whose embeddings are no finite numbers. A `quick` one is compiled
    in a quarter of the time on a CPU, and then takes up to three times as long.
    """

    def __init__(self, config: Config, mesh: Mesh, *, quick: bool = False):
        encoder, features = make_encoder(config.encoder), config.features
        self.mesh = mesh
        # As many as a training batch has, but no more than MAX_ROWS.
        self.rows = math.ceil(min(MAX_ROWS, 2 * config.sampler.speakers) / mesh.size) * mesh.size
        self.held = held(mesh, self.rows)  # those of the rows that are on this process's devices
        backend = jax.default_backend()
        seconds = BATCH_SECONDS.get(backend, BATCH_SECONDS_OF_ACCELERATORS) * mesh.size
        self.batch_samples = seconds * features.sample_rate  # of a padded batch
        reflected = features.window + (encoder.fewest_frames - 1) * features.hop
        # Samples, of a padded row.
        self.shortest = max(math.ceil(SHORTEST_SECONDS * features.sample_rate), reflected)

        def embed(variables, *rows):  # audio, or audio and samples
            def of_rows(rows, variables):
                return embed_step(variables, *rows, config=config, encoder=encoder)

            return for_own_rows(of_rows, mesh)(rows, variables)

        whole, rows_split = replicated(mesh), by_rows(mesh)
        options = quick_to_compile() if quick and backend == "cpu" else None
        compiled = partial(jax.jit, embed, out_shardings=whole, compiler_options=options)
        self._crops = compiled(in_shardings=(whole, rows_split))
        self._padded = compiled(in_shardings=(whole, rows_split, rows_split))

    def own(self, audio: np.ndarray) -> np.ndarray:
        """Those of `rows` rows (r, s), or of fewer, that this process gives to `crops`."""
        return audio[self.held[self.held < len(audio)]]

    def crops(self, variables: dict[str, Any], audio: np.ndarray) -> np.ndarray:
        """Embeddings (rows, d) of the int16 crops (r, s) of all processes.

        Each gives those that it holds. Fewer than `rows` are filled up with silence, so that each s
        has one compiled shape.
        """
        full = np.pad(audio, ((0, len(self.held) - len(audio)), (0, 0)))
        return _finite(self._crops(variables, put(self.mesh, full)))

    def padded(
        self, variables: dict[str, Any], audio: np.ndarray, samples: np.ndarray
    ) -> np.ndarray:
        """Embeddings (b, d) of int16 utterances of `samples` (b,) samples, padded to (b, s)."""
        return _finite(self._padded(variables, put(self.mesh, audio), put(self.mesh, samples)))


def embed_step(
    variables: dict[str, Any],
    audio: Int16[Array, "b s"],
    samples: Int[Array, " b"] | None = None,
    *,
    config: Config,
    encoder: nn.Module,
) -> Float[Array, "b d"]:
    """Speaker embeddings in inference mode, not normalised, of products in float32.

    Of each row the first `samples` samples are an utterance, and the rest is padding.
    """
    frames_b = None if samples is None else frame_count(samples, config.features)
    # Accelerators multiply float32 in TensorFloat-32 or bfloat16 unless told.
    with jax.default_matmul_precision("float32"):
        x = log_mel(audio, config.features, samples)
        # It is a pair only where variables may change.
        return cast(Array, encoder.apply(of_encoder(variables), x, train=False, frames_b=frames_b))


def segment_samples(embedder: Embedder, sample_rate: int, seconds: float | None) -> int | None:
    """Samples of the --segments of a command. Raises UserError when too short or too long."""
    if seconds is None:
        return None
    return checked_samples(embedder, sample_rate, seconds, "--segments")


def checked_samples(embedder: Embedder, sample_rate: int, seconds: float, option: str) -> int:
    """Samples of what is embedded at once, which an option of a command says in seconds. Raises
    UserError when too short or too long."""
    if seconds > LONGEST_SECONDS or round(seconds * sample_rate) < embedder.shortest:
        raise UserError(
            f"{option} {seconds:g} must be {embedder.shortest / sample_rate:g} seconds at least, "
            f"and {LONGEST_SECONDS} at most"
        )
    return round(seconds * sample_rate)


def _finite(embeddings: jax.Array) -> np.ndarray:
    """The embeddings on the host. Raises UserError when one is not finite."""
    on_host = np.asarray(embeddings)
    if not np.isfinite(on_host).all():
        raise UserError(
            "the encoder's embeddings are no finite numbers, as its training diverged: train with "
            "a lower optimizer.learning_rate or a higher loss.min_temperature, or go back to an "
            "earlier checkpoint"
        )
    return on_host

"""Embeddings of whole utterances and of speakers, with a frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from chns_jax.config import Config
from chns_jax.corpus.audio import AudioError
from chns_jax.errors import UserError
from chns_jax.sampling.pipeline import Reader, voiceprint_batches
from chns_jax.sharding import put, replicated, split
from chns_jax.step import embed_step

MAX_ROWS = 256

Encode = Callable[[dict[str, Any], np.ndarray], np.ndarray]


def rows_per_batch(config: Config, mesh: Mesh) -> int:
    """Rows that are embedded at once: as many as a training batch has, but no more than 256."""
    rows = min(MAX_ROWS, 2 * config.sampler.speakers)
    return math.ceil(rows / mesh.size) * mesh.size


def make_encode(config: Config, encoder: nn.Module, mesh: Mesh) -> Encode:
    """encode(variables, audio): int16 crops (r, s) -> embeddings (r, d) on the host.

    r is at most `rows_per_batch`; fewer rows are filled up with silence, so that there is one
    compiled shape for each s.
    """
    rows = rows_per_batch(config, mesh)
    embed = jax.jit(
        partial(embed_step, config=config, encoder=encoder),
        in_shardings=(replicated(mesh), split(mesh)),
        out_shardings=replicated(mesh),
    )

    def encode(variables: dict[str, Any], audio: np.ndarray) -> np.ndarray:
        missing = rows - len(audio)
        full = np.pad(audio, ((0, missing), (0, 0))) if missing else audio
        return np.asarray(embed(variables, put(mesh, full)))[: len(audio)]

    return encode


def embed_utterances(
    encode: Encode,
    variables: dict[str, Any],
    reader: Reader,
    utterances: np.ndarray,
    *,
    samples: int,
    rows: int,
) -> np.ndarray:
    """L2-normalised embeddings (v, d) of whole utterances, rows (v,) of the reader's corpus.

    An utterance is cut into as few evenly spaced segments of `samples` samples as cover it, the
    last ending where it ends; its embedding is the mean of theirs, each normalised. One that is
    shorter than a segment is repeated. Raises UserError when a file cannot be read.
    """
    owner, position = _segments(reader.corpus.seconds[utterances], samples / reader.sample_rate)

    def read(i: int) -> np.ndarray:
        try:
            return reader.crop(int(utterances[owner[i]]), position[i], samples)
        except AudioError as error:
            raise UserError(f"{error}: remove it from the trials or replace it") from error

    batches = reader.batches(read, len(owner), rows)
    embeddings = unit(_encode_all(encode, variables, batches, len(owner), "embedding segments"))
    total = np.zeros((len(utterances), embeddings.shape[1]))
    np.add.at(total, owner, embeddings)
    return unit(total).astype(np.float32)


def embed_speakers(
    encode: Encode,
    variables: dict[str, Any],
    reader: Reader,
    *,
    per_speaker: int,
    seed: int,
    round: int,
    samples: int,
    rows: int,
) -> np.ndarray:
    """Embeddings (n, k, d), not normalised, of k random crops of each speaker of the corpus."""
    speakers = len(reader.corpus.speakers)
    batches = voiceprint_batches(
        reader, per_speaker=per_speaker, seed=seed, round=round, samples=samples, rows=rows
    )
    count = speakers * per_speaker
    embeddings = _encode_all(encode, variables, batches, count, "embedding speakers")
    return embeddings.reshape(speakers, per_speaker, -1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., d) divided by their L2 norm."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _segments(seconds: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Owner and position in [0, 1] of the segments that cover utterances of these durations."""
    count = np.maximum(1, np.ceil(seconds / length - 1e-6)).astype(np.int64)
    owner = np.repeat(np.arange(len(seconds)), count)
    index = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    return owner, index / np.maximum(count - 1, 1)[owner]


def _encode_all(
    encode: Encode, variables: dict[str, Any], batches: Iterator, count: int, what: str
) -> np.ndarray:
    done = []
    with tqdm(total=count, desc=what, unit="crop", disable=None, leave=False) as bar:
        for audio in batches:
            done.append(encode(variables, audio))
            bar.update(len(audio))
    return np.concatenate(done)

"""Utterances -> embeddings: waveforms of any length, rows of a corpus, random crops."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.prefetch import ahead
from chns_jax.common.progress import progress_bar
from chns_jax.common.vectors import unit
from chns_jax.corpus.audio import AudioError, read_whole
from chns_jax.corpus.reader import Reader
from chns_jax.embedding.buckets import bucket_lengths, cut, pad, segments
from chns_jax.embedding.embedder import Embedder

Key = TypeVar("Key", bound=Hashable)


def embed_waveforms(
    embedder: Embedder,
    variables: dict[str, Any],
    waveforms: Iterable[tuple[Key, np.ndarray]],
    *,
    sample_rate: int,
    segment: int | None = None,
    longest: int | None = None,
) -> Iterator[tuple[Key, np.ndarray]]:
    """L2-normalised embeddings (d,) float32 of waveforms (s,) int16, as their batches are full.

    Waveforms come and go under distinct keys. Each is embedded whole, and equals what it gives
    alone and unpadded to 1e-4. Of one over 60 s, equal pieces are embedded, whose normalised
    embeddings are averaged; with `segment`, evenly spaced segments of so many samples. One under
    0.2 s, or shorter than a convolution reflects, is repeated to that length. Where `longest` says
    how many samples the longest has, all are padded to one length, so that one program is compiled.
    """
    lengths = [segment] if segment else bucket_lengths(sample_rate)
    if longest is not None:
        longest = max(longest, embedder.shortest)
        lengths = [next((length for length in lengths if length >= longest), lengths[-1])]
    total: dict[Key, list] = {}  # sum of embeddings, and how many are missing

    def pieces() -> Iterator[tuple[Key, np.ndarray]]:
        for key, waveform in waveforms:
            if segment:
                made = segments(waveform, segment)
            else:
                made = cut(waveform, shortest=embedder.shortest, longest=lengths[-1])
            total[key] = [0.0, len(made)]
            yield from ((key, piece) for piece in made)

    batches = pad(pieces(), lengths, samples=embedder.batch_samples, multiple=embedder.mesh.size)
    for keys, audio, samples in batches:
        embeddings = unit(embedder.padded(variables, audio, samples).astype(np.float64))
        for key, embedding in zip(keys, embeddings[: len(keys)], strict=True):
            total[key][0] += embedding
            total[key][1] -= 1
            if total[key][1] == 0:
                yield key, unit(total.pop(key)[0]).astype(np.float32)


def embed_utterances(
    embedder: Embedder,
    variables: dict[str, Any],
    reader: Reader,
    utterances: np.ndarray,
    *,
    samples: int,
) -> np.ndarray:
    """L2-normalised embeddings (v, d) of utterances, rows (v,) of the reader's corpus.

    An utterance is cut into as few evenly spaced segments of `samples` samples as cover it, the
    last ending where it ends; its embedding is the mean of theirs, each normalised. One that is
    shorter than a segment is repeated. Only the segments are decoded, and one shape is compiled.
    Raises UserError when a file cannot be read.
    """
    from chns_jax.sampling.pipeline import read_batches  # grain takes a second to import

    owner, position = _segments(reader.corpus.seconds[utterances], samples / reader.sample_rate)

    def read(i: int) -> np.ndarray:
        try:
            return reader.crop(int(utterances[owner[i]]), position[i], samples)
        except AudioError as error:
            raise UserError(f"{error}: replace the file or leave it out") from error

    read_ahead = read_batches(reader, read, len(owner), embedder.rows, embedder.held)
    embeddings = unit(
        embed_crops(embedder, variables, read_ahead, len(owner), samples, "embedding segments")
    )
    total = np.zeros((len(utterances), embeddings.shape[1]))
    np.add.at(total, owner, embeddings)
    return unit(total).astype(np.float32)


def embed_whole(
    embedder: Embedder, variables: dict[str, Any], reader: Reader, utterances: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """Place in `utterances` (v,) and embedding (d,) of each, as by `embed_waveforms`, which embeds
    it whole, and as soon as that gives it. Raises UserError when a file cannot be read."""

    def waveform(place: int) -> tuple[int, np.ndarray]:
        try:
            path = reader.corpus.path(int(utterances[place]))
            return place, read_whole(path, reader.sample_rate)
        except AudioError as error:
            raise UserError(f"{error}: replace the file or leave it out") from error

    waveforms = ahead(waveform, range(len(utterances)), reader.threads)
    made = embed_waveforms(embedder, variables, waveforms, sample_rate=reader.sample_rate)
    count = len(utterances)
    yield from progress_bar(made, what="embedding utterances", unit="utterance", total=count)


def _segments(seconds: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Owner and position in [0, 1] of the segments that cover utterances of these durations."""
    count = np.maximum(1, np.ceil(seconds / length - 1e-6)).astype(np.int64)
    owner = np.repeat(np.arange(len(seconds)), count)
    index = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    return owner, index / np.maximum(count - 1, 1)[owner]


def embed_crops(
    embedder: Embedder,
    variables: dict[str, Any],
    batches: Iterator,
    count: int,
    samples: int,
    what: str,
) -> np.ndarray:
    """Embeddings (count, d), of which each host reads the crops that its devices embed."""
    done, nothing = [], np.zeros((0, samples), np.int16)
    with progress_bar(what=what, unit="crop", total=count) as bar:
        for first in range(0, count, embedder.rows):
            embeddings = embedder.crops(variables, next(batches, nothing))[: count - first]
            done.append(embeddings)
            bar.update(len(embeddings))
    return np.concatenate(done)

"""Embeddings of utterances, and clusters of speakers, with a frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from chns_jax import hosts
from chns_jax.buckets import bucket_lengths, cut, pad, segments
from chns_jax.config import LONGEST_SECONDS, Config, Sampler
from chns_jax.corpus.audio import AudioError, read_whole
from chns_jax.errors import UserError
from chns_jax.sampling import clusters
from chns_jax.sampling.clusters import Table, unit
from chns_jax.sampling.pipeline import Reader, voiceprint_batches
from chns_jax.sharding import for_own_rows, held, put, replicated, split
from chns_jax.step import embed_step
from chns_jax.threads import ahead

MAX_ROWS = 256
SHORTEST_SECONDS = 0.2
# Padded seconds in a batch, on each device. A row or two fill the caches of a CPU, which more rows
# only make slower.
BATCH_SECONDS = {"cpu": 16, "gpu": 480, "tpu": 480}


@dataclass(frozen=True)
class Encode:
    """encode(variables, audio): int16 crops (r, s) -> embeddings (r, d) on the host.

    r is at most `rows`; fewer are filled up with silence, so that each s has one compiled shape.
    Raises UserError for an encoder whose embeddings are no finite numbers.
    """

    rows: int
    mesh: Mesh
    embed: Callable[..., jax.Array]  # jitted embed_step of crops
    embed_padded: Callable[..., jax.Array]  # jitted embed_step of padded rows
    batch_samples: int  # of a padded batch
    shortest: int  # samples

    def __call__(self, variables: dict[str, Any], audio: np.ndarray) -> np.ndarray:
        mine = audio[self.held[self.held < len(audio)]]
        return self.together(variables, mine)[: len(audio)]

    @cached_property
    def held(self) -> np.ndarray:
        """Those of the rows that are on this host's devices."""
        return held(self.mesh, self.rows)

    def together(self, variables: dict[str, Any], audio: np.ndarray) -> np.ndarray:
        """Embeddings (rows, d) of what all hosts hold; this one gives its first `held` rows."""
        full = np.pad(audio, ((0, len(self.held) - len(audio)), (0, 0)))
        return _numbers(self.embed(variables, put(self.mesh, full)))

    def padded(
        self, variables: dict[str, Any], audio: np.ndarray, samples: np.ndarray
    ) -> np.ndarray:
        """Utterances of `samples` (b,) samples, padded to rows (b, s) -> embeddings (b, d)."""
        rows = put(self.mesh, audio), put(self.mesh, samples)
        return _numbers(self.embed_padded(variables, *rows))


def make_encode(config: Config, encoder: nn.Module, mesh: Mesh) -> Encode:
    """Inference over a mesh: as many rows at once as a training batch has, but no more than 256."""
    rows = math.ceil(min(MAX_ROWS, 2 * config.sampler.speakers) / mesh.size) * mesh.size

    def embed(variables, *rows_in):  # audio, or audio and samples
        def of_rows(rows_in, variables):
            return embed_step(variables, *rows_in, config=config, encoder=encoder)

        return for_own_rows(of_rows, mesh)(rows_in, variables)

    whole, rows_of = replicated(mesh), split(mesh)
    crops = jax.jit(embed, in_shardings=(whole, rows_of), out_shardings=whole)
    padded = jax.jit(embed, in_shardings=(whole, rows_of, rows_of), out_shardings=whole)
    features = config.features
    seconds = BATCH_SECONDS[jax.default_backend()] * mesh.size
    reflected = features.window + (encoder.fewest_frames - 1) * features.hop
    shortest = max(math.ceil(SHORTEST_SECONDS * features.sample_rate), reflected)
    batch_samples = seconds * features.sample_rate
    return Encode(rows, mesh, crops, padded, batch_samples, shortest)


def segment_samples(encode: Encode, sample_rate: int, seconds: float | None) -> int | None:
    """Samples of the --segments of a command. Raises UserError when too short or too long."""
    if seconds is None:
        return None
    if seconds > LONGEST_SECONDS or round(seconds * sample_rate) < encode.shortest:
        raise UserError(
            f"--segments {seconds:g} must be {encode.shortest / sample_rate:g} seconds at least, "
            f"and {LONGEST_SECONDS} at most"
        )
    return round(seconds * sample_rate)


def embed_waveforms(
    encode: Encode,
    variables: dict[str, Any],
    waveforms: Iterable[tuple[Hashable, np.ndarray]],
    *,
    sample_rate: int,
    segment: int | None = None,
) -> Iterator[tuple[Hashable, np.ndarray]]:
    """L2-normalised embeddings (d,) float32 of waveforms (s,) int16, as their batches are full.

    Waveforms come and go under distinct keys. Each is embedded whole, and equals what it gives
    alone and unpadded to 1e-4. Of one over 60 s, equal pieces are embedded, whose normalised
    embeddings are averaged; with `segment`, evenly spaced segments of so many samples. One under
    0.2 s, or shorter than a convolution reflects, is repeated to that length.
    """
    lengths = [segment] if segment else bucket_lengths(sample_rate)
    total: dict[Hashable, list] = {}  # sum of embeddings, and how many are missing

    def pieces() -> Iterator[tuple[Hashable, np.ndarray]]:
        for key, waveform in waveforms:
            if segment:
                made = segments(waveform, segment)
            else:
                made = cut(waveform, shortest=encode.shortest, longest=lengths[-1])
            total[key] = [0.0, len(made)]
            yield from ((key, piece) for piece in made)

    batches = pad(pieces(), lengths, samples=encode.batch_samples, multiple=encode.mesh.size)
    for keys, audio, samples in batches:
        embeddings = unit(encode.padded(variables, audio, samples).astype(np.float64))
        for key, embedding in zip(keys, embeddings[: len(keys)], strict=True):
            total[key][0] += embedding
            total[key][1] -= 1
            if total[key][1] == 0:
                yield key, unit(total.pop(key)[0]).astype(np.float32)


def embed_utterances(
    encode: Encode,
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
    owner, position = _segments(reader.corpus.seconds[utterances], samples / reader.sample_rate)

    def read(i: int) -> np.ndarray:
        try:
            return reader.crop(int(utterances[owner[i]]), position[i], samples)
        except AudioError as error:
            raise UserError(f"{error}: replace the file or leave it out") from error

    batches = reader.batches(read, len(owner), encode.rows, encode.held)
    embeddings = unit(
        _encode_all(encode, variables, batches, len(owner), samples, "embedding segments")
    )
    total = np.zeros((len(utterances), embeddings.shape[1]))
    np.add.at(total, owner, embeddings)
    return unit(total).astype(np.float32)


def embed_whole(
    encode: Encode, variables: dict[str, Any], reader: Reader, utterances: np.ndarray
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
    made = embed_waveforms(encode, variables, waveforms, sample_rate=reader.sample_rate)
    options = {"desc": "embedding utterances", "unit": "utterance", "disable": None, "leave": False}
    yield from tqdm(made, total=len(utterances), **options)


def make_table(
    encode: Encode,
    variables: dict[str, Any],
    reader: Reader,
    sampler: Sampler,
    *,
    samples: int,
    seed: int,
    round: int,
) -> Table:
    """Clusters of the reader's speakers, by their voices as the encoder hears them now.

    Embeds `sampler.utterances_per_speaker` random crops of each speaker, a function of seed and
    round. Several hosts read a part each, and all get the table of host 0. Source: CHNS, section 2.
    """
    speakers, per_speaker = len(reader.corpus.speakers), sampler.utterances_per_speaker
    batches = voiceprint_batches(
        reader, per_speaker=per_speaker, seed=seed, round=round, samples=samples, rows=encode.rows,
        held=encode.held,
    )  # fmt: skip
    count = speakers * per_speaker
    embeddings = _encode_all(encode, variables, batches, count, samples, "embedding speakers")
    voiceprints = clusters.voiceprints(
        embeddings.reshape(speakers, per_speaker, -1), normalise_first=sampler.normalise_first
    )
    table = clusters.cluster(
        voiceprints, sampler.clusters, seed=seed, round=round, kmeans=sampler.kmeans
    )
    # Another version of a library, or another processor, may cluster otherwise.
    return Table(*hosts.of_first((table.cluster, table.centroids)))


def _numbers(embeddings: jax.Array) -> np.ndarray:
    """On the host. Raises UserError when one is not finite."""
    embeddings = np.asarray(embeddings)
    if not np.isfinite(embeddings).all():
        raise UserError(
            "the encoder's embeddings are no finite numbers, as its training diverged: train with "
            "a lower optimizer.learning_rate or a higher loss.min_temperature, or go back to an "
            "earlier checkpoint"
        )
    return embeddings


def _segments(seconds: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Owner and position in [0, 1] of the segments that cover utterances of these durations."""
    count = np.maximum(1, np.ceil(seconds / length - 1e-6)).astype(np.int64)
    owner = np.repeat(np.arange(len(seconds)), count)
    index = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    return owner, index / np.maximum(count - 1, 1)[owner]


def _encode_all(
    encode: Encode,
    variables: dict[str, Any],
    batches: Iterator,
    count: int,
    samples: int,
    what: str,
) -> np.ndarray:
    """Embeddings (count, d), of which each host reads the crops that its devices embed."""
    done, nothing = [], np.zeros((0, samples), np.int16)
    hidden = None if hosts.is_first() else True  # None: where there is no terminal
    with tqdm(total=count, desc=what, unit="crop", disable=hidden, leave=False) as bar:
        for first in range(0, count, encode.rows):
            embeddings = encode.together(variables, next(batches, nothing))[: count - first]
            done.append(embeddings)
            bar.update(len(embeddings))
    return np.concatenate(done)

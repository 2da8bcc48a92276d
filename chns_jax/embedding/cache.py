"""Embeddings that were made once: kept between evaluations of one checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from chns_jax.common import arrays
from chns_jax.common.files import replacing
from chns_jax.corpus import records
from chns_jax.corpus.corpus import Corpus, Strings
from chns_jax.corpus.listing import time_of
from chns_jax.corpus.reader import Reader
from chns_jax.corpus.storage import is_url
from chns_jax.embedding.model import Model, checkpoint_digest
from chns_jax.embedding.utterances import embed_utterances, embed_whole

CACHE_FORMAT = 1
UTTERANCES_AT_ONCE = 1000
SECONDS_BETWEEN_SAVES = 30


class Key(NamedTuple):
    """A file as it was when it was embedded; of a shard's record, the shard."""

    path: str
    size: int
    time: int  # nanoseconds


def embed(
    model: Model, corpus: Corpus, utterances: np.ndarray, cache: str | Path, *, segment: int | None
) -> np.ndarray:
    """L2-normalised embeddings (v, d) float32 of utterances, rows (v,) of a corpus.

    They are embedded whole, or as the mean of segments of `segment` samples. Folder `cache` keeps
    those of files on this machine, so that a file of the same path, size and time is embedded once
    by each checkpoint. Raises UserError when a file cannot be read; what is done is kept.
    """
    config = model.config
    reader = Reader(corpus, config.features.sample_rate, config.data.threads)
    path = cache_file(model, corpus, cache, segment)
    keys = [key(corpus.path(row)) for row in utterances.tolist()]
    known = load(path, config.encoder.embedding)
    embeddings = np.zeros((len(utterances), config.encoder.embedding), np.float32)
    missing = []
    for i, file in enumerate(keys):
        if file is not None and file in known:
            embeddings[i] = known[file]
        else:
            missing.append(i)
    saved, unsaved = time.monotonic(), False
    try:
        for start in range(0, len(missing), UTTERANCES_AT_ONCE):
            places = missing[start : start + UTTERANCES_AT_ONCE]
            rows = utterances[places]
            if segment is None:
                made = embed_whole(model.embedder, model.variables, reader, rows)
            else:
                made = enumerate(
                    embed_utterances(model.embedder, model.variables, reader, rows, samples=segment)
                )
            for i, embedding in made:
                embeddings[places[i]] = embedding
                file = keys[places[i]]
                if file is not None:
                    known[file], unsaved = embedding, True
                if unsaved and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    save(path, known)
                    saved, unsaved = time.monotonic(), False
    finally:
        if unsaved:
            save(path, known)
    return embeddings


def cache_file(model: Model, corpus: Corpus, cache: str | Path, segment: int | None) -> Path:
    """Where the embeddings of a corpus by this checkpoint are kept."""
    about = hashlib.sha256(json.dumps([checkpoint_digest(model), corpus.roots, segment]).encode())
    return Path(cache).expanduser() / f"embeddings-{about.hexdigest()[:16]}.npz"


def key(path: str) -> Key | None:
    """The file of an utterance, as it is; None for what is not on this machine, whose changes would
    not be seen."""
    record = records.parse(path)
    file = path if record is None else record.shard
    if is_url(file):
        return None
    try:
        stat = os.stat(file)
    except OSError:  # embedding it will say so
        return None
    return Key(path, stat.st_size, time_of(stat))


def save(path: Path, known: dict[Key, np.ndarray]) -> None:
    """Keep embeddings (d,), of one file at least."""
    names = Strings.of(key.path for key in known)
    with replacing(path, "wb") as file:
        np.savez(
            file,
            format=np.array(CACHE_FORMAT),
            text=names.text,
            end=names.end,
            size=np.array([key.size for key in known], np.int64),
            time=np.array([key.time for key in known], np.int64),
            embeddings=np.stack(list(known.values())),
        )


def load(path: Path, dimension: int) -> dict[Key, np.ndarray]:
    """The embeddings (d,) kept at `path`; none when the file is not there, or damaged."""
    try:
        held = arrays.load(path)
        if int(arrays.need(held, "format", "i", 0)) != CACHE_FORMAT:
            return {}
        names = Strings.held(held)
        sizes, times = (arrays.need(held, name, "i", 1).tolist() for name in ("size", "time"))
        embeddings = arrays.need(held, "embeddings", "f", 2)
        if embeddings.shape != (len(names), dimension):
            return {}
        return dict(zip(map(Key, names, sizes, times), embeddings, strict=True))
    except (OSError, ValueError, arrays.Damaged):
        return {}

"""Any root of speech -> its corpus: a folder, a Kaldi data folder, or shards."""

from __future__ import annotations

from pathlib import Path

from chns_jax.corpus import shards
from chns_jax.corpus.corpus import Corpus
from chns_jax.corpus.index import index_folder


def open_corpus(root: str | Path, cache: str | Path) -> Corpus:
    """The corpus in `root`: <speaker>/<recording>/<utterance>.<ext>, <speaker>/<utterance>.<ext>
    (each file a recording of its own), a Kaldi data folder, or what `chns_jax.prepare` wrote, which
    may be an fsspec URL.

    Folder `cache` keeps the durations of a folder's files. Raises UserError when there is no such
    folder or no audio in it.
    """
    return shards.load(root) if shards.is_prepared(root) else index_folder(root, cache)

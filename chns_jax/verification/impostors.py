"""Who is whose nearest impostor: what makes trials hard."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chns_jax.common.vectors import means, nearest
from chns_jax.config import Config
from chns_jax.corpus.corpus import Corpus
from chns_jax.corpus.reader import Reader
from chns_jax.corpus.trials import Impostors, among
from chns_jax.embedding import cache as embedding_cache
from chns_jax.embedding.model import Model
from chns_jax.scoring.mfcc_baseline import mfcc_embeddings

UTTERANCES = 10  # of a speaker, for a voiceprint


def nearest_impostors(
    corpus: Corpus, count: int, *, model: Model | None, cache: str | Path
) -> Impostors:
    """Of each speaker the `count` others of the highest cosine of voiceprints, or all of fewer.

    A voiceprint is the mean of the embeddings of whole utterances by `model`, or without one of
    MFCC statistics. Raises UserError when a file cannot be read.
    """
    utterances = corpus.evenly_spaced(UTTERANCES)
    if model is None:
        data, features = Config().data, Config().features
        embeddings = mfcc_embeddings(Reader(corpus, features.sample_rate, data.threads), utterances)
    else:
        embeddings = embedding_cache.embed(model, corpus, utterances, cache, segment=None)
    speakers = np.arange(len(corpus.speakers))
    voiceprints = means(embeddings, corpus.speaker[utterances])
    return among(nearest(voiceprints, speakers, min(count, len(speakers) - 1)))

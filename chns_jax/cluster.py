"""Cluster the speakers of a folder with a trained run: `python -m chns_jax.cluster`."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Literal

from chns_jax.common.command_line import (
    add_cache,
    add_model,
    add_same,
    changed,
    make_parser,
    parse,
)
from chns_jax.common.errors import UserError, run
from chns_jax.common.values import NonNegativeInt
from chns_jax.config import Clusters, UtterancesPerSpeaker
from chns_jax.runs.published import find_model

if TYPE_CHECKING:
    import numpy as np

    from chns_jax.sampling.clusters import SpeakerClusters

OF_VOICES = {  # options, with their defaults
    "model": None, "checkpoint": "last", "kmeans": "auto", "utterances_per_speaker": 10,
    "normalise_first": False,
}  # fmt: skip


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Cluster the speakers of a folder, by voice or by what a table says about them, and write "
        "the table (.npz) that sampler.table of chns_jax.train reads."
    )
    add_model(parser)
    parser.add_argument("--root", type=str, required=True, help="Folder of the speakers' speech.")
    parser.add_argument("--out", type=str, required=True, help="File to write, .npz.")
    parser.add_argument(
        "--clusters",
        type=Clusters,
        default=50,
        help="Number of clusters K; with --same about as many, and one at least for each value.",
    )
    add_same(
        parser,
        "Table of the speakers: their id, and columns such as corpus, language or gender.",
        "In place of voices: columns of --metadata whose values the speakers of a cluster share, "
        "who are drawn otherwise. Speakers without a value have one in common.",
    )
    parser.add_argument(
        "--kmeans",
        type=Literal["auto", "full", "sampled"],
        default=OF_VOICES["kmeans"],
        help="full: k-means of all speakers; sampled: of a sixth of them, then ten iterations over "
        "all; auto: full below 20,000 speakers.",
    )
    parser.add_argument(
        "--utterances_per_speaker",
        type=UtterancesPerSpeaker,
        default=OF_VOICES["utterances_per_speaker"],
        help="Utterances embedded for a voiceprint, k.",
    )
    parser.add_argument(
        "--normalise_first",
        type=bool,
        default=OF_VOICES["normalise_first"],
        help="L2-normalise embeddings before averaging them to a voiceprint.",
    )
    parser.add_argument(
        "--seed", type=NonNegativeInt, default=0, help="Seed of crops, k-means and what is drawn."
    )
    add_cache(parser)
    chosen = parse(parser, argv)
    check(chosen)

    from chns_jax.common.files import check_file, without_links
    from chns_jax.sampling import clusters as tables

    check_file(chosen.out, [chosen.root, chosen.metadata, chosen.model])
    table, speakers, said = by_metadata(chosen) if chosen.same else by_voice(chosen)
    tables.save(without_links(chosen.out), table, speakers)
    print(
        f"{len(speakers)} speakers in {len(table.centroids)} clusters of {table.sizes.min()} to "
        f"{table.sizes.max()}: {chosen.out}",
        *said,
        sep="\n",
        file=sys.stderr,
    )


def check(chosen: Namespace) -> None:
    """Raises UserError for arguments that do not go together, and for a model that is none."""
    if bool(chosen.same) != bool(chosen.metadata):
        raise UserError("--same COLUMN is one of --metadata, a table of the speakers: give both")
    if not chosen.same:
        chosen.model = find_model(chosen.model)
        return
    option = changed(chosen, OF_VOICES)
    if option:
        raise UserError(f"--{option} is for clusters by voice: leave it or --same out")


def by_metadata(chosen: Namespace) -> tuple[SpeakerClusters, np.ndarray, list[str]]:
    """The table of --same, the names of its speakers, and of how many nothing is said."""
    import numpy as np

    from chns_jax.corpus.metadata import read_column
    from chns_jax.corpus.open import open_corpus
    from chns_jax.sampling.clusters import within_groups

    columns = [read_column(chosen.metadata, column) for column in chosen.same]
    speakers = open_corpus(chosen.root, chosen.cache).speakers
    values = np.array([[column.get(name, "") for column in columns] for name in speakers])
    unknown = np.count_nonzero((values == "").any(axis=1))
    if not (values != "").any():
        raise UserError(
            f"{chosen.metadata} has no {' or '.join(chosen.same)} of any of the {len(speakers)} "
            f"speakers of {chosen.root}: give values, and name speakers as their folders are"
        )
    said = [f"{unknown} of {len(speakers)} speakers lack a value"] if unknown else []
    _, groups = np.unique(values, axis=0, return_inverse=True)
    return within_groups(groups, chosen.clusters, seed=chosen.seed), speakers, said


def by_voice(chosen: Namespace) -> tuple[SpeakerClusters, np.ndarray, list[str]]:
    """The table of --model, the names of its speakers, and what it will do to batches."""
    from chns_jax.corpus.open import open_corpus
    from chns_jax.corpus.reader import Reader
    from chns_jax.embedding import model
    from chns_jax.embedding.clustering import make_table
    from chns_jax.sampling.forecast import forecast

    encoder = model.load(chosen.model, chosen.checkpoint)
    config = encoder.config
    corpus = open_corpus(chosen.root, chosen.cache)
    reader = Reader(corpus, config.features.sample_rate, config.data.threads)
    sampler = dataclasses.replace(
        config.sampler,
        clusters=chosen.clusters,
        cluster_by="voice",
        kmeans=chosen.kmeans,
        utterances_per_speaker=chosen.utterances_per_speaker,
        normalise_first=chosen.normalise_first,
    )
    table, voiceprints = make_table(
        encoder.embedder,
        encoder.variables,
        reader,
        sampler,
        samples=config.crop_samples,
        seed=chosen.seed,
        round=0,
    )
    said = [f"left out: {path} {why}" for path, why in reader.skipped.items()]
    if sampler.speakers <= len(corpus.speakers):
        foreseen = forecast(voiceprints, table, sampler, seed=chosen.seed, step=0)
        said += foreseen.lines(sampler)
    return table, corpus.speakers, said


if __name__ == "__main__":
    run(main)

"""Cluster the speakers of a folder with a trained run: `python -m chns_jax.cluster`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Literal

from chns_jax.common.command_line import add_cache, add_model, make_parser, parse
from chns_jax.common.errors import run
from chns_jax.common.values import NonNegativeInt
from chns_jax.config import Clusters, UtterancesPerSpeaker
from chns_jax.runs.published import find_model


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Cluster the speakers of a folder by voice, and write the table (.npz) that "
        "sampler.table of chns_jax.train reads."
    )
    add_model(parser, required=True)
    parser.add_argument("--root", type=str, required=True, help="Folder of the speakers' speech.")
    parser.add_argument("--out", type=str, required=True, help="File to write, .npz.")
    parser.add_argument("--clusters", type=Clusters, default=50, help="Number of clusters K.")
    parser.add_argument(
        "--kmeans",
        type=Literal["auto", "full", "sampled"],
        default="auto",
        help="full: k-means of all speakers; sampled: of a sixth of them, then ten iterations over "
        "all; auto: full below 20,000 speakers.",
    )
    parser.add_argument(
        "--utterances_per_speaker",
        type=UtterancesPerSpeaker,
        default=10,
        help="Utterances embedded for a voiceprint, k.",
    )
    parser.add_argument(
        "--normalise_first",
        type=bool,
        default=False,
        help="L2-normalise embeddings before averaging them to a voiceprint.",
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of crops and k-means.")
    add_cache(parser)
    chosen = parse(parser, argv)
    chosen.model = find_model(chosen.model)  # what is wrong is said before JAX is imported

    from chns_jax.common.files import check_file, without_links
    from chns_jax.corpus.open import open_corpus
    from chns_jax.corpus.reader import Reader
    from chns_jax.embedding import model
    from chns_jax.embedding.clustering import make_table
    from chns_jax.sampling import clusters as tables
    from chns_jax.sampling.forecast import forecast

    check_file(chosen.out, [chosen.root, chosen.model])
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
    for path, why in reader.skipped.items():
        print(f"left out: {path} {why}", file=sys.stderr)
    tables.save(without_links(chosen.out), table, corpus.speakers)
    print(
        f"{len(corpus.speakers)} speakers in {len(table.centroids)} clusters of "
        f"{table.sizes.min()} to {table.sizes.max()}: {chosen.out}",
        file=sys.stderr,
    )
    if sampler.speakers <= len(corpus.speakers):
        for line in forecast(voiceprints, table, sampler, seed=chosen.seed, step=0).lines(sampler):
            print(line, file=sys.stderr)


if __name__ == "__main__":
    run(main)

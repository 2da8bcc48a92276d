"""Explore the speakers of a folder with a trained run: `python -m chns_jax.explore`."""

from __future__ import annotations

import sys
from typing import Literal

from chns_jax.common.command_line import add_cache, add_model, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.values import NonNegativeInt
from chns_jax.config import Clusters, UtterancesPerSpeaker
from chns_jax.runs.published import find_model

CROP_SECONDS = 3.0  # of embedded sound
PAIRS_WITH_SOUND = 20  # with embedded sound, 0.1 MB each


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Write an HTML page of the speakers of a folder as a trained run hears them: a map, their "
        "clusters and how these moved in the run, the most confusable pairs, likely label errors."
    )
    add_model(parser)
    parser.add_argument("--root", type=str, required=True, help="Folder of the speakers' speech.")
    parser.add_argument("--out", type=str, required=True, help="HTML page to write.")
    parser.add_argument(
        "--clusters",
        type=Clusters | None,
        default=None,
        help="Number of clusters K; as in the run's config when not given.",
    )
    parser.add_argument(
        "--utterances_per_speaker",
        type=UtterancesPerSpeaker,
        default=10,
        help="Utterances embedded of each speaker, evenly spaced over them; 2 at least.",
    )
    parser.add_argument(
        "--audio",
        type=Literal["embed", "link", "none"],
        default="embed",
        help=f"Sound of the most confusable pairs: embed {CROP_SECONDS:g} s of each of the first "
        f"{PAIRS_WITH_SOUND} in the page, or link to the files of all.",
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of k-means and map.")
    add_cache(parser)
    chosen = parse(parser, argv)
    chosen.model = find_model(chosen.model)  # what is wrong is said before JAX is imported
    if chosen.utterances_per_speaker < 2:
        raise UserError("--utterances_per_speaker 1 leaves nothing to compare: give 2 or more")

    import os
    from pathlib import Path

    from chns_jax.common.files import check_file, without_links
    from chns_jax.common.vectors import means
    from chns_jax.corpus import records
    from chns_jax.corpus.open import open_corpus
    from chns_jax.corpus.reader import Reader
    from chns_jax.embedding import model
    from chns_jax.embedding.utterances import embed_utterances
    from chns_jax.reports import exploration, exploration_page, pages, sound
    from chns_jax.sampling import kmeans

    pages.check_plotly()
    out = Path(chosen.out).expanduser()
    check_file(out, [chosen.root, chosen.model])
    corpus = open_corpus(chosen.root, chosen.cache)
    if len(corpus.speakers) < 2:
        raise UserError(f"{chosen.root} holds one speaker, {corpus.speakers[0]}: two are needed")
    if chosen.audio == "link" and records.parse(corpus.path(0)) is not None:
        raise UserError(f"the utterances of {chosen.root} are no files: give --audio embed or none")
    tables = exploration.refreshes(chosen.model)
    encoder = model.load(chosen.model, chosen.checkpoint)
    config = encoder.config
    reader = Reader(corpus, config.features.sample_rate, config.data.threads)

    utterances = corpus.evenly_spaced(chosen.utterances_per_speaker)
    embeddings = embed_utterances(
        encoder.embedder, encoder.variables, reader, utterances, samples=config.segment_samples
    )
    speaker = corpus.speaker[utterances]
    voiceprints = means(embeddings, speaker)
    table = kmeans.cluster(
        voiceprints, chosen.clusters or config.sampler.clusters, seed=chosen.seed
    )

    def player(place: int, row: int) -> pages.Html:
        if chosen.audio == "link":
            return sound.linked(corpus.path(int(utterances[place])), out)
        if row >= PAIRS_WITH_SOUND:
            return pages.escape("")
        return sound.embedded(reader, int(utterances[place]), CROP_SECONDS)

    pages.write(
        without_links(out),
        f"Speakers of {os.path.basename(corpus.roots[0])} as heard by {chosen.model}",
        f"{len(corpus.speakers):,} speakers, {len(utterances):,} utterances "
        f"({chosen.utterances_per_speaker} of each speaker at most), embedded by the model of step "
        f"{encoder.step:,}. A click on the head of a table's column sorts it.",
        exploration_page.sections(
            exploration_page.Voices(
                corpus.speakers.tolist(),
                [corpus.names[row] for row in utterances.tolist()],
                embeddings,
                speaker,
                corpus.recording[utterances],
                table,
            ),
            tables,
            None if chosen.audio == "none" else player,
            chosen.seed,
        ),
    )
    print(f"{len(corpus.speakers)} speakers: {out}", file=sys.stderr)


if __name__ == "__main__":
    run(main)

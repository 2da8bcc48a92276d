"""Write a list of trials from a folder of speech: `python -m chns_jax.trials`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from chns_jax.common.command_line import (
    add_cache,
    add_checkpoint,
    add_same,
    add_several,
    make_parser,
    parse,
)
from chns_jax.common.errors import UserError, run
from chns_jax.common.values import NonNegativeInt, PositiveInt, between
from chns_jax.runs.published import find_model

NEAREST = 5


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Write a list of trials between the utterances of a folder. Targets are of different "
        "recordings of a speaker where there are some."
    )
    parser.add_argument("root", type=str, metavar="ROOT", help="Folder of the speakers' speech.")
    parser.add_argument("--out", type=str, required=True, help="File to write.")
    parser.add_argument(
        "--kind",
        type=Literal["all", "same-gender", "nearest"],
        default="all",
        help="Impostors: every other speaker; those of the gender that --metadata says; or the "
        "--nearest by voice.",
    )
    add_same(
        parser,
        "Table of the speakers: their id and gender, and other columns.",
        "Columns of --metadata, age_group say, whose values impostors of any kind share.",
    )
    parser.add_argument(
        "--nearest",
        type=PositiveInt | None,
        default=None,
        help=f"For --kind nearest: nearest others of a speaker that count; {NEAREST} if not given.",
    )
    parser.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="Run folder, published model or box, whose encoder says who is near; MFCC statistics "
        "when not given.",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--speakers",
        type=PositiveInt | None,
        default=None,
        help="Speakers to draw: of the whole folder those that data.held_out of as many keeps out "
        "of training with this seed. All when not given.",
    )
    add_several(
        parser,
        "--apart",
        "LIST",
        "Lists none of whose speakers are taken, so that one list tunes and another confirms.",
    )
    parser.add_argument(
        "--max_trials",
        type=Annotated[int, between(2, 10**10)],
        default=100_000,
        help="Trials in the list, at most.",
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of what is drawn.")
    add_cache(parser)
    chosen = parse(parser, argv)
    by_gender = chosen.kind == "same-gender"
    if (by_gender or chosen.same) and not chosen.metadata:
        raise UserError("--kind same-gender and --same need --metadata, a table of the speakers")
    if chosen.metadata and not (by_gender or chosen.same):
        raise UserError("--metadata says nothing here: give --kind same-gender or --same COLUMN")
    if chosen.model and chosen.kind != "nearest":
        raise UserError("--model says who is near: give --kind nearest, or leave it out")
    if chosen.nearest and chosen.kind != "nearest":
        raise UserError("--nearest counts who is near: give --kind nearest, or leave it out")
    if chosen.checkpoint != "last" and not chosen.model:
        raise UserError("--checkpoint is one of a run: give --model, or leave it out")
    if chosen.model:
        chosen.model = find_model(chosen.model)

    import numpy as np

    from chns_jax.common.files import check_file
    from chns_jax.corpus import metadata, split, trials
    from chns_jax.corpus.open import open_corpus

    check_file(chosen.out, [chosen.root, chosen.metadata, chosen.model, *chosen.apart])
    tables = [metadata.read_genders(chosen.metadata)] if by_gender else []
    tables += [metadata.read_column(chosen.metadata, column) for column in chosen.same]
    corpus = open_corpus(chosen.root, chosen.cache)
    taken = {name for path in chosen.apart for name in trials.speakers_of(path, corpus)}
    corpus = corpus.select(np.array([name not in taken for name in corpus.speakers]))
    if chosen.speakers is not None:
        if chosen.speakers > len(corpus.speakers):
            raise UserError(
                f"--speakers {chosen.speakers} is more than {chosen.root} has, "
                f"{len(corpus.speakers)}{' apart from those of the lists' if taken else ''}"
            )
        drawn = split.draw_speakers(corpus, chosen.speakers, chosen.seed)
        corpus = corpus.select(np.isin(corpus.speakers, drawn))
    known = np.array([all(name in table for table in tables) for name in corpus.speakers])
    if not known.all():
        print(
            f"{(~known).sum()} of {len(known)} speakers are left out, as {chosen.metadata} says "
            "too little about them",
            file=sys.stderr,
        )
        corpus = corpus.select(known)
    if len(corpus.speakers) < 2:
        raise UserError(
            f"{len(corpus.speakers)} speakers of {chosen.root} are left, and a trial needs two: "
            "give more"
        )
    rules = [trials.sharing(np.array([table[s] for s in corpus.speakers])) for table in tables]
    if chosen.kind == "nearest":
        from chns_jax.embedding import model
        from chns_jax.verification.impostors import nearest_impostors

        encoder = model.load(chosen.model, chosen.checkpoint) if chosen.model else None
        rules.append(
            nearest_impostors(corpus, chosen.nearest or NEAREST, model=encoder, cache=chosen.cache)
        )
    made = trials.make(
        corpus,
        max_trials=chosen.max_trials,
        seed=chosen.seed,
        impostors=trials.all_of(rules) if rules else None,
    )
    trials.write(chosen.out, made, corpus)
    print(
        f"{made.labels.sum()} target and {(~made.labels).sum()} impostor trials of "
        f"{len(corpus.speakers)} speakers: {chosen.out}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run(main)

"""Folds: every speaker is held out once, so that a small corpus says all that it can."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.randomness import Purpose, generator
from chns_jax.config import Config
from chns_jax.corpus.corpus import Corpus
from chns_jax.corpus.split import make_split, make_trials, open_main, validating_speakers
from chns_jax.corpus.trials import Trials
from chns_jax.scoring.bootstrap import FEWEST_SPEAKERS
from chns_jax.studies.held_out import write_once


def hold_out_in_turn(config: Config, count: int) -> list[Config]:
    """The config for each of `count` folds of the speakers, which its runs hold out, with lists of
    trials among them, written to folders trials/fold1/ and so on in its `out`.

    The speakers are those of `data.trials`, of whose trials a fold has those between its own, or
    all of `data.root`. Raises UserError as `make_split` does, for too many folds, and for other
    lists that are there.
    """
    data, lists = config.data, {}
    if data.held_out:
        raise UserError(
            f"--folds holds every speaker out once, and data.held_out {data.held_out} of them in "
            "all runs: give --data.held_out 0"
        )
    if data.trials:
        split = make_split(config)
        assert split.validation is not None, "the lists are of a corpus"
        corpus, lists = split.validation, split.trials
        speakers = validating_speakers(corpus, lists)
    else:
        corpus = open_main(config)
        speakers = corpus.speakers
    if len(speakers) < FEWEST_SPEAKERS * count:
        raise UserError(
            f"{len(speakers)} speakers make no {count} folds of {FEWEST_SPEAKERS} or more: give a "
            "lower --folds"
        )
    drawn = generator(config.training.seed, Purpose.HELD_OUT).permutation(speakers)
    return [
        _fold(config, Path(config.out, "trials", f"fold{number}"), corpus, lists, of_fold)
        for number, of_fold in enumerate(np.array_split(drawn, count), start=1)
    ]


def _fold(
    config: Config, folder: Path, corpus: Corpus, lists: dict[str, Trials], speakers: np.ndarray
) -> Config:
    """The config that holds `speakers` out."""
    inside = np.isin(corpus.speakers, speakers)
    if lists:
        made = {name: _between(trials, corpus, inside) for name, trials in lists.items()}
    else:
        corpus = corpus.select(inside)
        made = make_trials(corpus, config)
    paths = {name: folder / f"{name}.txt" for name in made}
    for name, trials in made.items():
        if trials.labels.all() or not trials.labels.any():
            raise UserError(
                f"the list {name} has no targets or no impostors among the {len(speakers)} "
                f"speakers of {folder.name}: give a lower --folds, or a longer list"
            )
        write_once(paths[name].expanduser(), trials, corpus)
    data = dataclasses.replace(config.data, trials=tuple(map(str, paths.values())))
    return dataclasses.replace(config, data=data)


def _between(trials: Trials, corpus: Corpus, inside: np.ndarray) -> Trials:
    """The trials both sides of which are of speakers who are `inside` (n,) bool."""
    one, other = corpus.speaker[trials.enrolment], corpus.speaker[trials.test]
    kept = inside[one] & inside[other]
    return Trials(trials.labels[kept], trials.enrolment[kept], trials.test[kept])

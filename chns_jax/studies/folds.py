"""Folds: every speaker is held out once, so that a small corpus says all that it can."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.randomness import Purpose, generator
from chns_jax.config import Config
from chns_jax.corpus import trials as trial_lists
from chns_jax.corpus.corpus import Corpus
from chns_jax.corpus.split import make_trials, open_main, validating_speakers
from chns_jax.corpus.trials import Trials
from chns_jax.scoring.bootstrap import FEWEST_SPEAKERS
from chns_jax.studies.held_out import write_once


def hold_out_in_turn(config: Config, count: int) -> list[Config]:
    """The config for each of `count` folds of the speakers, which its runs hold out, with lists of
    trials among them, written to folders trials/fold1/ and so on in its `out`.

    The speakers are those of `data.trials`, of whose trials a fold has those between its own, or
    all of `data.root`. Raises UserError for lists that are none or not of `data.root`, for too many
    folds, and for other lists that are there.
    """
    _check(config)
    corpus = open_main(config)
    lists = _read(config, corpus)
    speakers = validating_speakers(corpus, lists) if lists else corpus.speakers
    if len(speakers) < FEWEST_SPEAKERS * count:
        raise UserError(
            f"{len(speakers)} speakers make no {count} folds of {FEWEST_SPEAKERS} or more: give a "
            "lower --folds"
        )
    drawn = generator(config.training.seed, Purpose.HELD_OUT).permutation(speakers)
    folds = [
        _trials_between(np.isin(corpus.speakers, of_fold), corpus, lists, config)
        for of_fold in np.array_split(drawn, count)
    ]
    # Few built-in voices have no two of one family in some fold.
    names = [name for name in folds[0] if all(name in fold for fold in folds)]
    made = []
    for number, fold in enumerate(folds, start=1):
        folder = Path(config.out, "trials", f"fold{number}")
        paths = [folder / f"{name}.txt" for name in names]
        for name, path in zip(names, paths, strict=True):
            write_once(path.expanduser(), fold[name], corpus)
        data = dataclasses.replace(config.data, trials=tuple(map(str, paths)))
        made.append(dataclasses.replace(config, data=data))
    return made


def _check(config: Config) -> None:
    """Raises UserError where others than the folds say who is held out, or lists share a name."""
    data = config.data
    if data.held_out:
        raise UserError(
            f"--folds holds every speaker out once, and data.held_out {data.held_out} of them in "
            "all runs: give --data.held_out 0"
        )
    if data.trials_root is not None:
        raise UserError(
            f"--folds is of the speakers of data.root, and data.trials_root {data.trials_root} has "
            "others: leave it out"
        )
    names = [Path(path).stem for path in data.trial_lists]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"data.trials has two files of the name {twice}: rename one for --folds")


def _read(config: Config, corpus: Corpus) -> dict[str, Trials]:
    """The lists of `data.trials` by the names of their files."""
    return {
        Path(path).stem: trial_lists.locate(trial_lists.read(path), corpus, path)
        for path in config.data.trial_lists
    }


def _trials_between(
    inside: np.ndarray, corpus: Corpus, lists: Mapping[str, Trials], config: Config
) -> dict[str, Trials]:
    """Lists, as rows of the corpus, of the trials between the speakers who are `inside` (n,) bool:
    those of `lists`, or of all when there are none."""
    if not lists:
        of_fold, rows = corpus.select(inside), np.flatnonzero(inside[corpus.speaker])
        return {
            name: Trials(trials.labels, rows[trials.enrolment], rows[trials.test])
            for name, trials in make_trials(of_fold, config).items()
        }
    kept = {}
    for name, trials in lists.items():
        one, other = corpus.speaker[trials.enrolment], corpus.speaker[trials.test]
        both = inside[one] & inside[other]
        kept[name] = Trials(trials.labels[both], trials.enrolment[both], trials.test[both])
        if kept[name].labels.all() or not kept[name].labels.any():
            raise UserError(
                f"the list {name} has no targets or no impostors among the {inside.sum()} speakers "
                "of a fold: give a lower --folds, or a longer list"
            )
    return kept

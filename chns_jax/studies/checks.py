"""What cannot be trained or scored in a study, said before hours of training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Literal

from chns_jax.common.command_line import averaged
from chns_jax.common.errors import UserError
from chns_jax.common.values import NonNegativeInt, read_value
from chns_jax.config import Config
from chns_jax.corpus import index, storage
from chns_jax.corpus import trials as trial_lists
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.speeds import with_speeds
from chns_jax.corpus.split import make_split, voices_folder
from chns_jax.sampling import plan
from chns_jax.scoring.norm import check_apart, check_enough
from chns_jax.studies.definition import Run, TrialList


def checked_checkpoint(given: str, runs: Sequence[Run], *, folds: int | None) -> str:
    """The checkpoint that runs are scored by. Raises UserError for one that a run will not hold, by
    its config or, where there are `folds`, by the lists that these will bring."""
    count = averaged(given)
    if count is not None:
        for one in runs:
            if one.config.training.keep < count:
                raise UserError(
                    f"--checkpoint {given} needs as many checkpoints as it names, of which the run "
                    f"{one.name} keeps {one.config.training.keep}: give --training.keep {count}"
                )
        return given
    which = read_value("--checkpoint", Literal["last"] | Literal["best"] | NonNegativeInt, given)
    for one in runs:
        data, steps = one.config.data, one.config.training.steps
        if which == "best" and not (data.trial_lists or data.held_out or folds):
            raise UserError(
                f"--checkpoint best needs a validation, which the run {one.name} has not: give "
                "--data.trials LIST"
            )
        if isinstance(which, int) and which > steps:
            raise UserError(
                f"--checkpoint {which} lies beyond the {steps} steps of the run {one.name}: give "
                "last"
            )
    return str(which)


def check_lists(lists: Sequence[TrialList], runs: Sequence[Run]) -> None:
    """Raises UserError for a list that runs are scored on, or validate on, which cannot be read, or
    whose folder is not there."""
    paths = [of_list.trials for of_list in lists]
    paths += [path for one in runs for path in one.config.data.trial_lists]
    for path in dict.fromkeys(paths):
        trial_lists.read(path)
    made = {os.path.abspath(voices_folder(one.config.data)) for one in runs}  # by training
    for of_list in lists:
        root = os.path.abspath(os.path.expanduser(of_list.root))
        if root not in made and not storage.is_url(of_list.root):
            index.check_folder(root)


def check_corpora(runs: Sequence[Run]) -> None:
    """Raises UserError, with the run's name, for one whose batches its corpus cannot fill."""
    corpora = {}  # by what runs of one seed may share
    for one in runs:
        data, of_trials = one.config.data, one.config.validation
        try:
            with warnings.catch_warnings(action="ignore"):  # training will say it
                if (data, of_trials) not in corpora:
                    corpus = make_split(one.config).training
                    corpora[data, of_trials] = with_speeds(corpus, data.speeds)
            plan.check(one.config.sampler, corpora[data, of_trials])
        except UserError as error:
            raise UserError(f"the run {one.name} cannot be trained: {error}") from error


def check_cohort(cohort: str, lists: Sequence[TrialList], config: Config) -> None:
    """Raises UserError for a folder of impostors that has fewer than two speakers, or speakers of
    the lists: those of the built-in voices are not looked at before these are made."""
    cache = config.data.cache
    impostors = open_corpus(cohort, cache)
    check_enough(impostors.speakers, cohort)
    for of_list in lists:
        if storage.is_url(of_list.root) or os.path.isdir(os.path.expanduser(of_list.root)):
            of_trials = trial_lists.speakers_of(of_list.trials, open_corpus(of_list.root, cache))
            check_apart(of_trials, impostors.speakers)

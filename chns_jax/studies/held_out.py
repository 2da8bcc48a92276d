"""The trials of a study that names none: of speakers whom all of its runs hold out."""

from __future__ import annotations

import dataclasses
from itertools import zip_longest
from pathlib import Path

from chns_jax.common.errors import UserError
from chns_jax.config import Config
from chns_jax.corpus import trials as trial_lists
from chns_jax.corpus.corpus import Corpus
from chns_jax.corpus.split import make_split
from chns_jax.corpus.trials import Trials


def hold_out(config: Config) -> Config:
    """The config with lists of trials of its `data.held_out` speakers, drawn and written to a
    folder trials/ in its `out` for all seeds, where each training would draw its own.

    Raises UserError as `make_split` does, and for other lists that are there.
    """
    split = make_split(config)
    assert split.validation is not None, "nobody is held out"
    folder = Path(config.out, "trials")
    paths = {name: str(folder / f"{name}.txt") for name in split.trials}
    for name, path in paths.items():
        write_once(Path(path).expanduser(), split.trials[name], split.validation)
    data = dataclasses.replace(
        config.data, trials=tuple(paths.values()), trials_root=None, held_out=0
    )
    return dataclasses.replace(config, data=data)


def write_once(path: Path, trials: Trials, corpus: Corpus) -> None:
    """Write a list that is not there. Raises UserError for a file that holds anything else."""
    if not path.exists():
        trial_lists.write(path, trials, corpus)
        return
    with open(path, encoding="utf-8", errors="replace") as there:
        same = all(
            old == new for old, new in zip_longest(there, trial_lists.lines_of(trials, corpus))
        )
    if not same:
        raise UserError(
            f"{path} has other trials than the speakers make who are held out now: give another "
            "--out, or the options that it was begun with"
        )

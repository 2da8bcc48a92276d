"""Runs of a study: which are trained, how long the others will take, and training them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import jax

from chns_jax.common.console import say
from chns_jax.common.errors import UserError
from chns_jax.config import Config
from chns_jax.runs.folder import AtWork, RunFolder, is_at_work, is_complete, read_summary
from chns_jax.studies.definition import Run

Train = Callable[[Config, ExitStack], None]  # that of chns_jax.train


def train_runs(runs: Sequence[Run], train: Train) -> Iterator[Run]:
    """Train all that are not complete and that no other process is at; yields each when it ends.

    Raises UserError as `train` does, with the run's name.
    """
    trained = True
    while trained:  # again, as another process may leave a run that it has begun
        trained = False
        for one in runs:
            if _train_run(one, runs, train):
                trained = True
                yield one


def _train_run(one: Run, runs: Sequence[Run], train: Train) -> bool:
    """Whether it was trained here."""
    folder = folder_of(one)
    if is_complete(folder, one.config) or is_at_work(folder, one.config):
        return False
    say(f"run {runs.index(one) + 1} of {len(runs)}: {one.name}{time_left(runs)}")
    try:
        with ExitStack() as opened:
            train(one.config, opened)
    except AtWork:
        say(f"another process has begun {one.name}")
        return False
    except UserError as error:
        raise UserError(f"the run {one.name} ended: {error}") from error
    jax.clear_caches()  # of a night of runs, none uses the functions of another
    return True


def complete_seeds(runs: Sequence[Run]) -> int:
    """How many seeds, from the first on, have all their runs complete, here or by others."""
    lacking = [one.seed for one in runs if not is_complete(folder_of(one), one.config)]
    seeds = list(dict.fromkeys(one.seed for one in runs))
    return min((seeds.index(seed) for seed in lacking), default=len(seeds))


def time_left(runs: Sequence[Run]) -> str:
    """The end of a sentence: how long the runs that are not complete will take, by the seconds an
    utterance of those of their arm that are, else of all that are, and the processes that share
    them, this one among them; empty when none is complete."""
    seconds, trained, left = Counter(), Counter(), Counter()  # by arm
    processes = 1
    for one in runs:
        utterances = one.config.training.steps * one.config.sampler.speakers
        summary = read_summary(folder_of(one))
        if summary is None:
            left[one.arm] += utterances
            processes += is_at_work(folder_of(one), one.config)
        else:
            seconds[one.arm] += summary.get("seconds", 0)
            trained[one.arm] += utterances
    if not trained:
        return ""
    of_all = seconds.total() / trained.total()
    each = {arm: seconds[arm] / trained[arm] for arm in trained}
    minutes = round(
        sum(each.get(arm, of_all) * count for arm, count in left.items()) / 60 / processes
    )
    shared = f" in {processes} processes" if processes > 1 else ""
    return f"; all take about {minutes // 60} h {minutes % 60} min more{shared}"


def folder_of(one: Run) -> RunFolder:
    """Where the run lies."""
    return RunFolder(Path(one.config.out).expanduser())

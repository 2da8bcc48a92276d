"""Train the arms of a study, and compare them: `python -m chns_jax.study`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chns_jax import config as configs
from chns_jax.common import packaged
from chns_jax.common.command_line import add_checkpoint, add_several, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.values import NonNegativeInt, PositiveInt, between
from chns_jax.compare import pair_lists
from chns_jax.studies import definition
from chns_jax.verification.trial_options import (
    add_norm_arguments,
    check_norm_arguments,
    describe_norm,
    make_cohort_for,
)

Folds = Annotated[int, between(2, 1000)]
WRITTEN = TABLE, CSV, PAGE = "table.md", "table.csv", "study.html"

if TYPE_CHECKING:
    from chns_jax.config import Config


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Train every arm of a study with every seed, score all on the same trials, and write a "
        "table (table.md, table.csv) and a page (study.html) to --out, again after each seed. A "
        "run that is complete is left as it is, and one that was stopped goes on: the same command "
        "goes on after a kill, and several processes with the same command, each on a GPU or a "
        "host of its own, share the runs. Keys of a config that are given here stand above those "
        "of the study's base; those of an arm stand above both."
    )
    parser.add_argument(
        "study",
        type=str,
        metavar="STUDY",
        help="YAML file of base, baseline, seeds and arms, or the name of one that comes with this "
        "package, such as lab/folder.",
    )
    add_several(
        parser,
        "--arms",
        "ARM",
        "Arms to train and compare, the baseline among them. All when not given.",
    )
    add_several(
        parser,
        "--seeds",
        "SEED",
        "Seeds to train with, such as 10 11 12. Those of the study when not given.",
        type=definition.Seed,
    )
    parser.add_argument(
        "--baseline",
        type=str | None,
        default=None,
        metavar="ARM",
        help="Arm that changes are measured from. The study's when not given.",
    )
    parser.add_argument(
        "--trials",
        type=str,
        action="append",
        default=[],
        metavar="LIST",
        help="Trials to score, in place of the study's lists; may be given several times. Those of "
        "--data.trials when there are neither, or lists of --data.held_out speakers, who are drawn "
        "once for all seeds.",
    )
    parser.add_argument(
        "--root",
        type=str,
        action="append",
        default=[],
        metavar="DIR",
        help="Folder of the files that --trials name: one for all, or one for each list.",
    )
    parser.add_argument(
        "--folds",
        type=Folds | None,
        default=None,
        metavar="K",
        help="Hold every speaker of --data.trials out once, or of --data.root without: each arm "
        "and seed is trained K times, every time without another part of them, and the table has "
        "means over the parts. All runs hold the same speakers out when not given.",
    )
    add_norm_arguments(parser)
    add_checkpoint(parser)
    parser.add_argument(
        "--replicates",
        type=PositiveInt,
        default=1000,
        help="Times that speakers and seeds are resampled, 20 or more.",
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of the resampling.")
    configs.add_keys(parser)
    chosen = parse(parser, argv)

    from chns_jax.reports import pages
    from chns_jax.scoring.bootstrap import check_replicates
    from chns_jax.studies.checks import check_cohort, check_corpora, check_lists, checked_checkpoint
    from chns_jax.studies.folds import hold_out_in_turn
    from chns_jax.studies.held_out import hold_out

    study = definition.read(packaged.find(chosen.study, packaged.STUDY))
    study = definition.part_of(study, chosen.arms, chosen.seeds, chosen.baseline)
    named = {"out": f"studies/{Path(chosen.study).name.partition('.')[0]}"}
    config = configs.read(parser, argv, defaults={**named, **study.base})
    runs = definition.runs_of(study, [config])
    # What is wrong is said before JAX is imported, and before hours of training.
    check_out(config)
    check_norm_arguments(chosen)
    checkpoint = checked_checkpoint(chosen.checkpoint, runs, folds=chosen.folds)
    check_replicates(chosen.replicates)
    pages.check_plotly()
    folds, other_lists = [config], bool(chosen.trials or study.lists)
    if chosen.folds:
        if other_lists:
            raise UserError(
                "--folds scores the speakers that it holds out: leave out --trials and lists, and "
                "give lists of the speakers of data.root as --data.trials"
            )
        folds = hold_out_in_turn(config, chosen.folds)
    elif config.data.held_out and not (other_lists or config.data.trials):
        folds = [hold_out(config)]
    runs = definition.runs_of(study, folds)
    lists = [choose_lists(study, fold, chosen.trials, chosen.root) for fold in folds]
    of_a_seed = len(study.arms) * len(folds)
    of_all = [one for of_fold in lists for one in of_fold.values()]
    check_lists(of_all, runs)
    check_corpora(runs[:of_a_seed])
    if chosen.cohort:
        check_cohort(chosen.cohort, of_all, config)

    from chns_jax.common import locks
    from chns_jax.common.console import say
    from chns_jax.common.files import check_place, replacing
    from chns_jax.scoring import comparison
    from chns_jax.studies.page import write_page
    from chns_jax.studies.table import score_runs
    from chns_jax.studies.trained import complete_seeds, train_runs
    from chns_jax.train import train

    out, scores = Path(config.out).expanduser(), describe_norm(chosen)
    if len(folds) > 1:
        of_folds = f"Every speaker is held out once, in {len(folds)} folds, whose means these are."
        scores = f"{of_folds} {scores}".strip()
    check_place(out / TABLE)

    def write_results() -> tuple[int, str]:
        """Score the runs of the seeds that are complete, and write table and page; how many seeds,
        and the table."""
        # Of two processes that complete a seed, the later writes both.
        with open(out / "lock", "a") as lock:
            locks.hold(lock, wait=True)
            seeds = complete_seeds(runs)
            complete = runs[: seeds * of_a_seed]
            rows = score_runs(
                complete, lists, baseline=study.baseline, checkpoint=checkpoint,
                cohort_for=partial(make_cohort_for, chosen), replicates=chosen.replicates,
                seed=chosen.seed,
            )  # fmt: skip
            text = comparison.to_markdown(rows, paired=True, scores=scores)
            for name, table in {TABLE: text, CSV: comparison.to_csv(rows)}.items():
                with replacing(out / name) as file:
                    file.write(table)
            write_page(out / PAGE, study, complete, rows, scores)
        return seeds, text

    tabled, text = complete_seeds(runs), ""
    for _ in train_runs(runs, train):
        if complete_seeds(runs) > tabled:
            tabled, text = write_results()
    if complete_seeds(runs) < len(study.seeds):
        say(
            "other processes are at the runs that are left, and the last to end writes the table: "
            "if one is stopped, give the same command again"
        )
    elif not text or tabled < len(study.seeds):  # all was there, or others trained the rest
        _, text = write_results()
    print(text, end="")


def check_out(config: Config) -> None:
    """Raises UserError when there cannot be such a folder, when it is a run or one that runs read,
    or holds a table or a page that no study wrote."""
    out = Path(config.out).expanduser()
    file = next((at for at in (out, *out.parents) if os.path.lexists(at) and not at.is_dir()), None)
    if file:
        raise UserError(f"{file} is no folder: give another --out")
    if out.is_dir():
        configs.check_apart(out, config)
    if (out / "checkpoints").is_dir():
        raise UserError(f"{out} is a run: give another --out")
    there = [name for name in WRITTEN if os.path.lexists(out / name)]
    strange = [name for name in there if not (out / name).is_file()]
    if strange or (there and not (out / "runs").is_dir()):
        name = (strange or there)[0]
        raise UserError(f"{out} holds a {name} that no study wrote: give another --out")


def choose_lists(
    study: definition.Study, config: Config, trials: Sequence[str], roots: Sequence[str]
) -> dict[str, definition.TrialList]:
    """The lists that runs are scored on, by name: those given, else the study's, else data.trials.

    Raises UserError when there are none.
    """
    from chns_jax.config import BUILTIN_VOICES
    from chns_jax.corpus import trials as trial_lists
    from chns_jax.corpus.split import voices_folder

    data, paths = config.data, config.data.trial_lists
    root = voices_folder(data) if data.root == BUILTIN_VOICES else data.root
    own_root = data.trials_root or str(root)
    if roots and not trials:
        raise UserError("--root is the folder of --trials: give --trials LIST too")
    if trials:
        named = pair_lists(trials, roots or [own_root])
        return {name: definition.TrialList(*pair) for name, pair in named.items()}
    if study.lists:
        return study.lists
    if not paths:
        raise UserError(
            f"{study.path} has no lists: give --data.trials LIST, whose speakers no run trains on, "
            "or --data.held_out N, of whom lists are made"
        )
    names = trial_lists.list_names(paths)
    return {
        name: definition.TrialList(path, own_root) for name, path in zip(names, paths, strict=True)
    }


if __name__ == "__main__":
    run(main)

"""Compare trained runs on trial lists, with intervals: `python -m chns_jax.compare`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from chns_jax.common.command_line import add_cache, add_checkpoint, add_segments, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.values import NonNegativeInt, PositiveInt
from chns_jax.corpus.storage import is_url
from chns_jax.runs.published import find_model
from chns_jax.verification.trial_options import (
    add_norm_arguments,
    check_norm_arguments,
    describe_norm,
    make_cohort_for,
)


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Print one Markdown table: EER and minDCF of trained runs on trial lists, with 95 % "
        "intervals from resampling the speakers of the trials, and the change from a baseline."
    )
    parser.add_argument(
        "runs",
        type=str,
        nargs="+",
        metavar="[NAME=]RUN[,RUN...]",
        help="Run folders of chns_jax.train, published models, or box, the model in the box. Those "
        "under one NAME, as runs of several seeds are, make one system, whose figures are the mean "
        "over its runs: supcon=runs/supcon-{0,1,2}. A plain RUN is a system named as its folder.",
    )
    parser.add_argument(
        "--trials",
        type=str,
        action="append",
        required=True,
        metavar="LIST",
        help='Lines of "<1 or 0> <enrolment> <test>", or "<enrolment> <test> <target or '
        'nontarget>"; may be given several times.',
    )
    parser.add_argument(
        "--root",
        type=str,
        action="append",
        required=True,
        metavar="DIR",
        help="Folder of the files that the lists name: one for all, or one for each list.",
    )
    parser.add_argument(
        "--baseline", type=str, help="System that the relative changes of the others refer to."
    )
    parser.add_argument(
        "--out",
        type=str,
        metavar="PREFIX",
        help="Also write the table to PREFIX.md, and its plain numbers, rates and changes as "
        "fractions, to PREFIX.csv.",
    )
    parser.add_argument(
        "--paired",
        action="store_true",
        help="The runs of every system are of the same seeds, in one order: intervals cover the "
        "seeds as well as the speakers, and the table counts the seeds that beat the baseline.",
    )
    add_segments(parser)
    add_norm_arguments(parser)
    add_checkpoint(parser)
    parser.add_argument(
        "--replicates",
        type=PositiveInt,
        default=1000,
        help="Times that speakers are resampled, 20 or more.",
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of the resampling.")
    add_cache(parser)
    chosen = parse(parser, argv)
    systems = parse_systems(chosen.runs)
    if chosen.baseline is not None and chosen.baseline not in systems:
        raise UserError(
            f"the baseline {chosen.baseline} is not among the systems: {', '.join(systems)}"
        )
    if chosen.paired and len({len(runs) for runs in systems.values()}) > 1:
        raise UserError("--paired needs as many runs of every system, of the same seeds in order")
    lists = pair_lists(chosen.trials, chosen.root)
    check_norm_arguments(chosen)
    prefix = None if chosen.out is None else os.path.expanduser(chosen.out)
    if prefix is not None and (not os.path.basename(prefix) or os.path.isdir(prefix)):
        raise UserError(f"--out {chosen.out} names a folder: add how the files' names begin")

    from chns_jax.common.files import check_file, replacing, without_links
    from chns_jax.corpus import trials as trial_lists
    from chns_jax.scoring.bootstrap import check_replicates

    check_replicates(chosen.replicates)
    outputs = [f"{prefix}.md", f"{prefix}.csv"] if prefix is not None else []
    runs = [folder for folders in systems.values() for folder in folders]
    for path in outputs:
        check_file(path, [*chosen.trials, *chosen.root, chosen.cohort, *runs])
    for path in chosen.trials:  # what is wrong is said before JAX is imported
        trial_lists.read(path)
    found = {folder: find_model(folder) for folder in runs}

    from chns_jax.embedding import model
    from chns_jax.scoring import comparison
    from chns_jax.verification import evaluation

    models = {
        system: [
            (encoder, make_cohort_for(chosen, encoder, chosen.cache, chosen.segments))
            for encoder in (model.load(found[folder], chosen.checkpoint) for folder in folders)
        ]
        for system, folders in systems.items()
    }
    rows = []
    for name, (path, root) in lists.items():
        scored = {
            system: [
                evaluation.score(
                    encoder, path, root, chosen.cache, segments=chosen.segments, cohort=cohort
                )
                for encoder, cohort in encoders
            ]
            for system, encoders in models.items()
        }
        rows += evaluation.compare(
            name,
            scored,
            baseline=chosen.baseline,
            seed=chosen.seed,
            count=chosen.replicates,
            paired=chosen.paired,
        )
    text = comparison.to_markdown(rows, paired=chosen.paired, scores=describe_norm(chosen))
    print(text, end="")
    for path, table in zip(outputs, [text, comparison.to_csv(rows)], strict=False):
        with replacing(without_links(path)) as file:
            file.write(table)


def parse_systems(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Run folders of each system, from "RUN" or "NAME=RUN,RUN"; a NAME may come several times.

    A NAME holds no slash, so that ./a=b is a folder. Raises UserError when a run is given twice, or
    a folder's name is that of another system.
    """
    systems: dict[str, list[str]] = {}
    unnamed, seen = set(), set()
    for argument in arguments:
        name, equals, folders = argument.partition("=")
        is_named = bool(equals) and "/" not in name
        runs = folders.split(",") if is_named else [argument]
        if not all(runs) or (is_named and not name):
            raise UserError(f"{argument} is neither RUN nor NAME=RUN,RUN: name the missing part")
        if not is_named:
            name = os.path.basename(os.path.realpath(os.path.expanduser(argument)))
            unnamed.add(name)
        for folder in runs:
            real = os.path.realpath(os.path.expanduser(folder))
            if real in seen:
                raise UserError(f"the run {folder} is given twice: leave one out")
            seen.add(real)
        if name in systems and name in unnamed:
            raise UserError(f"two systems are named {name}: give one as NAME={runs[0]}")
        systems.setdefault(name, []).extend(runs)
    return systems


def pair_lists(lists: Sequence[str], roots: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Trial list and root of each name in the table: the list's file name, with its root if needed.

    Raises UserError when there is neither one root nor one for each list, or a list comes twice.
    """
    if len(roots) not in (1, len(lists)):
        raise UserError(
            f"{len(lists)} lists of trials have {len(roots)} roots: give one --root, or one for "
            "each --trials"
        )
    roots = [root if is_url(root) else os.path.abspath(os.path.expanduser(root)) for root in roots]
    pairs = list(zip(lists, roots if len(roots) > 1 else roots * len(lists), strict=True))
    stems = [Path(path).stem for path, _ in pairs]
    if len(set(stems)) < len(stems):
        stems = [f"{path} in {root}" for path, root in pairs]
    named = dict(zip(stems, pairs, strict=True))
    if len(named) < len(pairs):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"the trials {twice} are given twice: leave one out")
    return named


if __name__ == "__main__":
    run(main)

"""Score a trial list with a trained run: `python -m chns_jax.evaluate`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chns_jax.common.command_line import make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.values import NonNegativeInt
from chns_jax.verification.trial_options import (
    add_trial_arguments,
    check_trial_arguments,
    score_trials,
)

if TYPE_CHECKING:
    from chns_jax.scoring.calibration import Calibration
    from chns_jax.verification.evaluation import Evaluation

DIGITS = 6


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Print EER, minDCF and minimal Cllr of a trained run on a trial list, and of a calibrated "
        "one actual DCF and Cllr, with 95 % intervals from resampling the speakers of the trials, "
        "as one JSON object."
    )
    add_trial_arguments(parser)
    parser.add_argument(
        "--replicates",
        type=NonNegativeInt,
        default=1000,
        help="Times that speakers are resampled, 20 or more; 0: no intervals.",
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of the resampling.")
    parser.add_argument(
        "--scores",
        type=str | None,
        default=None,
        help='File for lines of "<score> <1 or 0> <enrolment> <test>".',
    )
    parser.add_argument(
        "--report", type=str | None, default=None, help="HTML page to write of what they show."
    )
    parser.add_argument(
        "--metadata",
        type=str | None,
        default=None,
        help="Table of the speakers, for the page: their id and gender.",
    )
    chosen = parse(parser, argv)
    if chosen.metadata and not chosen.report:
        raise UserError("--metadata is only for a page: give --report FILE.html")
    check_trial_arguments(chosen)

    from chns_jax.common.console import say
    from chns_jax.common.files import check_file, replacing, without_links
    from chns_jax.corpus.metadata import read_genders
    from chns_jax.corpus.trials import OtherSpeakers
    from chns_jax.reports import pages
    from chns_jax.runs.folder import RunFolder
    from chns_jax.scoring import calibration
    from chns_jax.scoring.bootstrap import FEWEST_SPEAKERS, check_replicates
    from chns_jax.verification.evaluation import evaluate

    if chosen.replicates:
        check_replicates(chosen.replicates)
    genders = read_genders(chosen.metadata) if chosen.metadata else None
    read = [getattr(chosen, name) for name in ("model", "trials", "root", "enrolment", "cohort")]
    if chosen.report:
        pages.check_plotly()
        check_file(chosen.report, [*read, chosen.metadata, chosen.scores])
    if chosen.scores:
        check_file(chosen.scores, [*read, chosen.metadata])
    try:
        scored, *_ = score_trials(chosen, by_speaker=chosen.replicates > 0)
    except OtherSpeakers as error:
        raise UserError(f"{error}; --replicates 0 does without the speakers") from error
    calibrated_in = RunFolder(Path(chosen.model).expanduser()).calibration
    made = calibration.load(calibrated_in)
    mismatch = made and made.mismatch(scored.made_by)
    if mismatch:
        say(f"{calibrated_in} {mismatch} and is not used")
        made = None
    result = evaluate(scored, count=chosen.replicates, seed=chosen.seed, calibration=made)
    if chosen.replicates and not result.intervals:
        speakers = result.metrics["speakers"]
        say(f"no intervals: {chosen.trials} has {speakers} speakers, {FEWEST_SPEAKERS} are needed")
    if chosen.scores:
        trials = scored.trials
        columns = scored.scores.tolist(), trials.labels.tolist(), trials.enrolment, trials.test
        with replacing(without_links(chosen.scores)) as file:
            file.writelines(
                f"{score:.6f} {label:d} {enrolment} {test}\n"
                for score, label, enrolment, test in zip(*columns, strict=True)
            )
    if chosen.report:
        _write_report(chosen, result, made, genders)
    norm = {"norm": scored.made_by["norm"]} if chosen.norm else {}
    figures = rounded({**result.metrics, "intervals": result.intervals})
    print(json.dumps({**figures, **norm}))


def rounded(figures: Any) -> Any:
    """Floats, in lists and dicts, to DIGITS significant digits: further ones are arithmetic's."""
    if isinstance(figures, dict):
        return {name: rounded(figure) for name, figure in figures.items()}
    if isinstance(figures, list):
        return [rounded(figure) for figure in figures]
    return float(f"{figures:.{DIGITS}g}") if isinstance(figures, float) else figures


def _write_report(
    chosen: Namespace,
    result: Evaluation,
    calibration: Calibration | None,
    genders: dict[str, str] | None,
) -> None:
    """The page, of log-likelihood ratios where a calibration gives them."""
    import numpy as np

    from chns_jax.common.files import without_links
    from chns_jax.reports.evaluation_page import trial_genders, write_report

    scored, llrs = result.scored, result.log_likelihood_ratios
    of_trials = None
    enrolment, test = scored.enrolment_speaker, scored.test_speaker
    if genders is not None and enrolment is not None and test is not None:
        sides = np.stack([enrolment, test], axis=1)
        of_trials = trial_genders(scored.speakers[sides], genders)
    set_for = None
    if calibration is not None:
        ((what, value),) = calibration.set_for.items()
        set_for = f"a {what.replace('_', ' ')} of {value:g}, by calibration"
    write_report(
        without_links(chosen.report),
        title=f"{chosen.model} on {chosen.trials}",
        labels=scored.trials.labels,
        scores=scored.scores if llrs is None else llrs,
        enrolment=scored.trials.enrolment,
        test=scored.trials.test,
        seconds=scored.seconds,
        metrics=result.metrics,
        intervals=result.intervals,
        score_is="score" if calibration is None else "log-likelihood ratio",
        threshold=None if calibration is None else calibration.threshold,
        threshold_is=set_for,
        genders=of_trials,
    )


if __name__ == "__main__":
    run(main)

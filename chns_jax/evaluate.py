"""Score a trial list with a trained run: `python -m chns_jax.evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from chns_jax.command_line import add_cache, add_model, add_segments, make_parser, parse
from chns_jax.errors import UserError, run

if TYPE_CHECKING:
    from chns_jax.cohort import Cohort
    from chns_jax.evaluation import Evaluation, Scores
    from chns_jax.model import Model
    from chns_jax.scoring.calibration import Calibration

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

    from chns_jax import pages
    from chns_jax.corpus.metadata import read_genders
    from chns_jax.evaluation import evaluate
    from chns_jax.files import check_file, replacing
    from chns_jax.logs import say
    from chns_jax.scoring import calibration
    from chns_jax.scoring.bootstrap import FEWEST_SPEAKERS, check_replicates
    from chns_jax.scoring.trials import OtherSpeakers

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
    run_folder = Path(chosen.model).expanduser()
    made = calibration.load(run_folder)
    mismatch = made and made.mismatch(scored.made_by)
    if mismatch:
        say(f"{run_folder / calibration.FILE} {mismatch} and is not used")
        made = None
    result = evaluate(scored, count=chosen.replicates, seed=chosen.seed, calibration=made)
    if chosen.replicates and not result.intervals:
        speakers = result.metrics["speakers"]
        say(f"no intervals: {chosen.trials} has {speakers} speakers, {FEWEST_SPEAKERS} are needed")
    if chosen.scores:
        trials = scored.trials
        columns = scored.scores.tolist(), trials.labels.tolist(), trials.enrolment, trials.test
        with replacing(chosen.scores) as file:
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

    from chns_jax.scoring.report import trial_genders, write_report

    scored = result.scored
    of_trials = None
    if genders is not None and scored.enrolment_speaker is not None:
        sides = np.stack([scored.enrolment_speaker, scored.test_speaker], axis=1)
        of_trials = trial_genders(scored.speakers[sides], genders)
    set_for = None
    if calibration is not None:
        ((what, value),) = calibration.set_for.items()
        set_for = f"a {what.replace('_', ' ')} of {value:g}, by calibration"
    write_report(
        chosen.report,
        title=f"{chosen.model} on {chosen.trials}",
        labels=scored.trials.labels,
        scores=scored.scores if calibration is None else result.log_likelihood_ratios,
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


def add_trial_arguments(parser: ArgumentParser) -> None:
    """What `score_trials` reads."""
    add_model(parser)
    parser.add_argument(
        "--trials",
        type=str,
        required=True,
        help='Lines of "<1 or 0> <enrolment> <test>", or "<enrolment> <test> <target or '
        'nontarget>".',
    )
    parser.add_argument(
        "--root", type=str, required=True, help="Folder of the files that the list names."
    )
    parser.add_argument(
        "--enrolment",
        type=str | None,
        default=None,
        help='Lines of "<model> <utterance> <utterance> ...": the trials name models.',
    )
    add_segments(parser)
    parser.add_argument(
        "--norm",
        type=Literal["as-norm"] | None,
        default=None,
        help="Normalise scores by those of the nearest impostors.",
    )
    parser.add_argument(
        "--cohort",
        type=str | None,
        default=None,
        help="Folder of the impostors' speech, of other speakers than the trials'; the run's "
        "training speakers when not given.",
    )
    parser.add_argument(
        "--cohort_size",
        type=PositiveInt,
        default=300,
        help="Nearest impostors that count, or all of fewer.",
    )
    parser.add_argument(
        "--cohort_utterances", type=PositiveInt, default=5, help="Utterances of each impostor."
    )
    add_cache(parser)


def score_trials(chosen: Namespace, *, by_speaker: bool) -> tuple[Scores, Cohort | None, Model]:
    """The scores of the trials that a command's arguments name, the cohort of their norm, and the
    model."""
    if chosen.cohort and not chosen.norm:
        raise UserError("--cohort is for --norm as-norm: give both or neither")

    from chns_jax import cohort as cohorts
    from chns_jax import evaluation, model
    from chns_jax.scoring import trials as trial_lists

    trial_lists.read(chosen.trials)  # what is wrong with the list is said before much is loaded
    encoder = model.load(chosen.model, chosen.checkpoint)
    cohort = None
    if chosen.norm:
        cohort = cohorts.make_cohort(
            encoder,
            chosen.cache,
            root=chosen.cohort,
            top=chosen.cohort_size,
            per_speaker=chosen.cohort_utterances,
            segments=chosen.segments,
        )
    scored = evaluation.score(
        encoder,
        chosen.trials,
        chosen.root,
        chosen.cache,
        enrolment=chosen.enrolment,
        segments=chosen.segments,
        cohort=cohort,
        by_speaker=by_speaker,
    )
    return scored, cohort, encoder


if __name__ == "__main__":
    run(main)

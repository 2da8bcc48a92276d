"""Make scores of a trained run mean something: `python -m chns_jax.calibrate`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from chns_jax.common.command_line import make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.values import OpenUnitInterval, between
from chns_jax.runs.published import BOX_FOLDER
from chns_jax.verification.trial_options import (
    add_trial_arguments,
    check_trial_arguments,
    score_trials,
)

FALSE_ACCEPT_RATE = 0.01
Prior = Annotated[float, between(0.000001, 0.999999)]  # beyond, it would outweigh any trials


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Fit the map from the scores of a trained run to log-likelihood ratios on a trial list, "
        "set the threshold of verify and gallery, write both to RUN/calibration.json, and print "
        "them. The trials must be of speakers who were not trained on."
    )
    add_trial_arguments(parser, model_required=True)
    parser.add_argument(
        "--false_accept_rate",
        type=OpenUnitInterval | None,
        default=None,
        help=f"Share of impostors that the threshold accepts; {FALSE_ACCEPT_RATE} by default.",
    )
    parser.add_argument(
        "--prior",
        type=Prior | None,
        default=None,
        help="Or: how often the speaker is the same, where both errors cost the same.",
    )
    parser.add_argument(
        "--quality",
        type=Literal["duration", "cohort_mean"],
        nargs="+",
        default=[],
        help="Also weigh duration (log of that of the shorter side), cohort_mean (of --norm).",
    )
    chosen = parse(parser, argv)
    if chosen.false_accept_rate and chosen.prior:
        raise UserError("--false_accept_rate and --prior both set the threshold: give one of them")
    rate = chosen.false_accept_rate or (None if chosen.prior else FALSE_ACCEPT_RATE)
    if len(set(chosen.quality)) < len(chosen.quality):
        raise UserError("--quality names a measure twice: leave one out")
    if "cohort_mean" in chosen.quality and not chosen.norm:
        raise UserError("--quality cohort_mean needs --norm as-norm")
    check_trial_arguments(chosen)
    if os.path.realpath(os.path.expanduser(chosen.model)) == os.path.realpath(BOX_FOLDER):
        raise UserError(
            "the model in the box is calibrated, and stays as it is: chns_jax.export box DIR "
            "--format hub makes a folder of your own, which can be calibrated again"
        )

    import numpy as np

    from chns_jax.common.console import say
    from chns_jax.common.files import check_place, check_spares
    from chns_jax.runs.folder import RunFolder, training_speakers
    from chns_jax.scoring import calibration
    from chns_jax.verification import cohort as cohorts

    folder = Path(chosen.model).expanduser()
    path = RunFolder(folder).calibration
    check_spares(path, [chosen.trials, chosen.enrolment])
    if path.is_dir():
        raise UserError(f"{path} is a folder: remove it")
    check_place(path)
    scored, cohort, encoder = score_trials(chosen, by_speaker=True)
    data = dataclasses.replace(encoder.config.data, cache=chosen.cache)
    config = dataclasses.replace(encoder.config, data=data)
    trained_on = training_speakers(folder, config, encoder.step)
    enrolment, test = scored.enrolment_speaker, scored.test_speaker
    assert enrolment is not None and test is not None  # as by_speaker asks
    speakers = scored.speakers[np.union1d(enrolment, test)]
    if trained_on is not None and np.isin(speakers, trained_on).any():
        known = speakers[np.isin(speakers, trained_on)]
        say(
            f"warning: {len(known)} of the trials' {len(speakers)} speakers, {known[0]} first, are "
            "training speakers of the run by their names, whom it tells apart better than others: "
            "the threshold and the log-likelihood ratios will not hold for anybody else"
        )
    made = calibration.calibrate(
        scored.trials.labels,
        scored.scores,
        {name: scored.qualities[name] for name in dict.fromkeys(chosen.quality)},
        enrolment,
        test,
        made_by=scored.made_by,
        false_accept_rate=rate,
        prior=chosen.prior,
    )
    if cohort is not None:
        cohorts.save(folder, cohort, scored.made_by)
    calibration.save(path, made)
    cohorts.remove_others(folder, scored.made_by)
    print(json.dumps(dataclasses.asdict(made)))
    print(f"calibrated: {path}", file=sys.stderr)


if __name__ == "__main__":
    run(main)

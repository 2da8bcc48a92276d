"""Score a trial list with a trained run: `python -m chns_jax.evaluate`."""

from __future__ import annotations

import json

from chns_jax.command_line import make_parser, parse
from chns_jax.errors import UserError, run


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Print EER and minDCF of a trained run on a trial list, as one JSON object."
    )
    parser.add_argument("--model", type=str, required=True, help="Run folder of chns_jax.train.")
    parser.add_argument(
        "--trials", type=str, required=True, help='Lines of "<1 or 0> <enrolment> <test>".'
    )
    parser.add_argument(
        "--root", type=str, required=True, help="Folder of the files that the list names."
    )
    parser.add_argument(
        "--checkpoint", type=str, default="last", help="last, best (lowest EER) or a step number."
    )
    parser.add_argument(
        "--cache", type=str, default="~/.cache/chns_jax", help="Folder for corpus indices."
    )
    parser.add_argument("--report", type=str, help="HTML page to write of what the scores show.")
    parser.add_argument(
        "--metadata", type=str, help="Table of the speakers, for the page: their id and gender."
    )
    chosen = parse(parser, argv)
    if chosen.metadata is not None and chosen.report is None:
        raise UserError("--metadata is only for a page: give --report FILE.html")

    import numpy as np

    from chns_jax import model, pages
    from chns_jax.corpus.index import index
    from chns_jax.corpus.metadata import read_genders
    from chns_jax.files import check_file
    from chns_jax.sampling.pipeline import Reader
    from chns_jax.scoring import trials as trial_lists
    from chns_jax.scoring.report import trial_genders, write_report
    from chns_jax.validate import score, summary

    genders = None if chosen.metadata is None else read_genders(chosen.metadata)
    if chosen.report is not None:
        pages.check_plotly()
        check_file(chosen.report)
    named = trial_lists.read(chosen.trials)
    encoder = model.load(chosen.model, chosen.checkpoint)
    config = encoder.config
    corpus = index(chosen.root, chosen.cache)
    trials = trial_lists.locate(named, corpus, chosen.trials)
    reader = Reader(corpus, config.features.sample_rate, config.data.threads)
    (scores,) = score(
        encoder.encode, encoder.variables, reader, [trials], samples=config.segment_samples
    )
    result = summary(trials.labels, scores)
    if chosen.report is not None:
        sides = np.stack([trials.enrolment, trials.test], axis=1)
        write_report(
            chosen.report,
            title=f"{chosen.model} on {chosen.trials}",
            labels=trials.labels,
            scores=scores,
            enrolment=named.enrolment,
            test=named.test,
            seconds=corpus.seconds[sides],
            metrics=result,
            genders=genders and trial_genders(corpus.speakers[corpus.speaker[sides]], genders),
        )
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)

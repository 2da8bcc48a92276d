"""Score a trial list with a trained run: `python -m chns_jax.evaluate`."""

from __future__ import annotations

import json

from chns_jax.command_line import make_parser, parse
from chns_jax.errors import run


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
    chosen = parse(parser, argv)

    from chns_jax import model
    from chns_jax.corpus.index import index
    from chns_jax.sampling.pipeline import Reader
    from chns_jax.scoring import trials as trial_lists
    from chns_jax.validate import validate

    named = trial_lists.read(chosen.trials)
    encoder = model.load(chosen.model, chosen.checkpoint)
    config = encoder.config
    corpus = index(chosen.root, chosen.cache)
    trials = trial_lists.locate(named, corpus, chosen.trials)
    reader = Reader(corpus, config.features.sample_rate, config.data.threads)
    result = validate(
        encoder.encode, encoder.variables, reader, trials, samples=config.segment_samples
    )
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)

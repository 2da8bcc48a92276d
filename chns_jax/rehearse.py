"""Try a config at its full size before there is the corpus: `python -m chns_jax.rehearse`."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

from chns_jax import config as configs
from chns_jax.common.command_line import make_parser, parse
from chns_jax.common.console import say
from chns_jax.common.errors import UserError, run
from chns_jax.common.values import between

# Keys of a config in whose place a rehearsal has something else.
NOT_READ = (
    "data.root", "data.more_roots", "data.trials", "data.trials_root", "data.held_out",
    "sampler.table", "training.start_from", "training.steps",
)  # fmt: skip
Count = Annotated[int, between(1, 1_000_000_000)]
Seconds = Annotated[float, between(0, 24 * 3600)]


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Train for a few steps, and say how fast the host feeds the device, what memory it takes, "
        "and how many days all steps of the config would take here. The corpus is an index of "
        "VoxCeleb2's size, validation one of VoxCeleb1-O's, whose audio is a few raw samples that "
        "are heard again and again; all else is what chns_jax.train does with the config. Prints a "
        "JSON object."
    )
    configs.add_keys(parser)
    whole = "of the index"
    parser.add_argument("--speakers", type=Count, default=5_994, help=f"Speakers {whole}.")
    parser.add_argument("--recordings", type=Count, default=145_569, help=f"Recordings {whole}.")
    parser.add_argument("--utterances", type=Count, default=1_092_009, help=f"Utterances {whole}.")
    parser.add_argument("--validation_utterances", type=Count, default=4_708, help="Of the trials.")
    parser.add_argument("--trials", type=Count, default=37_611, help="Of a validation.")
    parser.add_argument(
        "--pool",
        type=str | None,
        default=None,
        help="Folder of the speech that is heard again and again; built-in voices, which take a "
        "minute to make, when not given.",
    )
    parser.add_argument("--steps", type=configs.Steps, default=300, help="Steps to train.")
    parser.add_argument(
        "--step_seconds",
        type=Seconds | None,
        default=None,
        help="Sleep so long in place of each step, to see what the host can do for a faster "
        "device; steps are real when not given.",
    )
    parser.add_argument(
        "--embed_seconds",
        type=Seconds | None,
        default=None,
        help="The same in place of embedding a batch of crops; a third of a step's time for as "
        "many utterances when not given.",
    )
    parser.add_argument(
        "--feed_seconds",
        type=Seconds,
        default=10.0,
        help="How long to measure reading alone.",
    )
    began = time.perf_counter()
    chosen = parse(parser, argv)
    config = configs.read(parser, argv)
    if chosen.embed_seconds is not None and chosen.step_seconds is None:
        raise UserError("--embed_seconds needs --step_seconds: embedding is real where steps are")

    replaced = [key for key in NOT_READ if any(word.split("=")[0] == f"--{key}" for word in argv)]
    if replaced:
        say(
            f"warning: --{', --'.join(replaced)} does nothing here, where a stand-in is trained on "
            "for a few steps: --pool gives it your speech"
        )
    from chns_jax.benchmarks.large_corpus import Pool, Size, voxceleb1_o
    from chns_jax.benchmarks.rehearsal import Rehearsal, rehearse
    from chns_jax.train import train

    imported = time.perf_counter() - began
    about = Rehearsal(
        training=Size(chosen.speakers, chosen.recordings, chosen.utterances),
        validation=voxceleb1_o(chosen.validation_utterances),
        trials=chosen.trials,
        pool=chosen.pool or Pool(),
        steps=chosen.steps,
        step_seconds=chosen.step_seconds,
        embed_seconds=chosen.embed_seconds,
        feed_seconds=chosen.feed_seconds,
    )
    report = {"seconds_to_import": imported, **rehearse(config, about, train)}
    for name, value in report.items():
        said = f"{value:,.4g}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' ')}: {said}", file=sys.stderr)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    run(main)

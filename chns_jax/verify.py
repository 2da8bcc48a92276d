"""Compare two recordings with a trained run: `python -m chns_jax.verify`."""

from __future__ import annotations

import json
from pathlib import Path

from chns_jax.common.command_line import add_cache, add_model, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.reading import check_readable
from chns_jax.runs.published import find_model


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Print the cosine of the speaker embeddings of two recordings and, by the calibration of "
        "the run, the log-likelihood ratio and whether it is one speaker, as one JSON object."
    )
    parser.add_argument("one", type=str, help="An audio file.")
    parser.add_argument("other", type=str, help="Another one.")
    add_model(parser)
    add_cache(parser)
    chosen = parse(parser, argv)
    chosen.model = find_model(chosen.model)  # what is wrong is said before JAX is imported
    for path in (chosen.one, chosen.other):
        check_readable(path, "an audio file")

    from chns_jax import SpeakerEncoder
    from chns_jax.common.console import say
    from chns_jax.devices.compilation_cache import keep_compiled

    keep_compiled(Path(chosen.cache, "compiled").expanduser())
    encoder = SpeakerEncoder.load(chosen.model, chosen.checkpoint, quick=True)
    one, other = encoder.voiceprints([[chosen.one], [chosen.other]])
    try:
        encoder.check_calibrated()
    except UserError as error:
        say(str(error))
        cosine = float(one.embedding @ other.embedding)
        print(json.dumps({"cosine": cosine, "calibrated": False}))
        return
    print(json.dumps(encoder.decide(one, other)._asdict()))


if __name__ == "__main__":
    run(main)

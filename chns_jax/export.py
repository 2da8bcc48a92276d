"""Take a trained run elsewhere: `python -m chns_jax.export`."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chns_jax.common.command_line import MODEL, Parser, add_checkpoint, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.runs.published import find_model

if TYPE_CHECKING:
    from chns_jax.verification.model_card import About


def main(argv: list[str]) -> None:
    parser = make_parser("Write the encoder of a trained run in a form that others read.")
    parser.add_argument("run", type=str, metavar="RUN", help=f"{MODEL}.")
    parser.add_argument("out", type=str, metavar="OUT", help="Folder to make.")
    parser.add_argument(
        "--format",
        type=Literal["hub"],
        required=True,
        help="hub: a published model, which is used as any run, from a folder or from Hugging "
        "Face's hub.",
    )
    add_checkpoint(parser)
    _add_hub_arguments(parser)
    chosen = parse(parser, argv)
    chosen.run = find_model(chosen.run)  # what is wrong is said before JAX is imported
    out = Path(chosen.out).expanduser()
    if os.path.lexists(out):  # a link that leads nowhere as well
        raise UserError(f"{out} exists, and is not overwritten: give another name")
    _to_hub(chosen, out)


def _add_hub_arguments(parser: Parser) -> None:
    """The options of --format hub."""
    parser.add_argument(
        "--dtype",
        type=Literal["float32", "float16"],
        default="float32",
        help="Of hub's weights; float16: half as large, and embeddings that differ little.",
    )
    parser.add_argument(
        "--license",
        type=str | None,
        default=None,
        help="For hub's card: the licence of the model by its name there, such as apache-2.0.",
    )
    parser.add_argument(
        "--trained_on",
        type=str | None,
        default=None,
        help="For hub's card: the speech that the model was trained on, in words.",
    )
    parser.add_argument(
        "--result",
        type=str,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="For hub's card: a file of what chns_jax.evaluate printed, and the name of its list; "
        "may be given several times.",
    )


def _to_hub(chosen: Namespace, out: Path) -> None:
    """Write a published model."""
    about = _about(chosen)  # what is wrong with it is said before JAX is imported

    from chns_jax import SpeakerEncoder

    encoder = SpeakerEncoder.load(chosen.run, chosen.checkpoint)
    encoder.save_pretrained(out, dtype=chosen.dtype, about=about)
    if encoder.calibration is None:
        print(f"not calibrated: {encoder.uncalibrated}", file=sys.stderr)
    print(f"{out}: a published model, to be used as any run", file=sys.stderr)


def _about(chosen: Namespace) -> About | None:
    """What the card is to say; None where nothing is given."""
    from chns_jax.verification.model_card import About, check, read_result

    if not (chosen.license or chosen.trained_on or chosen.result):
        return None
    results = {}
    for given in chosen.result:
        name, equals, path = given.partition("=")
        if not (name and equals and path):
            raise UserError(f"--result {given} is not NAME=FILE: name the list, and the file")
        if name in results:
            raise UserError(f"--result {name} is given twice: leave one out")
        results[name] = read_result(path)
    about = About(chosen.license, chosen.trained_on, results)
    check(about)
    return about


if __name__ == "__main__":
    run(main)

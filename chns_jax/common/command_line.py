"""The command line of a program: what it says wrong is one sentence."""

from __future__ import annotations

import re

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from chns_jax.common.bounds import PositiveFloat
from chns_jax.common.errors import UserError

# What jsonargparse says of Python's types, and what is said in its place.
SAID = {
    r"^Parser key ": "",
    r"Does not validate against any of the Union subtypes .*? Errors: - (.*) "
    r"Given value type: .*? Given value: (.*)": r"\1. Got value: \2",
    r" - Expected a <class 'NoneType'>": "",
    r"Not of type \w+: ": "",
    r"a typing\.Literal\[(.*?)\]": r"one of \1",
}


def make_parser(description: str) -> ArgumentParser:
    """A parser for `parse`."""
    return ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)


def add_model(parser: ArgumentParser) -> None:
    """--model, and --checkpoint as `add_checkpoint`."""
    parser.add_argument("--model", type=str, required=True, help="Run folder of chns_jax.train.")
    add_checkpoint(parser)


def add_checkpoint(parser: ArgumentParser) -> None:
    """--checkpoint: which of a run's."""
    parser.add_argument(
        "--checkpoint",
        type=str,
        default="last",
        help="Of a run: last, best (lowest EER) or a step number.",
    )


def add_segments(parser: ArgumentParser) -> None:
    """--segments: how utterances are embedded."""
    parser.add_argument(
        "--segments",
        type=PositiveFloat | None,
        default=None,
        help="Seconds: average the embeddings of evenly spaced segments, as validation does; "
        "utterances are embedded whole when not given.",
    )


def add_cache(parser: ArgumentParser) -> None:
    """--cache: where what can be made again is kept."""
    parser.add_argument(
        "--cache",
        type=str,
        default="~/.cache/chns_jax",
        help="Folder for corpus indices and embeddings.",
    )


def parse(parser: ArgumentParser, argv: list[str] | None) -> Namespace:
    """The arguments, or a UserError for what is wrong with them."""
    try:
        return parser.parse_args(argv)
    except (ArgumentError, TypeError, ValueError) as error:  # the latter two for malformed files
        said = " ".join(str(error).split())
        for theirs, ours in SAID.items():
            said = re.sub(theirs, ours, said)
        raise UserError(said) from error

"""The command line of a program: what it says wrong is one sentence."""

from __future__ import annotations

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from chns_jax.errors import UserError


def make_parser(description: str) -> ArgumentParser:
    """A parser for `parse`."""
    return ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)


def parse(parser: ArgumentParser, argv: list[str] | None) -> Namespace:
    """The arguments, or a UserError for what is wrong with them."""
    try:
        return parser.parse_args(argv)
    except (ArgumentError, TypeError, ValueError) as error:  # the latter two for malformed files
        raise UserError(" ".join(str(error).removeprefix("Parser key ").split())) from error

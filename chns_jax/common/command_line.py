"""The options of a command, read by their annotations; options that commands share."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

from chns_jax.common.errors import UserError, shortened
from chns_jax.common.values import (
    DECIMAL,
    NOT_FINITE,
    PositiveFloat,
    in_words,
    read_value,
    shown_as,
)

# Which are values, and no options.
NEGATIVE = re.compile(rf"(?=-)({DECIMAL.pattern}|{NOT_FINITE.pattern})\Z", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """argparse's, whose types are annotations, and whose mistakes are UserErrors."""

    def __init__(self, description: str = "", **options: Any):
        self.options: list[str] = []  # all that it takes, "--model"
        super().__init__(description=description, allow_abbrev=False, **options)
        self._negative_number_matcher = NEGATIVE  # argparse's knows no exponents

    def add_argument(
        self, *names: str, group: argparse._ArgumentGroup | None = None, **options: Any
    ) -> argparse.Action:
        """As argparse's, for the help in a `group`; `type` may be any that `read_value` knows."""
        self.options += [name for name in names if name.startswith("--")]
        add = super().add_argument if group is None else group.add_argument
        return add(*names, **_read_by_annotation(names[0], options))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which would ask for what is missing before it says what is unknown."""
        for word in args or ():
            name = word.partition("=")[0]
            # A subcommand's own parser looks at its own.
            if word == "--" or (self._subparsers and not word.startswith("-")):
                break
            is_option = word.startswith("--") or (word[:1] == "-" and word[1:2].isalpha())
            if NEGATIVE.match(word) or not is_option or name in (*self.options, "--help", "-h"):
                continue
            hint = did_you_mean(name, self.options)
            if os.path.exists(word):
                hint = f": for the file of that name, give ./{shortened(word)}"
            if self._subparsers:
                hint = ": begin with a command, of which --help tells"
            raise UserError(f"{shortened(name)} is unknown{hint}")
        return super().parse_known_args(args, namespace)

    def print_help(self, file: Any = None) -> None:
        """As argparse's, which keeps silent where it cannot be written."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        raise UserError(" ".join(message.split()))


def make_parser(description: str, usage: str | None = None) -> Parser:
    """A parser for `parse`; its help begins with all options when no `usage` is given."""
    return Parser(description, usage=usage)


MODEL = "Run folder of chns_jax.train, or a published model: a folder, or box, the model in the box"


def add_model(parser: Parser, *, required: bool = False) -> None:
    """--model, which is the model in the box where it is not given unless it is `required`, and
    --checkpoint as `add_checkpoint`."""
    otherwise = "." if required else ", which is used when none is given."
    parser.add_argument(
        "--model",
        type=str if required else str | None,
        default=None,
        required=required,
        help=f"{MODEL} (unless a folder is named so){otherwise}",
    )
    add_checkpoint(parser)


def add_checkpoint(parser: Parser) -> None:
    """--checkpoint: which of a run's."""
    parser.add_argument(
        "--checkpoint",
        type=str,
        default="last",
        help="Of a run: last, best (lowest EER), a step number, or average:N, the mean of the last "
        "N that were kept.",
    )


def add_same(parser: Parser, metadata: str, same: str) -> None:
    """--metadata, a table of speakers, and --same, which names columns of it; with their help."""
    parser.add_argument("--metadata", type=str | None, default=None, help=metadata)
    add_several(parser, "--same", "COLUMN", same)


def add_several(parser: Parser, name: str, metavar: str, help: str, *, type: Any = str) -> None:
    """An option of one or more values, which may come several times; none when not given."""
    parser.add_argument(
        name, type=type, nargs="+", action="extend", default=[], metavar=metavar, help=help
    )


def changed(chosen: Namespace, defaults: Mapping[str, Any]) -> str | None:
    """The first of the options with these `defaults` that was given another value, if any."""
    return next((name for name in defaults if getattr(chosen, name) != defaults[name]), None)


def averaged(checkpoint: str) -> int | None:
    """How many checkpoints average:N names; None for another --checkpoint."""
    found = re.fullmatch(r"average:([1-9][0-9]{0,5})", checkpoint)
    return None if found is None else int(found[1])


def add_segments(parser: Parser) -> None:
    """--segments: how utterances are embedded."""
    parser.add_argument(
        "--segments",
        type=PositiveFloat | None,
        default=None,
        help="Seconds: average the embeddings of evenly spaced segments, as validation does; "
        "utterances are embedded whole when not given.",
    )


def add_cache(parser: Parser) -> None:
    """--cache: where what can be made again is kept."""
    parser.add_argument(
        "--cache",
        type=str,
        default="~/.cache/chns_jax",
        help="Folder for what can be made again: corpus indices, embeddings, compiled programs.",
    )


def parse(parser: Parser, argv: list[str], given: dict[str, Any] | None = None) -> Namespace:
    """The arguments, over those `given` before; a UserError for what is wrong with them."""
    chosen, unknown = parser.parse_known_args(argv, Namespace(**(given or {})))
    if unknown:
        options = [word for word in unknown if word.startswith("-")]
        if options:
            raise UserError(f"{shortened(options[0])} is unknown")
        word = shortened(unknown[0])
        of_config = "--config" in parser.options and word.endswith((".yaml", ".yml"))
        what = f"give it as --config {word}" if of_config else "leave it out, or see --help"
        raise UserError(f"{word} is an argument too many: {what}")
    return chosen


def did_you_mean(name: str, known: list[str]) -> str:
    """The end of a sentence about an unknown name; empty when no known one is near."""
    bare = {other.lstrip("-"): other for other in known}  # dashes are alike in all
    near = difflib.get_close_matches(name.lstrip("-"), bare, n=1)
    return f": did you mean {bare[near[0]]}?" if near else ""


def _read_by_annotation(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of an argument for argparse, whose help says what the value must be."""
    annotation, default = options.get("type"), options.get("default")
    if annotation is None:
        return options
    said = [] if annotation in (str, str | None) else [in_words(annotation)]
    if default not in (None, [], ()):
        said.append(f"by default {shown_as(default)}".replace("%", "%%"))
    about = options.get("help", "")
    ending = f" ({'; '.join(said)})" if said else ""
    read = partial(read_value, name, annotation, about=about.replace("%%", "%"))
    return {**options, "type": read, "help": f"{about}{ending}"}

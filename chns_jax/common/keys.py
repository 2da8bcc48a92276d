"""Dotted keys of nested dataclasses: from YAML files and the command line, and back.

A key is "sampler.hard_ratio"; its words for --help are the docstring under its field.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import sys
from argparse import SUPPRESS, Action, Namespace
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import yaml

from chns_jax.common import packaged, plain_yaml
from chns_jax.common.command_line import Parser, did_you_mean
from chns_jax.common.errors import UserError, shortened
from chns_jax.common.reading import check_readable, read_text
from chns_jax.common.values import read_value, shown_as

BASE = "base"  # key of a file: another one that is read before it
MOST_BASES = 20  # of a file, and of its bases
LARGEST = 100_000  # characters of a file; reading them takes a second or two
LONGEST_LETTER = 4  # bytes in UTF-8


class Key(NamedTuple):
    """What is known of a key."""

    annotation: Any
    default: Any
    about: str  # its docstring
    section: str  # "sampler", or "" at the top
    section_about: str


@cache
def keys_of(cls: type) -> dict[str, Key]:
    """All keys of a dataclass of dataclasses that can be made without arguments, in order."""
    return dict(_walk(cls, ""))


def add_keys(parser: Parser, cls: type) -> None:
    """Let `parser` take `--config` and the keys of `cls`, for `make`."""
    parser.add_argument(
        "--config",
        action=_ReadFile,
        type=str,
        keys=keys_of(cls),
        metavar="FILE",
        help="YAML file of keys, or the name of one that comes with this package, such as "
        "quickstart; of several, and of what is given after it, the last wins. A file may name "
        f"another under {BASE}, relative to itself, which is read before it.",
    )
    parser.add_argument(f"--{BASE}", action=_OnlyInFiles, help=SUPPRESS)
    groups = {}
    for name, key in keys_of(cls).items():
        if key.section not in groups:
            title = key.section or None
            groups[key.section] = parser.add_argument_group(title, key.section_about)
        parser.add_argument(
            f"--{name}",
            group=groups[key.section],
            type=key.annotation,
            default=key.default,
            metavar=name.rpartition(".")[2].upper(),
            help=key.about.replace("%", "%%"),
        )


def make(cls: type, values: dict[str, Any]) -> Any:
    """The dataclass of values of all its keys, among which there may be other names."""
    return _make(cls, {name: values[name] for name in keys_of(cls)}, "")


def read_keys(keys: dict[str, Key], given: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The values of dotted keys, of the types that the keys have.

    Raises UserError, which ends with `where`, for one that is unknown or does not fit.
    """
    for name in given:
        if name not in keys:
            known = _sections(keys) if isinstance(given[name], dict) else keys
            hint = did_you_mean(name, sorted(known))
            raise UserError(f"{shortened(name)}{where} is unknown{hint}")
    return {
        name: read_value(name, keys[name].annotation, value, about=keys[name].about, where=where)
        for name, value in given.items()
    }


def read_file(keys: dict[str, Key], path: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a YAML file and, under them, those of the file that it is based on.

    `above`: the files that are based on it. Raises UserError.
    """
    where = f" in {path}"
    if _real(path) in map(_real, above):
        raise UserError(f"{path} is its own base: remove the key base from {' or '.join(above)}")
    if len(above) > MOST_BASES:
        raise UserError(
            f"{above[0]} has more than {MOST_BASES} bases, one below another: join some"
        )
    written = read_yaml(path)
    values = {}
    if BASE in written:
        base = read_value(BASE, str, written.pop(BASE), where=where)
        values = read_file(keys, str(Path(path).parent / base), (*above, path))
    return {**values, **read_keys(keys, dotted(keys, written, where), where)}


def dotted(keys: dict[str, Key], tree: dict[Any, Any], where: str = "") -> dict[str, Any]:
    """The keys and values of nested sections, or of names that are dotted already.

    Raises UserError, which ends with `where`, for a section that is none.
    """
    given = {}
    for name, value in _flatten(tree, _sections(keys), "", where):
        if name in given:  # as a.b: and as a: {b: }
            raise UserError(f"{shortened(name)}{where} is given a second time: leave one out")
        given[name] = value
    return given


def _sections(keys: dict[str, Key]) -> set[str]:
    """The names of the sections that dotted keys lie in: of a.b.c, a and a.b."""
    return {name[:dot] for name in keys for dot, letter in enumerate(name) if letter == "."}


def read_yaml(
    path: str,
    what: str = "a YAML file of keys, as in configs/",
    keys: str = "keys of a config, such as sampler: {kind: chns}",
) -> dict[Any, Any]:
    """What a YAML file holds at its top. Raises UserError for one that is no YAML or no mapping, in
    whose place it asks for `what`, and for these `keys`."""
    is_large = os.path.getsize(check_readable(path, what)) > LONGEST_LETTER * LARGEST
    text = "" if is_large else read_text(path, what)
    if is_large or len(text) > LARGEST:
        raise UserError(f"{path} has more than {LARGEST} characters, which no config has")
    try:
        written = plain_yaml.load(text)
    except plain_yaml.Refused as error:
        assert error.problem_mark is not None
        raise UserError(f"{path} line {error.problem_mark.line + 1} {error.problem}") from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = shortened(str(error.problem))
        raise UserError(f"{path} is not YAML{line}: {problem}") from error
    except yaml.YAMLError as error:  # a character that is none of a text
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if written is None:
        return {}
    if not isinstance(written, dict):
        raise UserError(f"{path} holds no {keys}")
    return written


def flat(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys and values of a dataclass of dataclasses."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from flat(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


class _ReadFile(Action):
    """--config: what the file says stands until something later says otherwise."""

    def __init__(self, *arguments: Any, keys: dict[str, Key], **options: Any):
        super().__init__(*arguments, **options)
        self.keys = keys

    def __call__(self, parser: Any, chosen: Namespace, path: Any, option: Any = None) -> None:
        for name, value in read_file(self.keys, packaged.find(path)).items():
            setattr(chosen, name, value)


class _OnlyInFiles(Action):
    """--base."""

    def __call__(self, parser: Any, chosen: Namespace, path: Any, option: Any = None) -> None:
        raise UserError(f"{option} is only for files: give --config {path} and then the others")


def _real(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _flatten(
    tree: dict[Any, Any], sections: set[str], prefix: str, where: str
) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        name = f"{prefix}{name}"
        if name not in sections:
            yield name, value
        elif isinstance(value, dict):
            yield from _flatten(value, sections, f"{name}.", where)
        elif value is not None:
            shown = shortened(shown_as(value))
            raise UserError(f"{name}{where} is a section: write its keys under it, not {shown}")


def _walk(cls: type, section: str) -> Iterator[tuple[str, Key]]:
    annotations, about = _annotations(cls), _docstrings(cls)
    inner = {}
    for field in dataclasses.fields(cls):
        name = f"{section}.{field.name}".removeprefix(".")
        annotation = annotations[field.name]
        if dataclasses.is_dataclass(annotation):
            inner[name] = annotation
        else:
            words = " ".join(about.get(field.name, "").split())
            yield name, Key(annotation, field.default, words, section, cls.__doc__ or "")
    for name, annotation in inner.items():
        yield from _walk(annotation, name)


def _make(cls: type, values: dict[str, Any], prefix: str) -> Any:
    annotations = _annotations(cls)
    fields = {}
    for field in dataclasses.fields(cls):
        annotation, name = annotations[field.name], f"{prefix}{field.name}"
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            fields[field.name] = _make(annotation, values, f"{name}.")
        else:
            fields[field.name] = values[name]
    return cls(**fields)


@cache
def _annotations(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _docstrings(cls: type) -> dict[str, str]:
    """The strings that stand under the fields of a class, which Python does not keep."""
    return _docstrings_in(cls.__module__).get(cls.__qualname__, {})


@cache
def _docstrings_in(module: str) -> dict[str, dict[str, str]]:
    """Those of each class of a module; none where its source is not at hand."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except OSError:
        return {}
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            of_class = found.setdefault(statement.name, {})
            for field, string in zip(statement.body, statement.body[1:], strict=False):
                match field, string:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                        value=ast.Constant(value=str(words))
                    ):
                        of_class[name] = words
    return found

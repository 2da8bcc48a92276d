"""Values of options and config keys: what their types allow, in words, and how they are read."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from chns_jax.common import plain_yaml
from chns_jax.common.errors import UserError, shortened

LARGEST = 2**63 - 1  # integer that arrays hold
NULL = "null"
# As people write them: in other notations, 010 may be 8 or 10.
DECIMAL = re.compile(r"[-+]?((0|[1-9][0-9_]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
OTHER_NOTATION = re.compile(r"[-+]?\d[\w:]*")
NOT_FINITE = re.compile(r"[-+]?\.?(inf|nan)", re.IGNORECASE)
OPEN_ABOVE = re.compile(r"an integer (above 0|from 0 on)")
WORDS = {
    str: "text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    types.NoneType: NULL,
}


@dataclass(frozen=True)
class Within:
    """What numbers of a type are allowed, and how that is said after "an integer"."""

    allows: Callable[[float], bool]
    words: str


def between(lowest: float, highest: float) -> Within:
    """Numbers that make sense, beyond which a sum overflows or a machine is too small."""
    return Within(lambda x: lowest <= x <= highest, f"from {lowest:,} to {highest:,}")


PositiveInt = Annotated[int, Within(lambda x: x > 0, "above 0")]
NonNegativeInt = Annotated[int, Within(lambda x: x >= 0, "from 0 on")]
PositiveFloat = Annotated[float, Within(lambda x: x > 0, "above 0")]
NonNegativeFloat = Annotated[float, Within(lambda x: x >= 0, "from 0 on")]
ClosedUnitInterval = Annotated[float, Within(lambda x: 0 <= x <= 1, "from 0 to 1")]
OpenUnitInterval = Annotated[float, Within(lambda x: 0 < x < 1, "above 0 and below 1")]


def read_value(name: str, annotation: Any, given: Any, *, about: str = "", where: str = "") -> Any:
    """`given`, text of a command line or a value of YAML, as the type `annotation` says.

    Raises UserError, which says `where` the value stands, and ends with what it is `about`.
    """
    sentence = about.split(". ")[0].removesuffix(".")
    ending = f" ({sentence})" if sentence else ""
    expected = in_words(annotation)
    if isinstance(given, str) and not given.strip():
        raise UserError(f"{name}{where} is empty: give {expected}{ending}")
    try:
        return _convert(annotation, given)
    except (ValueError, OverflowError, yaml.YAMLError):
        shown = shortened(shown_as(given))
        if not isinstance(given, str):  # but a number of a file, say
            expected = expected.replace(WORDS[str], f"{WORDS[str]} in quotes")
        elif OTHER_NOTATION.fullmatch(given.strip()) and not DECIMAL.fullmatch(given.strip()):
            expected += ", in plain decimal digits"
        if _is_beyond(given):
            expected = OPEN_ABOVE.sub(r"\g<0> and below 2**63", expected)
        raise UserError(f"{name} {shown}{where} must be {expected}{ending}") from None


def shown_as(value: Any) -> str:
    """The value as it is written on a command line and in YAML."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


def in_words(annotation: Any) -> str:
    """What a value of this type is, such as "a number from 0 to 1"."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return f"{WORDS[arguments[0]]} {arguments[1].words}"
    if origin is Literal:
        return _alternatives([str(argument) for argument in arguments])
    if origin in (Union, types.UnionType):
        return _alternatives([in_words(argument) for argument in arguments])
    if origin is tuple and arguments[-1] is ...:
        return f"a list such as [a, b], each {in_words(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {in_words(arguments[0])}"
    return WORDS[annotation]


def _alternatives(words: list[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _convert(annotation: Any, given: Any) -> Any:
    """Raises ValueError, OverflowError or YAMLError where it does not fit."""
    arguments, origin = get_args(annotation), get_origin(annotation)
    if origin is Annotated:
        value = _convert(arguments[0], given)
        if not arguments[1].allows(value):
            raise ValueError
        return value
    if origin in (Union, types.UnionType):
        return _first_of(arguments, given)
    if origin is tuple:
        return _tuple(arguments, given)
    if annotation in (int, float):
        return _number(annotation, given)
    if annotation is types.NoneType:
        given = None if given == NULL else given
    if annotation is bool and isinstance(given, str):
        given = plain_yaml.load(given)
    if isinstance(given, str):
        if "\0" in given or not given.strip():  # which names nothing
            raise ValueError
        given.encode("utf-8", "surrogateescape")  # half a letter neither; a file's byte may
    allowed = given in arguments if origin is Literal else isinstance(given, annotation)
    if not allowed:
        raise ValueError
    return given


def _first_of(annotations: tuple, given: Any) -> Any:
    """As one of the types that it fits; null is nothing, and [a] a list, before it is text."""
    for annotation in sorted(annotations, key=lambda x: (x is not types.NoneType, x is str)):
        try:
            return _convert(annotation, given)
        except (ValueError, OverflowError, yaml.YAMLError):
            continue
    raise ValueError


def _tuple(elements: tuple, given: Any) -> tuple:
    given = plain_yaml.load(given) if isinstance(given, str) else given
    if not isinstance(given, list | tuple):
        raise ValueError
    if elements[-1] is ...:
        elements = elements[:1] * len(given)
    return tuple(_convert(of, value) for of, value in zip(elements, given, strict=True))


def _number(kind: type, given: Any) -> int | float:
    """YAML takes 1e-4 for text, and 5.0 or 1e3 may count steps."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError
    if isinstance(given, str):
        given = _parsed(given.strip())
    if kind is float:
        return float(given)
    if given != int(given) or abs(given) > LARGEST:
        raise ValueError
    return int(given)


def _parsed(text: str) -> int | float:
    if NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))  # as YAML writes them
    if not DECIMAL.fullmatch(text):
        raise ValueError
    try:
        return int(text)
    except ValueError:
        return float(text)


def _is_beyond(given: Any) -> bool:
    """Whether it is a number above all integers that arrays hold."""
    try:
        return _number(float, given) > LARGEST
    except ValueError:
        return False
    except OverflowError:  # an integer that is above all floats, too
        return True

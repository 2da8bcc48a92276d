"""YAML as configs need it: nothing in it that a reader would take for something else.

Numbers are decimal, and true and false alone are truth: `010`, `0x10`, `1:30`, `yes` and
`2024-01-01` are text. A key stands once, and the few aliases mean what is complete before them.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml

from chns_jax.common.errors import shortened

MOST_ALIASES = 20
DEEPEST = 20  # lists and sections within each other
LONGEST_INTEGER = 30  # digits


class Refused(yaml.MarkedYAMLError):
    """YAML, but not plain; `problem` says what, and goes on after the number of the line."""


def load(text: str) -> Any:
    """What the text says, as dicts, lists, text, numbers, truth and None.

    Raises yaml.YAMLError: Refused for what is YAML.
    """
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # no types but those below

    def __init__(self, text: str):
        super().__init__(text)
        self.aliases = self.depth = 0

    def compose_document(self) -> Any:
        node = super().compose_document()
        if not self.check_event(yaml.StreamEndEvent):
            _refuse(self.peek_event(), "begins a second document: leave one out")
        return node

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                _refuse(event, f"has more than {MOST_ALIASES} aliases: write the values out")
            node = self.anchors.get(event.anchor)
            if node is not None and node.end_mark is None:  # it has only begun
                _refuse(event, f"puts &{shortened(event.anchor)} into itself: write the value out")
        elif event.tag is not None:
            _refuse(event, f"has the tag {shortened(event.tag)}: leave it out")
        if self.depth == DEEPEST:
            _refuse(event, f"is within more than {DEEPEST} lists or sections: no key is")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _refuse(key, "has a list or section for the name of a key: give text")
            if key.value in seen:
                _refuse(key, f"gives {shortened(key.value)} a second time: leave one out")
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"  # a name is as it is written, if it is null or true
        return super().construct_mapping(node, deep)


def _refuse(where: yaml.Event | yaml.Node, problem: str) -> NoReturn:
    raise Refused(problem=problem, problem_mark=where.start_mark)


# No more than yaml.safe_dump puts in quotes, so that it writes what is read here.
for _tag, _pattern, _first in (
    ("null", "null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", rf"[-+]?(0|[1-9][0-9]{{0,{LONGEST_INTEGER}}})", list("-+0123456789")),
    (
        "float",
        r"[-+]?(0|[1-9][0-9]*)\.[0-9]*([eE][-+][0-9]+)?|\.[0-9]+([eE][-+][0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
    )

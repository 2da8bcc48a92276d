"""All commands under one name: `chns-jax train` is `python -m chns_jax.train`."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import chns_jax
from chns_jax.common.command_line import did_you_mean
from chns_jax.common.errors import UserError, run, shortened

NAME = "chns-jax"
COMMANDS = (
    "train", "evaluate", "calibrate", "compare", "study", "trials", "verify", "gallery", "embed",
    "segments", "page", "explore", "cluster", "convert", "export", "prepare", "rehearse", "bench",
)  # fmt: skip


def main() -> None:
    """Run the command that the command line names; list them when it names none."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv = [f"{NAME} {name}", *sys.argv[2:]]
        run(importlib.import_module(f"chns_jax.{name}").main)
    elif name == "--version":
        run(lambda argv: print(NAME, chns_jax.__version__))
    else:
        run(_list_commands)


def _list_commands(argv: list[str]) -> None:
    if argv and argv[0] not in ("-h", "--help"):
        hint = did_you_mean(argv[0], list(COMMANDS)) or f": {NAME} alone lists them"
        raise UserError(f"there is no command {shortened(argv[0])}{hint}")
    print(f"usage: {NAME} COMMAND ...\n\n--version prints its version; each command has --help:\n")
    for name in COMMANDS:
        print(f"  {name:<10} {_about(name)}")


def _about(name: str) -> str:
    """What a command's file says that it does, which is read and not imported."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    sentence = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
    return sentence.partition(": `")[0]


if __name__ == "__main__":
    main()

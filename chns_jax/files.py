"""Files that are complete or not there: written beside, then renamed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from chns_jax.errors import UserError

UNFINISHED = ".chns_jax-unfinished"  # no file of the user's ends so


@contextmanager
def replacing(path: Path | str, mode: str = "w") -> Iterator[IO]:
    """A file to write to, which takes the place of `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of two hosts that share the folder, the processes may have one number.
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{UNFINISHED}")
    # File names may hold bytes that are no UTF-8; they are written as they are.
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape"}
    try:
        with open(beside, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def check_file(path: Path | str) -> None:
    """Raises UserError when no file can be written to `path`; makes its folder."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path.parent} is not a folder: give another name") from None


def remove_leftovers(folder: Path) -> None:
    """Remove what `replacing` left in `folder` when it was killed."""
    for leftover in folder.glob(f".*{UNFINISHED}"):
        leftover.unlink(missing_ok=True)

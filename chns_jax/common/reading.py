"""What a command line names to be read: looked at before anything large is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from chns_jax.common.errors import UserError


def check_readable(path: Path | str, what: str) -> Path:
    """The path of a file, ~ expanded. Raises UserError when there is none, which says `what` it was
    to be; a pipe or a device might never end."""
    found = os.path.expanduser(path)
    if os.path.isdir(found):
        raise UserError(f"{path} is a folder: give {what}")
    try:
        os.lstat(found)
    except PermissionError as error:  # of a folder that may not be looked into
        raise UserError(f"{path} cannot be used: {error.strerror}: get the right to it") from error
    except (OSError, ValueError):  # a name that holds NUL
        raise UserError(f"{path} is not there: give {what}") from None
    if not os.path.exists(found):
        raise UserError(f"{path} is a link that leads nowhere: give {what}")
    if not os.path.isfile(found):
        raise UserError(f"{path} is no regular file: give {what}")
    return Path(found)


def check_link(path: Path, folder: Path) -> None:
    """Raises UserError when a file of a folder that anybody may have written is a link that leads
    elsewhere; those of huggingface_hub's cache lead to the blobs beside its snapshots."""
    real, inside = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    blobs = inside.parents[1] / "blobs" if inside.parent.name == "snapshots" else inside
    if not (real.is_relative_to(inside) or real.parent == blobs):
        raise UserError(f"{path} is a link that leads out of its folder: put the file there")


def read_text(path: Path | str, what: str) -> str:
    """The text in a file of UTF-8. Raises UserError as `check_readable`, and for other bytes."""
    try:
        return check_readable(path, what).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}: give {what}") from error
    except ValueError as error:
        raise UserError(f"{path} is not text in UTF-8: give {what}") from error

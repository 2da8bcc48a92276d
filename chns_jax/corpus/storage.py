"""Files to read, on this machine or behind an fsspec URL such as gs://bucket/folder."""

from __future__ import annotations

import os
from typing import Any

from chns_jax.common.errors import UserError


def is_url(path: str | os.PathLike) -> bool:
    return "://" in os.fspath(path)


def read(path: str, start: int = 0, end: int | None = None) -> bytes:
    """Bytes `start` to `end` - 1 of a file, fewer where it ends before. Raises OSError.

    Nothing stays open, and any number of threads may read at once.
    """
    if is_url(path):
        system, name = _file_system(path)
        try:
            return system.cat_file(name, start=start, end=end)
        except OSError:
            raise
        except Exception as error:  # every file system has exceptions of its own
            raise OSError(f"{type(error).__name__}: {error}") from error
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(-1 if end is None else end - start)


def sizes(folder: str) -> dict[str, int]:
    """Bytes of each file in a folder, by name; none where there is no folder.

    Raises UserError when a URL cannot be listed.
    """
    if is_url(folder):
        system, name = _file_system(folder)
        try:
            system.invalidate_cache(name)
            entries = system.ls(name, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except Exception as error:  # every file system has exceptions of its own
            said = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{folder} cannot be listed: {said}") from error
        files = [entry for entry in entries if entry["type"] == "file"]
        return {entry["name"].rpartition("/")[2]: entry["size"] for entry in files}
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if _is_file(entry)}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _is_file(entry: os.DirEntry) -> bool:
    """Whether it is a file or leads to one; False for a link to itself, of which `is_file` raises
    an error."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(
            f"{url} is a URL, which needs fsspec: pip install 'chns_jax[remote]'"
        ) from None
    try:
        return url_to_fs(url)
    except ImportError as error:  # its package is missing
        raise UserError(f"{url} cannot be read: {error}: pip install '.[remote]'") from error
    except ValueError as error:  # no such protocol
        raise UserError(f"{url} cannot be read: {error}") from error

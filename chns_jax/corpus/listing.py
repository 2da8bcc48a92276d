"""The audio files under a folder, in one order everywhere: by name, folder after folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from chns_jax.common.console import say
from chns_jax.common.errors import UserError
from chns_jax.corpus.audio import EXTENSIONS

DEEPEST = 100  # folders within each other


class File(NamedTuple):
    """An utterance that a root lists, before its file is opened."""

    speaker: str
    recording: str | None  # None: the file is a recording of its own
    name: str
    file: str  # relative to the root unless absolute
    size: int  # bytes
    time: int  # nanoseconds
    seconds: float | None = None  # known without opening the file


def audio_files(
    root: str, folder: str = "", listed: set[tuple[int, int]] | None = None
) -> Iterator[str]:
    """Paths relative to `root` of all audio files under its subfolder `folder`.

    Hidden ones are left out, and links to folders that they lie in, in which `root` lies, or that
    were `listed` (device and inode) are not followed. Raises UserError for more than DEEPEST
    folders within each other.
    """
    listed = set() if listed is None else listed
    listed.add(_identity(os.path.join(root, folder)))
    if folder.count("/") >= DEEPEST:
        raise UserError(f"{root} has more than {DEEPEST} folders within each other: move some out")
    with os.scandir(os.path.join(root, folder)) as entries:
        here = sorted(entries, key=lambda entry: entry.name)
    for entry in here:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            if entry.is_symlink() and _leads_up(root, path):
                say(f"{entry.path} leads to a folder that it lies in: it is not followed")
            elif entry.is_symlink() and _identity(entry.path) in listed:
                say(f"{entry.path} leads to a folder that was listed before: it is not followed")
            else:
                yield from audio_files(root, path, listed)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            yield path


def utterances(root: str) -> Iterator[File]:
    """Audio files at <root>/<speaker>/<utterance> and <root>/<speaker>/<recording>/<utterance>."""
    for path in audio_files(root):
        speaker, _, below = path.partition("/")
        if not below:  # beside the speakers' folders
            continue
        recording = path.rpartition("/")[0] if "/" in below else None
        size, time = size_and_time(os.path.join(root, path))
        yield File(speaker, recording, path, path, size, time)


def all_audio_files(root: str, key: str) -> list[str]:
    """Paths of all audio files under `root`. Raises UserError, naming the config's `key`, when it
    is no folder or holds none."""
    if not os.path.isdir(root):
        raise UserError(f"{key} {root} is not a folder: give a folder of audio files")
    found = [os.path.join(root, path) for path in audio_files(root)]
    if not found:
        raise UserError(f"{key} {root} holds no audio ({', '.join(sorted(EXTENSIONS))})")
    return found


def size_and_time(path: str) -> tuple[int, int]:
    """Bytes and nanoseconds; 0 for what is not there, as reading it will say."""
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0
    return stat.st_size, time_of(stat)


def time_of(stat: os.stat_result) -> int:
    """When a file was changed, in nanoseconds, no later than int64 holds: the year 2262."""
    return max(-(2**63), min(stat.st_mtime_ns, 2**63 - 1))


def _identity(folder: str) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # a link to itself


def _leads_up(root: str, link: str) -> bool:
    """Whether a link leads to a folder that it lies in, on the way from `root` or on the disk, so
    that following it would find everything again."""
    there = os.stat(os.path.join(root, link))
    parts = link.split("/")
    way = [Path(os.path.realpath(os.path.join(root, *parts[:i]))) for i in range(len(parts))]
    above = {folder for real in way for folder in (real, *real.parents)}
    return any(os.path.samestat(there, os.stat(folder)) for folder in above)

"""The audio files under a folder, in one order everywhere: by name, folder after folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from chns_jax.common.errors import UserError
from chns_jax.corpus.audio import EXTENSIONS


class File(NamedTuple):
    """An utterance that a root lists, before its file is opened."""

    speaker: str
    recording: str | None  # None: the file is a recording of its own
    name: str
    file: str  # relative to the root unless absolute
    size: int  # bytes
    time: int  # nanoseconds
    seconds: float | None = None  # known without opening the file


def audio_files(root: str, folder: str = "") -> Iterator[str]:
    """Paths relative to `root` of all audio files under its subfolder `folder`.

    Hidden ones are left out, and links to folders that they lie in are not followed.
    """
    with os.scandir(os.path.join(root, folder)) as entries:
        here = sorted(entries, key=lambda entry: entry.name)
    for entry in here:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if not (entry.is_symlink() and _leads_up(entry.path)):
                yield from audio_files(root, path)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            yield path


def utterances(root: str) -> Iterator[File]:
    """Audio files at <root>/<speaker>/<utterance> and <root>/<speaker>/<recording>/<utterance>."""
    for path in audio_files(root):
        speaker, _, below = path.partition("/")
        if not below:  # beside the speakers' folders
            continue
        recording = path.rpartition("/")[0] if "/" in below else None
        try:
            stat = os.stat(os.path.join(root, path))
            size, time = stat.st_size, stat.st_mtime_ns
        except FileNotFoundError:  # a link to nowhere: reading it will say so
            size, time = 0, 0
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


def _leads_up(link: str) -> bool:
    """Whether a link leads to a folder that it lies in, so that following it would never end."""
    here, there = (os.path.join(os.path.realpath(p), "") for p in (os.path.dirname(link), link))
    return here.startswith(there)

"""What a command line names: audio files, folders of them, and lists."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence

from chns_jax.common.errors import UserError, shortened
from chns_jax.common.reading import check_readable
from chns_jax.corpus import records
from chns_jax.corpus.audio import EXTENSIONS
from chns_jax.corpus.kaldi import read_wav_scp
from chns_jax.corpus.listing import audio_files

LISTS = (".txt", ".lst")


def utterances(inputs: Sequence[str]) -> dict[str, str]:
    """The path of each utterance's file, by its name, in order.

    An input is an audio file, named as it is given; a folder, whose audio files are named by their
    path in it; a Kaldi `wav.scp`, or a folder with one; or a text list of paths (.txt, .lst), named
    as they are written and relative to the list's folder. Files are not opened. Raises UserError
    for an input without utterances, for a list that cannot be read, for what is not there and could
    be a folder, and for two files of one name.
    """
    found: dict[str, str] = {}
    for given in inputs:
        named = list(_utterances(os.path.expanduser(given)))
        if not named:
            raise UserError(f"{given} holds no audio ({', '.join(sorted(EXTENSIONS))})")
        for name, path in named:
            if found.get(name, path) != path:
                raise UserError(
                    f"two utterances are called {name}, {found[name]} and {path}: embed them "
                    "to files of their own, or give a wav.scp, which names them"
                )
            found[name] = path
    return found


def _utterances(given: str) -> Iterator[tuple[str, str]]:
    extension = os.path.splitext(given)[1].lower()
    if os.path.isdir(given):
        scp = os.path.join(given, "wav.scp")
        if os.path.isfile(scp):
            yield from _utterances(scp)
        else:
            yield from ((name, os.path.join(given, name)) for name in audio_files(given))
    elif extension == ".scp":
        root, table = os.path.split(given)
        for name, path in read_wav_scp(root, table).items():
            yield name, os.path.join(root, path)
    elif extension in LISTS:
        file = check_readable(given, "a list of paths")
        text = file.read_bytes()
        if b"\0" in text:
            raise UserError(f"{given} is not text in UTF-8: give a list of paths")
        lines = io.TextIOWrapper(io.BytesIO(text), "utf-8-sig", "surrogateescape")
        for path in filter(None, map(str.strip, lines)):
            if not records.names_file(path):
                raise UserError(
                    f"{given} names {shortened(path)!r}, which is no file: leave it out"
                )
            yield path, os.path.join(os.path.dirname(given), path)
    elif extension not in EXTENSIONS and not os.path.exists(given):
        raise UserError(f"there is no file or folder {given}")
    else:
        yield given, given

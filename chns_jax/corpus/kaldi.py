"""Kaldi's data folders: `wav.scp`, `utt2spk` or `spk2utt`, and `utt2dur`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator

from chns_jax.common.errors import UserError, shortened
from chns_jax.common.reading import check_readable
from chns_jax.corpus import records
from chns_jax.corpus.audio import LONGEST_SECONDS
from chns_jax.corpus.listing import File, size_and_time


def utterances(root: str) -> Iterator[File]:
    """Utterances of a Kaldi data folder, sorted by speaker.

    Kaldi does not say which utterances are of one recording. Where an utterance's name is
    <speaker><separator><recording><separator><utterance>, as in VoxCeleb's recipe, the middle is
    taken for it; otherwise every utterance is a recording of its own.
    """
    if os.path.exists(os.path.join(root, "segments")):
        raise UserError(f"{root}/segments is not supported: cut the recordings into files first")
    paths = read_wav_scp(root, "wav.scp")
    speakers = _speakers(root)
    has_durations = os.path.isfile(os.path.join(root, "utt2dur"))
    durations = _kaldi_table(root, "utt2dur") if has_durations else {}
    files = []
    for name, path in paths.items():
        if name not in speakers:
            raise UserError(f"{root}/utt2spk does not name the speaker of {name}: add the line")
        speaker = speakers[name]
        middle = name.removeprefix(speaker).strip("-_/").replace("_", "-").replace("/", "-")
        recording = middle.rpartition("-")[0] if name.startswith(speaker) else ""
        size, time = size_and_time(os.path.join(root, path))
        seconds = _stated_seconds(root, name, durations[name]) if name in durations else None
        if size == 0:
            seconds = None  # no duration makes a missing or empty file usable
        files.append(File(speaker, recording or None, name, path, size, time, seconds))
    yield from sorted(files, key=lambda file: (file.speaker, file.recording or "", file.name))


def _speakers(root: str) -> dict[str, str]:
    """The speaker of each utterance. Raises UserError when none are named, or one is twice."""
    tables = [t for t in ("utt2spk", "spk2utt") if os.path.isfile(os.path.join(root, t))]
    if not tables:
        raise UserError(f"{root} has neither utt2spk nor spk2utt: add one, to name the speakers")
    speakers = _kaldi_table(root, "utt2spk") if "utt2spk" in tables else {}
    if "spk2utt" in tables:
        for speaker, names in _kaldi_table(root, "spk2utt").items():
            for name in names.split():
                if speakers.setdefault(name, speaker) != speaker:
                    raise UserError(
                        f"{root}/{' with '.join(tables)} has {name} as of {speakers[name]} and of "
                        f"{speaker}: leave one out"
                    )
    return speakers


def read_wav_scp(root: str, table: str) -> dict[str, str]:
    """The path of each utterance that a Kaldi `wav.scp` lists, as it is written.

    Raises UserError for a line without a path, with a command, or with a name that came before.
    """
    paths = _kaldi_table(root, table)
    for name, path in paths.items():
        if path.endswith("|"):
            raise UserError(
                f"{os.path.join(root, table)} reads {name} from a command, which is not "
                "supported: write its output to a file and list that"
            )
        if not records.names_file(path):
            raise UserError(
                f"{os.path.join(root, table)} has {shortened(path)!r} for {name}, which is no file"
            )
    return paths


def _stated_seconds(root: str, name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_SECONDS:
        raise UserError(
            f"{root}/utt2dur has no number of seconds for {name}: {shortened(text)} (above 0, a "
            "day at most)"
        )
    return seconds


def _kaldi_table(root: str, table: str) -> dict[str, str]:
    rows = {}
    path = os.path.join(root, table)
    file = check_readable(path, "a table of Kaldi's")
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            key, *values = re.split("[ \t]+", line.strip(), maxsplit=1)
            if not key:
                continue
            if not values:
                raise UserError(f"{path} line {number} has no second column: {shortened(line)}")
            if key in rows:
                raise UserError(f"{path} line {number} names {shortened(key)} again: leave one out")
            rows[key] = values[0]
    return rows

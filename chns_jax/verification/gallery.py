"""A gallery: a folder of enrolled speakers, one JSON file each."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.files import replacing

if TYPE_CHECKING:
    from chns_jax.verification.speaker_encoder import SpeakerEncoder, Voiceprint

UNKNOWN = "unknown"  # what nobody's voice is identified as
LONGEST_FILE_NAME = 200  # bytes; file systems hold 255
LARGEST_FILE = 1 << 20  # bytes; embeddings take some thousands


class Enrolled(NamedTuple):
    """A speaker of a gallery."""

    name: str
    recordings: int
    seconds: float
    embedding: list[float]  # L2-normalised
    made_by: dict[str, Any]  # checkpoint and segments


def enroll(folder: Path, name: str, recordings: list[str], encoder: SpeakerEncoder) -> Enrolled:
    """Add the speaker of some recordings under a name. Raises UserError for a name that is taken or
    cannot be one, and for what is no speech. Names that look alike, é in two forms, are one."""
    name = unicodedata.normalize("NFC", name)
    path = _file(folder, name)
    taken = UserError(f"{name} is enrolled in {folder} already: remove the name first")
    if path.exists():
        raise taken
    if len({os.path.realpath(path) for path in recordings}) < len(recordings):
        raise UserError("a recording is given twice: leave one out")
    if folder.is_dir():
        _check_made_by(read(folder), folder, encoder)
    voice = encoder.voiceprint(recordings)
    speaker = Enrolled(
        name, len(recordings), voice.seconds, voice.embedding.tolist(), _made_by(encoder)
    )
    try:
        with replacing(path, new=True) as file:
            json.dump(speaker._asdict(), file)
    except FileExistsError:  # by another program meanwhile
        raise taken from None
    return speaker


def read(folder: Path) -> list[Enrolled]:
    """The speakers of a gallery, by name. Raises UserError where there is no gallery, or a file of
    it is damaged."""
    if not folder.is_dir():
        raise UserError(f"there is no gallery {folder}: enroll someone, or give another folder")
    speakers = []
    for name in os.listdir(folder):
        path = folder / name
        if path.suffix != ".json" or name.startswith("."):  # that of an enrolment that was killed
            continue
        speaker = Enrolled(**_fields(path))
        try:
            if not _is_whole(speaker) or path != _file(folder, speaker.name):
                raise ValueError
        except (ValueError, TypeError, OverflowError, UserError) as error:
            raise _damaged(path) from error
        speakers.append(speaker)
    return sorted(speakers)


def voiceprints(folder: Path, encoder: SpeakerEncoder) -> dict[str, Voiceprint]:
    """The voice of each speaker of a gallery. Also raises UserError for a gallery of nobody, and
    for one of another model."""
    from chns_jax.verification.speaker_encoder import Voiceprint

    speakers = read(folder)
    if not speakers:
        raise UserError(f"nobody is enrolled in {folder}: enroll someone first")
    _check_made_by(speakers, folder, encoder)
    for speaker in speakers:
        if len(speaker.embedding) != encoder.model.config.encoder.embedding:
            raise _damaged(_file(folder, speaker.name))
    return {
        speaker.name: Voiceprint(np.array(speaker.embedding, np.float32), speaker.seconds)
        for speaker in speakers
    }


def remove(folder: Path, name: str) -> None:
    """Raises UserError for a name that is not enrolled, be there a file that others wrote."""
    path = _file(folder, name)
    if not path.exists():
        raise UserError(f"nobody is enrolled as {name} in {folder}: see gallery list")
    _fields(path)
    path.unlink()


def _fields(path: Path) -> dict[str, Any]:
    """What a file of a gallery says, whatever the values. Raises UserError for one that no
    gallery wrote, or that cannot be read."""
    try:
        is_file = path.is_file()
        if is_file and path.stat().st_size > LARGEST_FILE:
            raise ValueError
        fields = json.loads(path.read_text(encoding="utf-8")) if is_file else None
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(fields, dict) or fields.keys() != {*Enrolled._fields}:
        raise UserError(
            f"{path} is no enrolled speaker: give the folder of a gallery, which holds nothing else"
        )
    return fields


def _check_made_by(speakers: list[Enrolled], folder: Path, encoder: SpeakerEncoder) -> None:
    """Raises UserError when a speaker was enrolled by another encoder."""
    made_by = _made_by(encoder)
    for speaker in speakers:
        if speaker.made_by != made_by:
            raise UserError(
                f"{speaker.name} was enrolled in {folder} with another model, checkpoint or "
                "--segments of its calibration: remove and enroll everyone again, or give that one"
            )


def _is_whole(speaker: Enrolled) -> bool:
    """Whether its values are such as `enroll` makes them. Raises TypeError or OverflowError for
    some that are not."""
    return (
        isinstance(speaker.name, str)
        and isinstance(speaker.recordings, int)
        and speaker.recordings > 0
        and isinstance(speaker.seconds, int | float)
        and 0 < speaker.seconds < math.inf
        and isinstance(speaker.embedding, list)
        and all(isinstance(x, int | float) for x in speaker.embedding)
        and abs(math.hypot(*speaker.embedding) - 1) < 1e-3  # not of zeros, nor of NaN
    )


def _file(folder: Path, name: str) -> Path:
    """Where a speaker is kept. Raises UserError for what is no name."""
    name = unicodedata.normalize("NFC", name)
    if not name.isprintable() or name != name.strip() or name in ("", UNKNOWN):
        raise UserError(
            f"{name!r} cannot be a speaker's name: it must be printable, without spaces around it, "
            f"and not {UNKNOWN!r}"
        )
    encoded = quote(name, safe=" ").replace(".", "%2E")
    if len(encoded) > LONGEST_FILE_NAME:
        raise UserError(f"the name {name[:40]}... is too long for a file: give a shorter one")
    return folder / f"{encoded}.json"


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged: remove the file, and enroll the speaker again")


def _made_by(encoder: SpeakerEncoder) -> dict[str, Any]:
    return {"checkpoint": encoder.checkpoint, "segments": encoder.segments}

"""What a table of speakers says about them: genders, or any column."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from chns_jax.common.errors import UserError, shortened
from chns_jax.common.reading import read_text

SPEAKER = re.compile(r"speaker|(?<![a-z])id(?![a-z])", re.IGNORECASE)
GENDER = re.compile(r"gender", re.IGNORECASE)


def read_genders(path: Path | str) -> dict[str, str]:
    """ "f" or "m" of each speaker of a table that says one of them.

    The table has commas or tabs between its columns, and in its first line their names: the first
    with "speaker" or "id" in it holds the speakers, as in VoxCeleb's vox1_meta.csv, and that with
    "gender" words that begin with f or m. Raises UserError when it has no such columns, or two of
    one name.
    """
    head, rows = _read(path)
    gender = next((i for i, name in enumerate(head) if GENDER.search(name)), None)
    speaker = _speaker_column(head)
    if speaker is None or gender is None:
        raise UserError(
            f"the first line of the metadata {path} names no column of speakers (speaker or id) "
            "and one of genders (gender): add the names of its columns"
        )
    said = [
        (number, row[speaker], row[gender][:1].lower())
        for number, row in rows
        if len(row) > max(speaker, gender)
    ]
    return _of_speakers(path, [line for line in said if line[1] and line[2] in ("f", "m")])


def read_column(path: Path | str, column: str) -> dict[str, str]:
    """What stands in a column, whose name may be in any case, of each speaker who has a value.

    The table is as of `read_genders`. Raises UserError when it has no such column.
    """
    head, rows = _read(path)
    speaker = _speaker_column(head)
    place = next((i for i, name in enumerate(head) if name.lower() == column.lower()), None)
    if speaker is None or place is None:
        missing = "of speakers (speaker or id)" if speaker is None else column
        raise UserError(
            f"the first line of the metadata {path} names no column {missing}: it names "
            f"{', '.join(head) or 'none'}"
        )
    said = [
        (number, row[speaker], row[place]) for number, row in rows if len(row) > max(speaker, place)
    ]
    return _of_speakers(path, [line for line in said if line[1] and line[2]])


def _of_speakers(path: Path | str, said: list[tuple[int, str, str]]) -> dict[str, str]:
    """What lines, of a number, a speaker and a value, say of each speaker. Raises UserError when
    two of them say different things."""
    values: dict[str, str] = {}
    for number, speaker, value in said:
        if values.setdefault(speaker, value) != value:
            raise UserError(
                f"{path} line {number} says {shortened(value)} of {shortened(speaker)}, of whom a "
                f"line before says {shortened(values[speaker])}: leave one out"
            )
    return values


def _read(path: Path | str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of a table's columns, and its rows with the numbers of their lines."""
    text = read_text(path, "a table of speakers, with the names of its columns first")
    lines = text.split("\n")  # what else Unicode ends lines with is part of a value
    separator = "\t" if lines and "\t" in lines[0] else ","
    try:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        ends = "unexpected end" in str(error)
        why = "a quote in it is not closed" if ends else str(error)
        raise UserError(f"the metadata {path} cannot be read: {why}") from error
    if not rows:
        return [], []
    names = [name.lower() for name in rows[0][1] if name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the metadata {path} has two columns {shortened(twice)}: leave one out")
    return rows[0][1], rows[1:]


def _speaker_column(head: list[str]) -> int | None:
    return next((i for i, name in enumerate(head) if SPEAKER.search(name)), None)

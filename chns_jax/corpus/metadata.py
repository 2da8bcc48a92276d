"""What a corpus's table of speakers says about them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from chns_jax.common.errors import UserError
from chns_jax.common.reading import read_text

SPEAKER = re.compile(r"speaker|(?<![a-z])id(?![a-z])", re.IGNORECASE)
GENDER = re.compile(r"gender", re.IGNORECASE)


def read_genders(path: Path | str) -> dict[str, str]:
    """ "f" or "m" of each speaker of a table that says one of them.

    The table has commas or tabs between its columns, and in its first line their names: the first
    with "speaker" or "id" in it holds the speakers, as in VoxCeleb's vox1_meta.csv, and that with
    "gender" words that begin with f or m. Raises UserError when it has no such columns.
    """
    text = read_text(path, "a table of speakers and genders")
    lines = text.splitlines()
    separator = "\t" if lines and "\t" in lines[0] else ","
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    except csv.Error as error:
        raise UserError(f"the metadata {path} cannot be read: {error}") from error
    head = rows[0] if rows else []
    speaker, gender = (
        next((i for i, name in enumerate(head) if wanted.search(name)), None)
        for wanted in (SPEAKER, GENDER)
    )
    if speaker is None or gender is None:
        raise UserError(
            f"the first line of the metadata {path} names no column of speakers (speaker or id) "
            "and one of genders (gender): add the names of its columns"
        )
    genders = {}
    for row in rows[1:]:
        if len(row) > max(speaker, gender) and row[gender][:1].lower() in ("f", "m"):
            genders[row[speaker]] = row[gender][0].lower()
    return genders

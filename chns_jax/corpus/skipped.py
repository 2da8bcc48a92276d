"""Files that could not be used: skipped, counted, listed, and no more than 1 % of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from chns_jax.common.errors import UserError
from chns_jax.common.files import replacing
from chns_jax.corpus.audio import AudioError, exists

MAX_SHARE = 0.01


def write(path: Path, why: Mapping[str, str]) -> None:
    """List files, given what is wrong with each; where there are none, there is no list."""
    if not why:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as file:
        file.writelines(_lines(why))


class Skipped:
    """The list of a run, kept in `path`: lines of a file, a tab, and what is wrong with it."""

    def __init__(self, path: Path, files: int, check: Callable[[str], None]):
        """`files` is how many there are; those that an earlier start listed are checked again."""
        self.path, self.files = path, files
        self.why: dict[str, str] = {}
        if not path.exists():
            return
        with _open(path, "r") as file:
            lines = file.read().split("\n")[:-1]  # what no end of line follows was cut off
        for listed in (line.partition("\t")[0] for line in lines):
            try:
                check(listed)
            except AudioError as error:
                if exists(listed):
                    self.why[listed] = error.why
        write(path, self.why)

    def record(self, broken: Mapping[str, str]) -> None:
        """List files, given what is wrong with each."""
        new = {name: broken[name] for name in broken.keys() - self.why.keys()}
        if new:
            with _open(self.path, "a") as file:
                file.writelines(_lines(new))
            self.why.update(new)

    def limit(self) -> None:
        """Raises UserError when more than 1 % of all files are broken."""
        if len(self.why) > MAX_SHARE * self.files:
            name, why = min(self.why.items())
            raise UserError(
                f"{len(self.why)} of {self.files} files cannot be used, more than {MAX_SHARE:.0%}: "
                f"repair or remove those that {self.path} lists (chns_jax.prepare --verify checks "
                f"shards), such as {name}, which {why}"
            )


def _open(path: Path, mode: str) -> IO[str]:
    """File names may hold bytes that are no UTF-8, and whatever else ends lines than "\\n"."""
    return open(path, mode, encoding="utf-8", errors="surrogateescape", newline="\n")


def _lines(why: Mapping[str, str]) -> list[str]:
    return [f"{name}\t{wrong}\n" for name, wrong in sorted(why.items())]

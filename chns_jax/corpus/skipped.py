"""Files that could not be used: skipped, counted, listed, and no more than 1 % of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from chns_jax.errors import UserError
from chns_jax.files import replacing

MAX_SHARE = 0.01


class Skipped:
    """The list of a run, kept in `path`, one sentence a file; an earlier start's list goes on."""

    def __init__(self, path: Path, files: int):
        self.path, self.files = path, files
        self.reasons = (
            set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
        )

    def add(self, reasons: Iterable[str]) -> None:
        """List what is new. Raises UserError when more than 1 % of all files are broken."""
        new = set(reasons) - self.reasons
        if new:
            self.reasons |= new
            with replacing(self.path) as file:
                file.writelines(f"{reason}\n" for reason in sorted(self.reasons))
        if len(self.reasons) > MAX_SHARE * self.files:
            raise UserError(
                f"{len(self.reasons)} of {self.files} files cannot be used, more than "
                f"{MAX_SHARE:.0%}: repair or remove those that {self.path} lists, "
                f"such as: {min(self.reasons)}"
            )

"""Lines on standard error that do not tear a progress bar."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from chns_jax.common.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

_speaks = True


def say(sentence: str) -> None:
    """A line on standard error, unless another process of the run says it."""
    if _speaks:
        load_tqdm().write(sentence, file=sys.stderr)


def be_silent() -> None:
    """Let `say` and progress bars say nothing in this process from now on."""
    global _speaks
    _speaks = False


def is_silent() -> bool:
    return not _speaks


def load_tqdm() -> type[tqdm]:
    """The class of bars. Raises UserError for a default of the environment that it cannot read,
    which it does when it is imported: not before a command can say so."""
    try:
        from tqdm import tqdm
    except ValueError as error:
        names = ", ".join(sorted(name for name in os.environ if name.startswith("TQDM_")))
        raise UserError(
            f"{names} in the environment: {error}: give a number, or unset it"
        ) from error
    return tqdm

"""Lines on standard error that do not tear a progress bar."""

from __future__ import annotations

import sys

from chns_jax.common.progress import tqdm

_speaks = True


def say(sentence: str) -> None:
    """A line on standard error, unless another process of the run says it."""
    if _speaks:
        tqdm.write(sentence, file=sys.stderr)


def be_silent() -> None:
    """Let `say` say nothing in this process from now on."""
    global _speaks
    _speaks = False

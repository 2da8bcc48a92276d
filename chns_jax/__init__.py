"""Clustering-based hard negative sampling (CHNS) for speaker verification."""

import os
import signal
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

from chns_jax.devices.xla_flags import avoid_wrong_sums

if TYPE_CHECKING:
    from chns_jax.verification.speaker_encoder import SpeakerEncoder


def _is_command() -> bool:
    """Whether this is imported to run a command of the package, by chns-jax or by python -m, which
    calls itself -m while it looks for the module."""
    started = os.path.basename(sys.argv[0]) if sys.argv else ""
    if started != "-m":
        return started == "chns-jax"
    module = next((after for word, after in pairwise(sys.orig_argv) if word == "-m"), "")
    return module.partition(".")[0] == __name__


# Until `errors.run` is there to say so, Ctrl-C ends a command, without a traceback of imports.
if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"
__all__ = ["SpeakerEncoder"]

avoid_wrong_sums()


def __getattr__(name: str):
    """`from chns_jax import SpeakerEncoder` imports JAX; `import chns_jax` does not."""
    if name == "SpeakerEncoder":
        from chns_jax.verification.speaker_encoder import SpeakerEncoder

        return SpeakerEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Clustering-based hard negative sampling (CHNS) for speaker verification."""

from chns_jax.common import interrupt  # noqa: I001 - first of all
from typing import TYPE_CHECKING

from chns_jax.devices.huge_pages import ask_for_huge_pages
from chns_jax.devices.xla_flags import avoid_wrong_sums

if TYPE_CHECKING:
    from chns_jax.verification.speaker_encoder import SpeakerEncoder

__version__ = "0.1.0"
__all__ = ["SpeakerEncoder"]

if interrupt.is_command():
    ask_for_huge_pages()
avoid_wrong_sums()


def __getattr__(name: str):
    """`from chns_jax import SpeakerEncoder` imports JAX; `import chns_jax` does not."""
    if name == "SpeakerEncoder":
        from chns_jax.verification.speaker_encoder import SpeakerEncoder

        return SpeakerEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

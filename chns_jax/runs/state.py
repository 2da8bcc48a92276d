"""What training changes, and its digest."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import optax
from flax import struct, traverse_util
from jaxtyping import Array, Int


@struct.dataclass
class TrainState:
    """All that changes from step to step."""

    # Updates made; maps over the tree put shapes, shardings and NumPy arrays in its place.
    step: Int[Array, ""] | Any
    variables: dict[str, Any]  # {"params": {"encoder", "loss"}, "batch_stats"}
    optimizer: optax.OptState
    average: dict[str, Any] | None = None  # of the variables; None where the config asks for none

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables with which all but training embeds."""
        return self.variables if self.average is None else self.average


def digest(tree: Any) -> str:
    """sha256 of the names, types, shapes and bytes of a tree's arrays, whatever it is made of."""
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    found = hashlib.sha256()
    for name, value in sorted(jax.device_get(arrays).items()):
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(value.tobytes())
    return found.hexdigest()


def sha256(variables: dict[str, Any]) -> str:
    """Digest of the bytes of all parameters and batch statistics, in sorted order of their keys."""
    digest = hashlib.sha256()
    for _, value in sorted(traverse_util.flatten_dict(variables, sep="/").items()):
        digest.update(jax.device_get(value).tobytes())
    return digest.hexdigest()

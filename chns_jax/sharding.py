"""The mesh of devices, and the two ways in which arrays lie on it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from chns_jax.errors import UserError

AXIS = "data"  # of the mesh, over which the rows of a batch are split


def make_mesh(devices: int | None = None) -> Mesh:
    """A one-axis mesh of the first `devices` devices, or of all. Raises UserError for too many."""
    found = jax.devices()
    if devices is not None and devices > len(found):
        raise UserError(f"training.devices is {devices}, but JAX finds {len(found)}: lower it")
    chosen = found[:devices]
    return jax.make_mesh((len(chosen),), (AXIS,), (AxisType.Auto,), devices=chosen)


def split(mesh: Mesh) -> NamedSharding:
    """Rows of a batch divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(mesh: Mesh, rows: Any) -> Any:
    """This host's rows, an array or a tree of them, as part of arrays split over the mesh."""
    return jax.tree.map(partial(jax.make_array_from_process_local_data, split(mesh)), rows)


def check_divides(mesh: Mesh, speakers: int, micro_batch: int | None = None) -> None:
    """Raises UserError when the rows of a batch of `speakers`, or those of a micro-batch, cannot be
    split evenly."""
    if (2 * speakers) % mesh.size:
        raise UserError(
            f"sampler.speakers {speakers} makes {2 * speakers} rows, which {mesh.size} devices "
            "cannot share evenly: change it, or set training.devices"
        )
    if micro_batch is not None and micro_batch % mesh.size:
        raise UserError(
            f"training.micro_batch {micro_batch} is no multiple of the {mesh.size} devices that "
            "share it: change it, or set training.devices"
        )

"""The mesh of devices, and the two ways in which arrays lie on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from chns_jax.common.errors import UserError

AXIS = "data"  # of the mesh, over which the rows of a batch are split


def make_mesh(devices: int | None = None) -> Mesh:
    """A one-axis mesh of the first `devices` devices, or of all. Raises UserError for too many."""
    found = jax.devices()
    if devices is not None and devices > len(found):
        raise UserError(f"training.devices is {devices}, but JAX finds {len(found)}: lower it")
    chosen = found[:devices]
    if len(chosen) < len(found) and jax.process_count() > 1:
        raise UserError(
            f"training.devices is {devices}, but {jax.process_count()} hosts have {len(found)}, "
            "all of which are used: leave it out"
        )
    return jax.make_mesh((len(chosen),), (AXIS,), (AxisType.Auto,), devices=chosen)


def split(mesh: Mesh) -> NamedSharding:
    """Rows of a batch divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def held(mesh: Mesh, rows: int) -> np.ndarray:
    """Which of so many rows, split over the mesh, the devices of this host hold, ascending."""
    slices = split(mesh).addressable_devices_indices_map((rows,)).values()
    return np.sort(np.concatenate([np.arange(rows)[of_device] for of_device in slices]))


def put(mesh: Mesh, rows: Any) -> Any:
    """The rows that this host's devices hold, an array or a tree of them, as part of arrays split
    over the mesh."""
    return jax.tree.map(partial(jax.make_array_from_process_local_data, split(mesh)), rows)


def for_own_rows(function: Callable, mesh: Mesh | None) -> Callable:
    """function(rows, *others), which each device of the mesh calls for the rows that it holds.

    `rows` and the result are trees of arrays split over the mesh; a row's result must not depend on
    other rows. Left to itself, XLA gathers all rows on all devices for what it does not divide, a
    Fourier transform above all.
    """
    if mesh is None or mesh.size == 1:
        return function

    def call(rows, *others):
        specs = (PartitionSpec(AXIS), *(PartitionSpec() for _ in others))
        own = jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False
        )
        return own(rows, *others)

    return call


def check_divides(mesh: Mesh, speakers: int, micro_batch: int | None = None) -> None:
    """Raises UserError when the rows of a batch of `speakers`, or those of a micro-batch, cannot be
    split evenly."""
    of_hosts = f"of {jax.process_count()} hosts " if jax.process_count() > 1 else ""
    if (2 * speakers) % mesh.size:
        raise UserError(
            f"sampler.speakers {speakers} makes {2 * speakers} rows, which {mesh.size} devices "
            f"{of_hosts}cannot share evenly: change it, or set training.devices"
        )
    if micro_batch is not None and micro_batch % mesh.size:
        raise UserError(
            f"training.micro_batch {micro_batch} is no multiple of the {mesh.size} devices that "
            "share it: change it, or set training.devices"
        )

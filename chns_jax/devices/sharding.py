"""The mesh of devices, and the two ways in which arrays lie on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from chns_jax.common.errors import UserError

AXIS = "data"  # of the mesh, over which the rows of a batch are split


def find_devices() -> list[Any]:
    """All devices that JAX may use. Raises UserError where it finds none."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter without the plugin of a GPU
        asked, why = jax.config.values["jax_platforms"], str(error).partition("\n")[0]
        raise UserError(
            f"JAX finds no device for JAX_PLATFORMS={asked}: set it to cpu or leave it out"
            f"{f' ({why})' if why else ''}"
        ) from error


def make_mesh(devices: int | None = None) -> Mesh:
    """A one-axis mesh of the first `devices` devices, or of all. Raises UserError for too many."""
    found = find_devices()
    if devices is not None and devices > len(found):
        raise UserError(f"training.devices is {devices}, but JAX finds {len(found)}: lower it")
    chosen = found[:devices]
    if len(chosen) < len(found) and jax.process_count() > 1:
        raise UserError(
            f"training.devices is {devices}, but {jax.process_count()} hosts have {len(found)}, "
            "all of which are used: leave it out"
        )
    return jax.make_mesh((len(chosen),), (AXIS,), (AxisType.Auto,), devices=chosen)


def by_rows(mesh: Mesh) -> NamedSharding:
    """Rows of a batch divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Arrays, of which every process has the same, on every device."""
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(replicated(mesh), np.asarray(array)),
        tree,
    )


def on_cpu() -> AbstractContextManager:
    """Where arrays are made on the CPU, so that they are the same on every platform; on the default
    device where JAX_PLATFORMS leaves the CPU out."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()


def held(mesh: Mesh, rows: int) -> np.ndarray:
    """Which of so many rows, split over the mesh, the devices of this host hold, ascending."""
    slices = by_rows(mesh).addressable_devices_indices_map((rows,)).values()
    return np.sort(np.concatenate([np.arange(rows)[of_device] for of_device in slices]))


def put(mesh: Mesh, rows: Any, count: int | None = None) -> Any:
    """The rows that this process's devices hold, an array or a tree of them, as part of arrays
    split over the mesh; filled up with zeros to `count` rows."""

    def place(array):
        missing = 0 if count is None else count - len(array)
        if missing:
            array = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        return jax.make_array_from_process_local_data(by_rows(mesh), array)

    return jax.tree.map(place, rows)


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


def padded_rows(mesh: Mesh, rows: int, micro_batch: int | None = None) -> int:
    """Rows of a batch of `rows`, filled up so that all devices hold equally many of each
    micro-batch."""
    micro_batch = micro_batch or rows
    return rows // micro_batch * math.ceil(micro_batch / mesh.size) * mesh.size

"""The contrastive loss: blockwise against dense, in time and in memory."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from chns_jax.benchmarks import measure
from chns_jax.benchmarks.measure import Row, Sizes, alternate, below, child, device_gb, faster
from chns_jax.training.losses import BLOCK, normalise, supcon

WIDTH = 192
LEAST_SPEED = 0.95  # of the dense loss: no slower, within what two equal functions differ by
MOST_GB = 1.5


def losses(sizes: Sizes) -> Iterator[Row]:
    """SupCon, value and gradient."""
    rows = sizes.loss_rows
    seconds = alternate(
        {"blockwise": _step(rows, BLOCK), "dense": _step(rows, None)}, sizes.repeats
    )
    what = f"SupCon and its gradient, {rows:,} x {WIDTH}, {BLOCK} anchors at a time"
    yield faster(what, seconds["blockwise"], "dense", seconds["dense"], LEAST_SPEED)
    ours, theirs = peak_gb(rows, BLOCK), peak_gb(rows, None)
    yield Row(f"peak memory, {rows:,} rows", ours, "GB", "dense", theirs, theirs / ours)
    most = sizes.most_loss_rows
    yield below(f"peak memory, {most:,} rows", peak_gb(most, BLOCK), "GB", MOST_GB)


def peak_gb(rows: int, block: int | None) -> float:
    """Peak memory of a process that computes the loss of so many rows and its gradient: its
    resident memory on a CPU, else what it took of the device's."""
    call = f"from chns_jax.benchmarks.contrast import report; report({rows}, {block})"
    return float(child(call))


def report(rows: int, block: int | None) -> None:
    """Compute the loss once; print this process's peak memory in GB."""
    _step(rows, block)()
    on_device = device_gb()
    print(measure.peak_gb() if on_device is None else on_device)


def _step(rows: int, block: int | None):
    z = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32)
    z, labels = normalise(jnp.asarray(z)), jnp.asarray(np.tile(np.arange(rows // 2), 2))
    compute = jax.jit(
        jax.value_and_grad(lambda z, tau: supcon(z, labels, tau, block=block), argnums=(0, 1))
    )
    return lambda: jax.block_until_ready(compute(z, 0.1))

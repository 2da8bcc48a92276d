"""Batches larger than memory: rows are embedded in micro-batches, and embedded again for gradients.

Gradient caching (Gao et al. 2021, arXiv 2101.06983): a contrastive loss needs the embeddings of
all rows, but the activations of few of them at a time. One pass keeps embeddings only; the loss
gives its gradient by them; a second pass makes the activations of one micro-batch after another
and takes the gradient on to the parameters. `jax.checkpoint` in `lax.scan` is these two passes.
The gradient is exact; the price is one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def embed_in_micro_batches(
    embed: Callable[[Any], tuple[Any, Any]], batch: Any, *, rows: int, micro_batch: int
) -> tuple[Any, Any]:
    """What `embed(batch) -> (moments, outputs)` makes of a batch of `rows` rows, an array or a tree
    of them, `micro_batch` rows at a time: the moments of all micro-batches, stacked, and the
    outputs in the order of the batch's rows.

    Of n micro-batches, the one numbered i holds rows i, i + n, i + 2 n, ...: with rows split over
    devices, each holds an equal part of every micro-batch, as long as micro_batch is a multiple of
    their number, and no row changes its device. `embed` normalises by the statistics of its
    micro-batch ("ghost" batch normalisation, Hoffer et al. 2017, arXiv 1705.08741).
    """
    count = rows // micro_batch

    def divide(x):
        return x.reshape(micro_batch, count, *x.shape[1:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(rows, *x.shape[2:])

    # In a scan, the two passes are two loops, which are not merged: no need to prevent it.
    twice = jax.checkpoint(lambda none, batch: (none, embed(batch)), prevent_cse=False)
    _, (moments, outputs) = jax.lax.scan(twice, None, jax.tree.map(divide, batch))
    return moments, jax.tree.map(join, outputs)

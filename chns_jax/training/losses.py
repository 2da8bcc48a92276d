"""Losses: pure functions of embeddings, float32 whatever comes in.

The contrastive ones compare every row with every other. They do so for a block of anchors at a
time, and every device for the anchors that it holds, so that memory grows with the number of rows
and not with its square; value and gradient are those of the dense computation, `block=None`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from chns_jax.config import Loss
from chns_jax.devices.sharding import AXIS

BLOCK = 512  # anchors at a time
EXACT = jax.lax.Precision.HIGHEST


def init_params(loss: Loss, key: jax.Array, *, embedding: int, classes: int) -> dict[str, Array]:
    """What the loss itself learns: log_temperature, or the (classes, embedding) weight of
    AAM-Softmax, uniform as Glorot's; empty for a fixed temperature."""
    if loss.kind == "aam_softmax":
        return {"weight": jax.nn.initializers.glorot_uniform()(key, (classes, embedding))}
    if not loss.learn_temperature:
        return {}
    return {"log_temperature": jnp.float32(math.log(loss.temperature - loss.min_temperature))}


def temperature(params: dict[str, Array], loss: Loss) -> Float[Array, ""]:
    """The temperature: learned as the logarithm of what it exceeds its lower bound by."""
    if not loss.learn_temperature:
        return jnp.float32(loss.temperature)
    return loss.min_temperature + jnp.exp(params["log_temperature"])


def training_loss(
    embeddings: Float[Array, "rows d"],
    labels: Int[Array, " rows"],
    params: dict[str, Array],
    loss: Loss,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The loss that the config names, and {"z"}, the L2-normalised embeddings, with the
    {"temperature"} if there is one. `params` as of `init_params`."""
    z = normalise(embeddings)
    if loss.kind == "aam_softmax":
        weight, margin, scale = params["weight"], loss.aam_margin, loss.aam_scale
        return aam_softmax(z, weight, labels, margin=margin, scale=scale), {"z": z}
    tau = temperature(params, loss)
    if loss.kind == "hscl":
        value = hscl(z, labels, tau, beta=loss.beta, mesh=mesh)
    elif loss.kind == "nt_xent":
        value = nt_xent(z, tau, margin=loss.margin, mesh=mesh)
    else:
        value = supcon(z, labels, tau, margin=loss.margin, mesh=mesh)
    return value, {"z": z, "temperature": tau}


def supcon(
    z: Float[Array, "rows d"],
    labels: Int[Array, " rows"],
    temperature: Float[Array, ""] | float,
    *,
    margin: float = 0.0,
    block: int | None = BLOCK,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Supervised contrastive loss, L_out of Khosla et al. 2020 (arXiv 2004.11362, equation 2).

    The mean over anchors i of the mean over positives p (same label, not i) of
    -log(exp(z_i.z_p / tau) / sum over a != i of exp(z_i.z_a / tau)).

    `z` are L2-normalised embeddings, the two views stacked [a; b], which are 2b rows, so that rows
    i and i + b are twins; `margin` is subtracted from the cosine of an anchor and its twin. Every
    row needs a positive, which its twin always is. `block` anchors are compared at a time, all when
    it is None; with a `mesh`, over which the rows are split, every device compares its own. Returns
    a float32 scalar.
    """
    anchor_losses = partial(_supcon_of_anchors, margin=margin)
    return _mean_over_anchors(anchor_losses, z, labels, temperature, block, mesh)


def nt_xent(
    z: Float[Array, "rows d"],
    temperature: Float[Array, ""] | float,
    *,
    margin: float = 0.0,
    block: int | None = BLOCK,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """SimCLR's loss (Chen et al. 2020): SupCon whose only positive is the twin."""
    utterance = jnp.arange(z.shape[0]) % (z.shape[0] // 2)
    return supcon(z, utterance, temperature, margin=margin, block=block, mesh=mesh)


def hscl(
    z: Float[Array, "rows d"],
    labels: Int[Array, " rows"],
    temperature: Float[Array, ""] | float,
    *,
    beta: float,
    block: int | None = BLOCK,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Supervised contrastive loss with hard negatives weighed by the loss (Jiang et al. 2022).

    With the similarity s_ia = exp(2 z_i.z_a / tau), the mean over anchors i of
    -log(s_ip / (s_ip + sum over negatives a of w_ia s_ia)), where p is the twin of i, a runs over
    the other speakers' rows, and w_ia, without gradient, is s_ia ** beta times 2b - 2 over its sum
    over a. The doubled cosine and 2b - 2 are the authors'; here all is in logarithms, so that it is
    finite for every temperature. Arguments as of `supcon`; two speakers at the least.
    """
    anchor_losses = partial(_hscl_of_anchors, beta=beta)
    return _mean_over_anchors(anchor_losses, z, labels, temperature, block, mesh)


def aam_softmax(
    embeddings: Float[Array, "b d"],
    weight: Float[Array, "n d"],
    labels: Int[Array, " b"],
    *,
    margin: float,
    scale: float,
) -> Float[Array, ""]:
    """Additive angular margin softmax (Deng et al. 2019, arXiv 1801.07698), SpeechBrain's wiring.

    Cross-entropy of `scale` times the cosines of embeddings and class weights, where the angle to
    the own class is first widened by `margin` (radians); angles above pi - margin lose
    margin * sin(margin) of their cosine instead, so that the loss falls everywhere. Both arguments
    are normalised here. Returns a float32 scalar.
    """
    cosine = jnp.matmul(normalise(embeddings), normalise(weight).T, precision=EXACT)
    own = jnp.take_along_axis(cosine, labels[:, None], axis=1)
    sine = jnp.sqrt(jnp.maximum(1.0 - jnp.square(own), 1e-12))  # a finite slope at the poles
    widened = own * math.cos(margin) - sine * math.sin(margin)
    widened = jnp.where(own > -math.cos(margin), widened, own - margin * math.sin(margin))
    is_own = jnp.arange(weight.shape[0]) == labels[:, None]
    logits = scale * jnp.where(is_own, widened, cosine)
    return (jax.nn.logsumexp(logits, axis=1) - scale * widened[:, 0]).mean()


def normalise(embeddings: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Rows divided by their L2 norm, in float32; the gradient at a zero row is finite."""
    embeddings = embeddings.astype(jnp.float32)
    square = jnp.square(embeddings).sum(axis=-1, keepdims=True)
    return embeddings * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


# The loss of each of m anchors, which are rows `row_m` of z, against all of z.


def _supcon_of_anchors(anchors_mxd, row_m, z, labels, temperature, *, margin: float):
    cosine, itself, twin = _cosines(anchors_mxd, row_m, z)
    logits = (cosine - margin * twin) / temperature
    log_normaliser = jax.nn.logsumexp(jnp.where(itself, -jnp.inf, logits), axis=1)
    positive = (labels[row_m][:, None] == labels[None, :]) & ~itself
    mean_positive = jnp.where(positive, logits, 0.0).sum(axis=1) / positive.sum(axis=1)
    return log_normaliser - mean_positive


def _hscl_of_anchors(anchors_mxd, row_m, z, labels, temperature, *, beta: float):
    cosine, _, twin = _cosines(anchors_mxd, row_m, z)
    log_s = 2 * cosine / temperature
    negative = labels[row_m][:, None] != labels[None, :]
    hardness = beta * jax.lax.stop_gradient(log_s)
    total = jax.nn.logsumexp(hardness, axis=1, keepdims=True, where=negative)
    log_weight = hardness - total + jnp.log(z.shape[0] - 2.0)
    log_negatives = jax.nn.logsumexp(log_s + log_weight, axis=1, where=negative)
    log_positive = jnp.where(twin, log_s, 0.0).sum(axis=1)
    return jax.nn.softplus(log_negatives - log_positive)


def _cosines(anchors_mxd, row_m, z):
    """Cosines (m, 2b) of anchors and all rows, and where an anchor meets itself and its twin."""
    rows = z.shape[0]
    cosine = jnp.matmul(anchors_mxd, z.T, precision=EXACT)
    itself = row_m[:, None] == jnp.arange(rows)
    twin = (row_m[:, None] + rows // 2) % rows == jnp.arange(rows)
    return cosine, itself, twin


# A mean over anchors whose gradient is taken block by block, while the block is at hand: reverse
# mode would keep every block's cosines, or compute them twice.


def _mean_over_anchors(anchor_losses: Callable, z, labels, temperature, block, mesh):
    z, temperature = jnp.asarray(z, jnp.float32), jnp.asarray(temperature, jnp.float32)
    return _mean(anchor_losses, block, mesh, z, jnp.asarray(labels), temperature)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _mean(anchor_losses, block, mesh, z, labels, temperature):
    return _mean_and_gradients(anchor_losses, block, mesh, z, labels, temperature)[0]


def _mean_and_gradients(anchor_losses, block, mesh, z, labels, temperature):
    """The mean, and its gradients by z and temperature."""
    rows = z.shape[0]

    def of_device(mine, labels, temperature):
        """Sums over the anchors of one device, `mine`, which are consecutive rows of z."""
        everyone, first = mine, 0
        if mesh is not None:
            everyone = jax.lax.all_gather(mine, AXIS, tiled=True)
            first = jax.lax.axis_index(AXIS) * len(mine)
        value, by_anchor, by_everyone, by_temperature = _sums(
            anchor_losses, block, mine, first, everyone, labels, temperature
        )
        if mesh is not None:
            value, by_temperature = jax.lax.psum((value, by_temperature), AXIS)
            by_everyone = jax.lax.psum_scatter(by_everyone, AXIS, tiled=True)
        return value / rows, (by_anchor + by_everyone) / rows, by_temperature / rows

    if mesh is not None:
        split, whole = PartitionSpec(AXIS), PartitionSpec()
        of_device = jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(split, whole, whole),
            out_specs=(whole, split, whole),
            check_vma=False,
        )
    value, by_z, by_temperature = of_device(z, labels, temperature)
    return value, (by_z, by_temperature)


def _sums(anchor_losses, block, anchors, first, everyone, labels, temperature):
    """The sum of the anchors' losses, and its gradients by anchors, everyone and temperature."""
    count, width = anchors.shape
    block = min(block or count, count)
    blocks = -(-count // block)

    def one_block(sums, anchors_and_places):
        anchors_mxd, place_m = anchors_and_places

        def of(anchors_mxd, everyone, temperature):
            row_m = first + jnp.minimum(place_m, count - 1)
            losses = anchor_losses(anchors_mxd, row_m, everyone, labels, temperature)
            return jnp.where(place_m < count, losses, 0.0).sum()  # the last block is filled up

        value, gradients = jax.value_and_grad(of, argnums=(0, 1, 2))(
            anchors_mxd, everyone, temperature
        )
        sums = jax.tree.map(jnp.add, sums, (value, *gradients[1:]))
        return sums, gradients[0]

    padded = jnp.pad(anchors, ((0, blocks * block - count), (0, 0)))
    places = jnp.arange(blocks * block).reshape(blocks, block)
    zeros = (jnp.float32(0), jnp.zeros_like(everyone), jnp.float32(0))
    (value, by_everyone, by_temperature), by_anchor = jax.lax.scan(
        one_block, zeros, (padded.reshape(blocks, block, width), places)
    )
    return value, by_anchor.reshape(-1, width)[:count], by_everyone, by_temperature


def _backward(anchor_losses, block, mesh, gradients, by_mean):
    by_z, by_temperature = gradients
    return by_mean * by_z, None, by_mean * by_temperature


_mean.defvjp(_mean_and_gradients, _backward)

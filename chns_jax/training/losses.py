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
    """What the loss itself learns: the temperature of a contrastive one, unless it is fixed; the
    weight of a classification, uniform as Glorot's, (classes * sub_centres, embedding), a class's
    centres one after another; and the bias of SphereFace2."""
    params: dict[str, Array] = {}
    if loss.classification:
        shape = (classes * loss.sub_centres, embedding)
        params["weight"] = jax.nn.initializers.glorot_uniform()(key, shape)
    if loss.classification == "sphereface2":
        params["bias"] = jnp.float32(0)
    if loss.contrastive and loss.learn_temperature:
        params["temperature"] = jnp.float32(loss.temperature)
    return params


def bounded(params: dict[str, Array], loss: Loss) -> dict[str, Array]:
    """The parameters of the loss after an update, a temperature below its bound moved back to it.

    The optimiser moves the temperature itself, as the authors' does; they have no bound.
    """
    if "temperature" not in params:
        return params
    return params | {"temperature": jnp.maximum(params["temperature"], loss.min_temperature)}


def training_loss(
    embeddings: Float[Array, "rows d"],
    labels: Int[Array, " rows"],
    params: dict[str, Array],
    loss: Loss,
    mesh: Mesh | None = None,
    rows: int | None = None,
    step: Int[Array, ""] | int = 0,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The loss that the config names, and {"z"}, the L2-normalised embeddings, with the
    {"temperature"} and the growing {"margin"} if there are such, and of joint losses each one,
    before it is weighed. `params` as of `init_params`, `rows` as of `supcon`."""
    rows = rows or len(embeddings)
    z = normalise(embeddings)
    values: dict[str, Array] = {}
    metrics: dict[str, Any] = {"z": z[:rows]}
    if loss.contrastive:
        tau = params["temperature"] if loss.learn_temperature else jnp.float32(loss.temperature)
        values[loss.kind] = _contrastive_loss(z, labels, tau, loss, mesh=mesh, rows=rows)
        metrics["temperature"] = tau
    if loss.classification:
        share = margin_share(loss, step)
        values[loss.classification] = _classification_loss(z, labels, params, loss, share, rows)
        if loss.aam_margin_grows != (0, 0):
            metrics["margin"] = loss.aam_margin * share
    value = values[loss.kind]
    if loss.joint:
        value = value + loss.joint_weight * values[loss.joint]
        metrics |= {f"loss/{name}": one for name, one in values.items()}
    return value, metrics


def _contrastive_loss(z, labels, temperature, loss: Loss, **options):
    if loss.kind == "hscl":
        return hscl(z, labels, temperature, beta=loss.beta, **options)
    if loss.kind == "nt_xent":
        return nt_xent(z, temperature, margin=loss.margin, **options)
    return supcon(z, labels, temperature, margin=loss.margin, **options)


def _classification_loss(z, labels, params, loss: Loss, share, rows: int):
    """With `share` of its margins."""
    options = {
        "margin": loss.aam_margin * share,
        "scale": loss.aam_scale,
        "sub_centres": loss.sub_centres,
        "rows": rows,
    }
    if loss.classification == "sphereface2":
        return sphereface2(
            z, params["weight"], params["bias"], labels,
            own_share=loss.sphereface2_lambda, power=loss.sphereface2_t, **options,
        )  # fmt: skip
    return aam_softmax(
        z, params["weight"], labels,
        top_k=loss.top_k, top_k_margin=loss.top_k_margin * share, **options,
    )  # fmt: skip


def margin_share(loss: Loss, step: Int[Array, ""] | int) -> float | Float[Array, ""]:
    """How much of a classification's margins there is at a step: nothing until the first of
    `aam_margin_grows`, all from the last, and between them 1 - 0.001 ** x, where x of these steps
    have passed, 0 to 1: wespeaker's schedule. A number of Python where margins do not grow."""
    first, last = loss.aam_margin_grows
    if last == 0:
        return 1.0
    passed = jnp.maximum(jnp.asarray(step) - first, 0) / (last - first)
    return jnp.where(passed < 1, 1.0 - jnp.exp(math.log(0.001) * passed), 1.0)


def supcon(
    z: Float[Array, "rows d"],
    labels: Int[Array, " rows"],
    temperature: Float[Array, ""] | float,
    *,
    margin: float = 0.0,
    block: int | None = BLOCK,
    mesh: Mesh | None = None,
    rows: int | None = None,
) -> Float[Array, ""]:
    """Supervised contrastive loss, L_out of Khosla et al. 2020 (arXiv 2004.11362, equation 2).

    The mean over anchors i of the mean over positives p (same label, not i) of
    -log(exp(z_i.z_p / tau) / sum over a != i of exp(z_i.z_a / tau)).

    `z` are L2-normalised embeddings, the two views stacked [a; b], so that rows i and i + b are
    two views of one speaker; `margin` is subtracted from the cosine of an anchor and its positive
    view. Every row needs a positive, which its view always is. `block` anchors are compared at a
    time, all when it is None; with a `mesh`, over which the rows are split, every device compares
    its own. Of z, the first `rows` are the batch, 2b of them, and the others padding, which counts
    for nothing; all are the batch when it is None. Returns a float32 scalar.
    """
    anchor_losses = partial(_supcon_of_anchors, margin=margin)
    return _mean_over_anchors(anchor_losses, z, labels, temperature, block, mesh, rows)


def nt_xent(
    z: Float[Array, "rows d"],
    temperature: Float[Array, ""] | float,
    *,
    margin: float = 0.0,
    block: int | None = BLOCK,
    mesh: Mesh | None = None,
    rows: int | None = None,
) -> Float[Array, ""]:
    """SimCLR's loss (Chen et al. 2020): SupCon whose only positive is the other view.

    `margin` is subtracted from the logit of an anchor and its positive view, after the cosine is
    divided by tau, as the authors of CHNS have it. Other arguments as of `supcon`.
    """
    utterance = jnp.arange(z.shape[0]) % ((rows or z.shape[0]) // 2)
    anchor_losses = partial(_supcon_of_anchors, logit_margin=margin)
    return _mean_over_anchors(anchor_losses, z, utterance, temperature, block, mesh, rows)


def hscl(
    z: Float[Array, "rows d"],
    labels: Int[Array, " rows"],
    temperature: Float[Array, ""] | float,
    *,
    beta: float,
    block: int | None = BLOCK,
    mesh: Mesh | None = None,
    rows: int | None = None,
) -> Float[Array, ""]:
    """Supervised contrastive loss with hard negatives weighed by the loss (Jiang et al. 2022).

    With the similarity s_ia = exp(2 z_i.z_a / tau), the mean over anchors i of
    -log(s_ip / (s_ip + sum over negatives a of w_ia s_ia)), where p is the positive view of i, a
    runs over the other speakers' rows, and w_ia, without gradient, is s_ia ** beta times 2b - 2
    over its sum over a. The doubled cosine and 2b - 2 are the authors'; here all is in logarithms,
    so that it is finite for every temperature. Arguments as of `supcon`; two speakers at the least.
    """
    anchor_losses = partial(_hscl_of_anchors, beta=beta)
    return _mean_over_anchors(anchor_losses, z, labels, temperature, block, mesh, rows)


def aam_softmax(
    embeddings: Float[Array, "b d"],
    weight: Float[Array, "n d"],
    labels: Int[Array, " b"],
    *,
    margin: float | Float[Array, ""],
    scale: float,
    sub_centres: int = 1,
    top_k: int = 0,
    top_k_margin: float | Float[Array, ""] = 0.0,
    rows: int | None = None,
) -> Float[Array, ""]:
    """Additive angular margin softmax (Deng et al. 2019, arXiv 1801.07698), SpeechBrain's wiring.

    Cross-entropy of `scale` times the cosines of embeddings and class weights, where the angle to
    the own class is first widened by `margin` (radians); angles above pi - margin lose
    margin * sin(margin) of their cosine instead, so that the loss falls everywhere. Of a class with
    several `sub_centres`, which are consecutive rows of `weight`, the nearest counts (Deng et al.
    2020, Sub-center ArcFace). The angles to the `top_k` nearest other classes, and to any that are
    as near, are narrowed by `top_k_margin` (inter-top-k, Zhao et al. 2022, arXiv 2110.05042).
    Arguments are normalised here; rows from `rows` on count for nothing. Returns a float32 scalar.
    """
    cosine, is_own = _class_cosines(embeddings, weight, labels, sub_centres)
    own = jnp.take_along_axis(cosine, labels[:, None], axis=1)
    cos, sin = _cos_and_sin(margin)
    widened = own * cos - _sine(own) * sin
    widened = jnp.where(own > -cos, widened, own - margin * sin)
    if top_k:
        others = jax.lax.stop_gradient(jnp.where(is_own, -jnp.inf, cosine))
        near = others >= jax.lax.top_k(others, top_k)[0][:, -1:]
        cos, sin = _cos_and_sin(top_k_margin)
        cosine = jnp.where(near, cosine * cos + _sine(cosine) * sin, cosine)
    logits = scale * jnp.where(is_own, widened, cosine)
    losses = jax.nn.logsumexp(logits, axis=1) - scale * widened[:, 0]
    return losses.mean(where=None if rows is None else jnp.arange(len(losses)) < rows)


def sphereface2(
    embeddings: Float[Array, "b d"],
    weight: Float[Array, "n d"],
    bias: Float[Array, ""],
    labels: Int[Array, " b"],
    *,
    margin: float | Float[Array, ""],
    scale: float,
    own_share: float,
    power: float,
    sub_centres: int = 1,
    rows: int | None = None,
) -> Float[Array, ""]:
    """SphereFace2 with an additive cosine margin, type C (Wen et al. 2022, arXiv 2108.01513).

    The mean over rows of the sum over classes of binary cross-entropies: with
    g = 2 ((cosine + 1) / 2) ** power - 1, the own class costs
    own_share * log(1 + exp(-scale * (g - margin) - bias)) and every other
    (1 - own_share) * log(1 + exp(scale * (g + margin) + bias)), without a division by the scale, as
    in wespeaker (Han et al. 2023). Other arguments as of `aam_softmax`. Returns a float32 scalar.
    """
    cosine, is_own = _class_cosines(embeddings, weight, labels, sub_centres)
    g = 2.0 * jnp.maximum((cosine + 1.0) / 2.0, 0.0) ** power - 1.0
    own = own_share * jax.nn.softplus(-scale * (g - margin) - bias)
    other = (1.0 - own_share) * jax.nn.softplus(scale * (g + margin) + bias)
    losses = jnp.where(is_own, own, other).sum(axis=1)
    return losses.mean(where=None if rows is None else jnp.arange(len(losses)) < rows)


def _class_cosines(embeddings, weight, labels, sub_centres: int):
    """Cosines (b, n) of rows and their nearest centre of each class, and which is their own."""
    cosine = jnp.matmul(normalise(embeddings), normalise(weight).T, precision=EXACT)
    if sub_centres > 1:
        cosine = cosine.reshape(len(cosine), -1, sub_centres).max(axis=2)
    return cosine, jnp.arange(cosine.shape[1]) == labels[:, None]


def _sine(cosine):
    """Of angles from 0 to pi, with a finite slope at the poles."""
    return jnp.sqrt(jnp.maximum(1.0 - jnp.square(cosine), 1e-12))


def _cos_and_sin(angle):
    """Of an angle that is a number of Python, or one on the device."""
    module = jnp if isinstance(angle, jax.Array) else math
    return module.cos(angle), module.sin(angle)


def normalise(embeddings: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Rows divided by their L2 norm, in float32; the gradient at a zero row is finite."""
    embeddings = embeddings.astype(jnp.float32)
    square = jnp.square(embeddings).sum(axis=-1, keepdims=True)
    return embeddings * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


# The loss of each of m anchors, which are rows `row_m` of z, against all of z.


def _supcon_of_anchors(
    anchors_mxd, row_m, z, labels, temperature, rows, *, margin=0.0, logit_margin=0.0
):
    cosine, itself, view, real = _cosines(anchors_mxd, row_m, z, rows)
    logits = (cosine - margin * view) / temperature - logit_margin * view
    log_normaliser = jax.nn.logsumexp(jnp.where(itself | ~real, -jnp.inf, logits), axis=1)
    positive = (labels[row_m][:, None] == labels[None, :]) & ~itself & real
    mean_positive = jnp.where(positive, logits, 0.0).sum(axis=1) / positive.sum(axis=1)
    return log_normaliser - mean_positive


def _hscl_of_anchors(anchors_mxd, row_m, z, labels, temperature, rows, *, beta: float):
    cosine, _, view, real = _cosines(anchors_mxd, row_m, z, rows)
    log_s = 2 * cosine / temperature
    negative = (labels[row_m][:, None] != labels[None, :]) & real
    hardness = beta * jax.lax.stop_gradient(log_s)
    total = jax.nn.logsumexp(hardness, axis=1, keepdims=True, where=negative)
    log_weight = hardness - total + jnp.log(rows - 2.0)
    log_negatives = jax.nn.logsumexp(log_s + log_weight, axis=1, where=negative)
    log_positive = jnp.where(view, log_s, 0.0).sum(axis=1)
    return jax.nn.softplus(log_negatives - log_positive)


def _cosines(anchors_mxd, row_m, z, rows: int):
    """Cosines (m, r) of anchors and all rows, where an anchor meets itself and its positive view,
    and which rows are no padding (r,)."""
    cosine = jnp.matmul(anchors_mxd, z.T, precision=EXACT)
    place = jnp.arange(z.shape[0])
    itself = row_m[:, None] == place
    view = (row_m[:, None] + rows // 2) % rows == place
    return cosine, itself, view, place < rows


# A mean over anchors whose gradient is taken block by block, while the block is at hand: reverse
# mode would keep every block's cosines, or compute them twice.


def _mean_over_anchors(anchor_losses: Callable, z, labels, temperature, block, mesh, rows):
    z, temperature = jnp.asarray(z, jnp.float32), jnp.asarray(temperature, jnp.float32)
    rows = rows or z.shape[0]
    return _mean(anchor_losses, block, mesh, rows, z, jnp.asarray(labels), temperature)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _mean(anchor_losses, block, mesh, rows, z, labels, temperature):
    return _mean_and_gradients(anchor_losses, block, mesh, rows, z, labels, temperature)[0]


def _mean_and_gradients(anchor_losses, block, mesh, rows, z, labels, temperature):
    """The mean, and its gradients by z and temperature."""

    def of_device(mine, labels, temperature):
        """Sums over the anchors of one device, `mine`, which are consecutive rows of z."""
        everyone, first = mine, 0
        if mesh is not None:
            everyone = jax.lax.all_gather(mine, AXIS, tiled=True)
            first = jax.lax.axis_index(AXIS) * len(mine)
        value, by_anchor, by_everyone, by_temperature = _sums(
            anchor_losses, block, rows, mine, first, everyone, labels, temperature
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


def _sums(anchor_losses, block, rows, anchors, first, everyone, labels, temperature):
    """The sum of the anchors' losses, and its gradients by anchors, everyone and temperature."""
    count, width = anchors.shape
    block = min(block or count, count)
    blocks = -(-count // block)

    def one_block(sums, anchors_and_places):
        anchors_mxd, place_m = anchors_and_places

        def of(anchors_mxd, everyone, temperature):
            # The last block is filled up, and so may the batch be: with the anchor before.
            row_m = jnp.minimum(first + jnp.minimum(place_m, count - 1), rows - 1)
            losses = anchor_losses(anchors_mxd, row_m, everyone, labels, temperature, rows)
            real = (place_m < count) & (first + place_m < rows)
            return jnp.where(real, losses, 0.0).sum()

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


def _backward(anchor_losses, block, mesh, rows, gradients, by_mean):
    by_z, by_temperature = gradients
    return by_mean * by_z, None, by_mean * by_temperature


_mean.defvjp(_mean_and_gradients, _backward)

"""Contrastive losses: pure functions of embeddings, float32 whatever comes in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chns_jax.config import Loss


def contrastive(z: Float[Array, "2b d"], labels: Int[Array, "2b"], temperature, loss: Loss):
    """The loss that the config names, a float32 scalar."""
    if loss.kind == "hscl":
        return hscl(z, labels, temperature, beta=loss.beta)
    if loss.kind == "nt_xent":
        return nt_xent(z, temperature, margin=loss.margin)
    return supcon(z, labels, temperature, margin=loss.margin)


def supcon(
    z: Float[Array, "2b d"],
    labels: Int[Array, "2b"],
    temperature: Float[Array, ""] | float,
    *,
    margin: float = 0.0,
) -> Float[Array, ""]:
    """Supervised contrastive loss, L_out of Khosla et al. 2020 (arXiv 2004.11362, equation 2).

    The mean over anchors i of the mean over positives p (same label, not i) of
    -log(exp(z_i.z_p / tau) / sum over a != i of exp(z_i.z_a / tau)).

    `z` are L2-normalised embeddings, the two views stacked [a; b], so that rows i and i + b are
    twins; `margin` is subtracted from the cosine of an anchor and its twin. Every row needs a
    positive, which its twin always is. Returns a float32 scalar.
    """
    cosine, itself, twin = _cosines(z)
    logits = (cosine - margin * twin) / temperature
    log_normaliser = jax.nn.logsumexp(jnp.where(itself, -jnp.inf, logits), axis=1)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    mean_positive = jnp.where(positive, logits, 0.0).sum(axis=1) / positive.sum(axis=1)
    return (log_normaliser - mean_positive).mean()


def nt_xent(
    z: Float[Array, "2b d"], temperature: Float[Array, ""] | float, *, margin: float = 0.0
) -> Float[Array, ""]:
    """SimCLR's loss (Chen et al. 2020): SupCon whose only positive is the twin."""
    utterance = jnp.arange(z.shape[0]) % (z.shape[0] // 2)
    return supcon(z, utterance, temperature, margin=margin)


def hscl(
    z: Float[Array, "2b d"],
    labels: Int[Array, "2b"],
    temperature: Float[Array, ""] | float,
    *,
    beta: float,
) -> Float[Array, ""]:
    """Supervised contrastive loss with hard negatives weighed by the loss (Jiang et al. 2022).

    With the similarity s_ia = exp(2 z_i.z_a / tau), the mean over anchors i of
    -log(s_ip / (s_ip + sum over negatives a of w_ia s_ia)), where p is the twin of i, a runs over
    the other speakers' rows, and w_ia, without gradient, is s_ia ** beta times 2b - 2 over its sum
    over a. The doubled cosine and 2b - 2 are the authors'; here all is in logarithms, so that it is
    finite for every temperature. `z` and `labels` as in `supcon`; two speakers at the least.
    """
    cosine, _, twin = _cosines(z)
    log_s = 2 * cosine / temperature
    negative = jnp.where(labels[:, None] != labels[None, :], log_s, -jnp.inf)
    hardness = beta * jax.lax.stop_gradient(log_s)
    total = jax.nn.logsumexp(hardness, axis=1, keepdims=True, where=jnp.isfinite(negative))
    log_weight = hardness - total + jnp.log(z.shape[0] - 2.0)
    log_negatives = jax.nn.logsumexp(negative + log_weight, axis=1)
    log_positive = jnp.where(twin, log_s, 0.0).sum(axis=1)
    return jax.nn.softplus(log_negatives - log_positive).mean()


def _cosines(z: Float[Array, "2b d"]):
    """Cosines of all rows (2b, 2b) in float32, and where a row meets itself and its twin."""
    z = z.astype(jnp.float32)
    row = jnp.arange(z.shape[0])
    cosine = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)
    itself = row[:, None] == row[None, :]
    twin = row[None, :] == (row[:, None] + z.shape[0] // 2) % z.shape[0]
    return cosine, itself, twin


def normalise(embeddings: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Rows divided by their L2 norm, in float32; the gradient at a zero row is finite."""
    embeddings = embeddings.astype(jnp.float32)
    square = jnp.square(embeddings).sum(axis=-1, keepdims=True)
    return embeddings * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

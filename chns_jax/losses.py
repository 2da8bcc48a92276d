"""Contrastive losses: pure functions of embeddings, float32 whatever comes in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
    z = z.astype(jnp.float32)
    rows = z.shape[0]
    row = jnp.arange(rows)
    cosine = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)
    twin = row[None, :] == (row[:, None] + rows // 2) % rows
    logits = (cosine - margin * twin) / temperature
    itself = row[:, None] == row[None, :]
    log_normaliser = jax.nn.logsumexp(jnp.where(itself, -jnp.inf, logits), axis=1)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    mean_positive = jnp.where(positive, logits, 0.0).sum(axis=1) / positive.sum(axis=1)
    return (log_normaliser - mean_positive).mean()


def normalise(embeddings: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Rows divided by their L2 norm, in float32; the gradient at a zero row is finite."""
    embeddings = embeddings.astype(jnp.float32)
    square = jnp.square(embeddings).sum(axis=-1, keepdims=True)
    return embeddings * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

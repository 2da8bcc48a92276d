"""One step of training and one of inference: pure functions of a state and a batch."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from jaxtyping import Array, Float, Int, Int16

from chns_jax.config import Config, Loss
from chns_jax.features import frame_count, log_mel
from chns_jax.losses import contrastive, normalise
from chns_jax.optimizer import schedule
from chns_jax.randomness import Purpose, generator


@struct.dataclass
class TrainState:
    """All that changes from step to step."""

    step: Int[Array, ""]  # updates made
    variables: dict[str, Any]  # {"params": {"encoder", "loss"}, "batch_stats"}
    optimizer: optax.OptState


def init(config: Config, encoder: nn.Module, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step: a function of the config and its seed."""
    seed = int(generator(config.training.seed, Purpose.ENCODER).integers(2**31))
    shape = (1, frame_count(config.crop_samples, config.features), config.features.bands)
    frames = jnp.zeros(shape)
    initial = encoder.init(jax.random.key(seed), frames, train=False)
    params = {"encoder": initial["params"]}
    if config.loss.learn_temperature:
        above = config.loss.temperature - config.loss.min_temperature
        params["loss"] = {"log_temperature": jnp.float32(math.log(above))}
    variables = {"params": params, "batch_stats": initial["batch_stats"]}
    return TrainState(jnp.int32(0), variables, tx.init(params))


def temperature(params: dict[str, Any], loss: Loss) -> Float[Array, ""]:
    """The temperature: learned as the logarithm of what it exceeds its lower bound by."""
    if not loss.learn_temperature:
        return jnp.float32(loss.temperature)
    return loss.min_temperature + jnp.exp(params["loss"]["log_temperature"])


def train_step(
    state: TrainState,
    audio: Int16[Array, "2b s"],
    labels: Int[Array, "2b"],
    *,
    config: Config,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Array]]:
    """One update. Rows i and i + b are two utterances of one speaker.

    Returns the next state and {"loss", "temperature", "learning_rate", "z"}, z (2b, d) being the
    L2-normalised embeddings. Under jit with rows split over a mesh, loss and batch statistics are
    global.
    """

    def loss_of(params):
        tau = temperature(params, config.loss)
        embedding, updated = encoder.apply(
            {"params": params["encoder"], "batch_stats": state.variables["batch_stats"]},
            log_mel(audio, config.features),
            train=True,
            mutable=["batch_stats"],
        )
        z = normalise(embedding)
        loss = contrastive(z, labels, tau, config.loss)
        return loss, (updated["batch_stats"], {"loss": loss, "temperature": tau, "z": z})

    params = state.variables["params"]
    gradient, (batch_stats, metrics) = jax.grad(loss_of, has_aux=True)(params)
    metrics["learning_rate"] = schedule(config.optimizer, config.training.steps)(state.step)
    updates, optimizer = tx.update(gradient, state.optimizer, params)
    variables = {"params": optax.apply_updates(params, updates), "batch_stats": batch_stats}
    return TrainState(state.step + 1, variables, optimizer), metrics


def embed_step(
    variables: dict[str, Any], audio: Int16[Array, "b s"], *, config: Config, encoder: nn.Module
) -> Float[Array, "b d"]:
    """Speaker embeddings in inference mode, not normalised."""
    encoder_variables = {
        "params": variables["params"]["encoder"],
        "batch_stats": variables["batch_stats"],
    }
    return encoder.apply(encoder_variables, log_mel(audio, config.features), train=False)


def sha256(variables: dict[str, Any]) -> str:
    """Digest of the bytes of all parameters and batch statistics, in sorted order of their keys."""
    digest = hashlib.sha256()
    for _, value in sorted(traverse_util.flatten_dict(variables, sep="/").items()):
        digest.update(jax.device_get(value).tobytes())
    return digest.hexdigest()

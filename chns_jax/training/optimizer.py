"""Adam with the paper's schedule, or SGD with wespeaker's."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from chns_jax.config import Optimizer


def schedule(optimizer: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate at each update: a linear rise from 0 over `warmup`, then a cosine to 0; or an
    exponential decay over all steps, from the first to the last rate, which that rise multiplies,
    as wespeaker's ExponentialDecrease."""
    rising = round(optimizer.warmup * steps)
    if optimizer.decay == "exponential":
        ratio = optimizer.last_learning_rate / optimizer.learning_rate
        decaying = optax.exponential_decay(optimizer.learning_rate, steps, ratio)
        if not rising:
            return decaying
        return lambda step: decaying(step) * jnp.minimum(1.0, step / rising)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if rising else optimizer.learning_rate,
        peak_value=optimizer.learning_rate,
        warmup_steps=rising,
        decay_steps=max(steps, rising + 1),
    )


def make_optimizer(optimizer: Optimizer, steps: int) -> optax.GradientTransformation:
    """Adam or SGD whose weight decay is added to the gradient, as `torch.optim` does it.

    The loss's temperature, params["loss"]["temperature"], may have a learning rate of its own.
    """
    own = optimizer.temperature_learning_rate
    share = 1.0 if own is None else own / optimizer.learning_rate
    rate = schedule(optimizer, steps)
    if optimizer.kind == "sgd":
        moved = optax.sgd(rate, momentum=optimizer.momentum, nesterov=True)
    else:
        moved = optax.adam(rate)
    return optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay),
        moved,
        optax.stateless(lambda updates, params: _scale_temperature(updates, share)),
    )


def _scale_temperature(updates: Any, factor: float) -> Any:
    if factor == 1.0 or "temperature" not in updates.get("loss", {}):
        return updates
    of_loss = updates["loss"] | {"temperature": factor * updates["loss"]["temperature"]}
    return updates | {"loss": of_loss}

"""Adam with the paper's schedule."""

from __future__ import annotations

from typing import Any

import optax

from chns_jax.config import Optimizer


def schedule(optimizer: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate at each update: a linear rise from 0 over `warmup`, then a cosine to 0."""
    rising = round(optimizer.warmup * steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if rising else optimizer.learning_rate,
        peak_value=optimizer.learning_rate,
        warmup_steps=rising,
        decay_steps=max(steps, rising + 1),
    )


def make_optimizer(optimizer: Optimizer, steps: int) -> optax.GradientTransformation:
    """Adam whose weight decay is added to the gradient, as `torch.optim.Adam` does it.

    The loss's temperature, params["loss"]["temperature"], may have a learning rate of its own.
    """
    own = optimizer.temperature_learning_rate
    share = 1.0 if own is None else own / optimizer.learning_rate
    return optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.adam(schedule(optimizer, steps)),
        optax.stateless(lambda updates, params: _scale_temperature(updates, share)),
    )


def _scale_temperature(updates: Any, factor: float) -> Any:
    if factor == 1.0 or "temperature" not in updates.get("loss", {}):
        return updates
    of_loss = updates["loss"] | {"temperature": factor * updates["loss"]["temperature"]}
    return updates | {"loss": of_loss}

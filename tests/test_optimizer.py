import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chns_jax.config import Loss, Optimizer
from chns_jax.training.losses import bounded, normalise, supcon
from chns_jax.training.optimizer import make_optimizer


def test_sixty_steps_are_the_authors(golden):
    """Losses and temperatures, step by step, of their SupCon, Adam and schedule on a linear map."""
    arrays = golden("trajectory")
    meta = json.loads(str(arrays["meta"]))
    optimizer = Optimizer(
        learning_rate=meta["learning_rate"],
        weight_decay=meta["weight_decay"],
        warmup=meta["warmup"] / meta["steps"],
    )
    tx, loss = make_optimizer(optimizer, meta["steps"]), Loss(temperature=meta["temperature"])
    labels = jnp.tile(jnp.arange(meta["speakers"]), 2)
    params = {
        "encoder": jnp.asarray(arrays["w0"]),
        "loss": {"temperature": jnp.float32(meta["temperature"])},
    }

    @jax.jit
    def step(params, moments, x):
        def of(params):
            z = normalise(x.reshape(-1, x.shape[-1]) @ params["encoder"].T)
            return supcon(z, labels, params["loss"]["temperature"])

        value, gradient = jax.value_and_grad(of)(params)
        updates, moments = tx.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        return params | {"loss": bounded(params["loss"], loss)}, moments, value

    moments, losses, temperatures = tx.init(params), [], []
    for x in arrays["x"]:
        params, moments, value = step(params, moments, jnp.asarray(x))
        losses.append(float(value))
        temperatures.append(float(params["loss"]["temperature"]))
    np.testing.assert_allclose(losses, arrays["losses"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(temperatures, arrays["temperatures"], rtol=1e-4)
    np.testing.assert_allclose(params["encoder"], arrays["w_end"], atol=1e-4)


def test_the_temperature_may_have_a_learning_rate_of_its_own():
    params = {"encoder": jnp.ones(3), "loss": {"temperature": jnp.float32(0.1)}}
    gradient = jax.tree.map(jnp.ones_like, params)

    def first_update(optimizer):
        tx = make_optimizer(optimizer, 10)
        return tx.update(gradient, tx.init(params), params)[0]

    same = first_update(Optimizer(learning_rate=0.01, warmup=0.0))
    own = first_update(Optimizer(learning_rate=0.01, warmup=0.0, temperature_learning_rate=0.002))
    np.testing.assert_array_equal(own["encoder"], same["encoder"])
    assert same["loss"]["temperature"] == pytest.approx(-0.01, rel=1e-4)
    assert own["loss"]["temperature"] == pytest.approx(-0.002, rel=1e-4)

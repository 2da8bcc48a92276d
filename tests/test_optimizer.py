import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chns_jax.config import Loss, Optimizer
from chns_jax.training.losses import bounded, normalise, supcon
from chns_jax.training.optimizer import make_optimizer, schedule


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


def test_the_exponential_decay_is_wespeakers():
    """From the first rate to the last over all steps, times a warm-up from 0."""
    options = {"learning_rate": 0.1, "decay": "exponential", "last_learning_rate": 5e-5}
    rate = schedule(Optimizer(warmup=0.04, **options), 150)
    for step in (0, 1, 5, 6, 75, 149, 150):
        expected = 0.1 * (5e-5 / 0.1) ** (step / 150) * min(1, step / 6)
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5)
    assert float(schedule(Optimizer(warmup=0.0, **options), 150)(0)) == pytest.approx(0.1)


def steps_of(optimizer, gradients, steps):
    """The parameter after each of `steps` updates, from 2."""
    tx, params = make_optimizer(optimizer, steps), jnp.float32(2)
    state, after = tx.init(params), []
    for gradient in gradients:
        update, state = tx.update(jnp.float32(gradient), state, params)
        params = params + update
        after.append(float(params))
    return after


GRADIENTS = [0.3, -2.0, 0.1, 0.7, -0.2]
SGD = Optimizer(
    kind="sgd", learning_rate=0.1, weight_decay=0.5, warmup=0.4, decay="exponential",
    last_learning_rate=0.01,
)  # fmt: skip


def test_sgd_is_nesterovs_by_its_definition():
    weight, velocity, expected = 2.0, 0.0, []
    for step, gradient in enumerate(GRADIENTS):
        g = gradient + 0.5 * weight
        velocity = 0.9 * velocity + g
        rate = 0.1 * 0.1 ** (step / 5) * min(1, step / 2)
        weight -= rate * (g + 0.9 * velocity)
        expected.append(weight)
    assert steps_of(SGD, GRADIENTS, 5) == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_sgd_is_pytorchs():
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.tensor(2.0))
    sgd = torch.optim.SGD([weight], lr=1.0, momentum=0.9, weight_decay=0.5, nesterov=True)
    expected = []
    for step, gradient in enumerate(GRADIENTS):
        sgd.param_groups[0]["lr"] = float(schedule(SGD, 5)(step))
        weight.grad = torch.tensor(gradient)
        sgd.step()
        expected.append(float(weight.detach()))
    assert steps_of(SGD, GRADIENTS, 5) == pytest.approx(expected, rel=1e-5)

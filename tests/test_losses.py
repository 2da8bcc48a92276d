import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax.config import Loss
from chns_jax.losses import contrastive, hscl, normalise, nt_xent, supcon


def supcon_loop(z, labels, temperature, margin=0.0):
    """Khosla et al. 2020, equation 2, one exponential at a time."""
    rows, total = len(z), 0.0
    for i in range(rows):
        twin = (i + rows // 2) % rows
        logit = {}
        for a in range(rows):
            if a != i:
                logit[a] = (float(z[i] @ z[a]) - (margin if a == twin else 0.0)) / temperature
        denominator = sum(np.exp(value) for value in logit.values())
        positives = [a for a in logit if labels[a] == labels[i]]
        total += np.mean([-np.log(np.exp(logit[p]) / denominator) for p in positives])
    return total / rows


def hscl_loop(z, labels, temperature, beta):
    """Jiang et al. 2022 as the authors of CHNS compute it, one exponential at a time."""
    rows, total = len(z), 0.0
    for i in range(rows):
        similarity = np.exp(2 * z @ z[i] / temperature)
        negatives = [a for a in range(rows) if labels[a] != labels[i]]
        weight = similarity[negatives] ** beta
        weight *= (rows - 2) / weight.sum()
        positive = similarity[(i + rows // 2) % rows]
        total -= np.log(positive / (positive + weight @ similarity[negatives]))
    return total / rows


def embeddings(rows=12, dimensions=6, seed=0):
    z = np.random.default_rng(seed).normal(size=(rows, dimensions))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize("margin", [0.0, 0.2])
@pytest.mark.parametrize("speakers", [6, 4])  # 4: some speakers have four rows
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_supcon_is_the_plain_loop(speakers, temperature, margin):
    z, labels = embeddings(), np.tile(np.arange(6) % speakers, 2)
    expected = supcon_loop(z, labels, temperature, margin)
    assert supcon(jnp.asarray(z), jnp.asarray(labels), temperature, margin=margin) == pytest.approx(
        expected, rel=2e-5
    )


def test_supcon_gradients_are_finite_differences():
    z, labels, temperature, h = embeddings(), np.tile(np.arange(6), 2), 0.2, 1e-5
    gradient, by_temperature = jax.grad(supcon, argnums=(0, 2))(
        jnp.asarray(z), jnp.asarray(labels), jnp.float32(temperature)
    )
    for i, j in [(0, 0), (3, 2), (11, 5)]:
        step = np.zeros_like(z)
        step[i, j] = h
        rise = supcon_loop(z + step, labels, temperature) - supcon_loop(
            z - step, labels, temperature
        )
        assert gradient[i, j] == pytest.approx(rise / (2 * h), rel=1e-3, abs=1e-4)
    rise = supcon_loop(z, labels, temperature + h) - supcon_loop(z, labels, temperature - h)
    assert by_temperature == pytest.approx(rise / (2 * h), rel=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("speakers", [6, 4])
def test_hscl_is_the_plain_loop(speakers, beta):
    z, labels = embeddings(), np.tile(np.arange(6) % speakers, 2)
    mine = hscl(jnp.asarray(z), jnp.asarray(labels), 0.3, beta=beta)
    assert mine == pytest.approx(hscl_loop(z, labels, 0.3, beta), rel=2e-5)


def test_nt_xent_knows_no_speakers():
    z, labels = embeddings(), np.tile(np.arange(6), 2)
    assert nt_xent(jnp.asarray(z), 0.3, margin=0.1) == pytest.approx(
        supcon_loop(z, labels, 0.3, 0.1), rel=2e-5
    )


GOLDEN_CASES = range(14)  # the other two are of AAM-Softmax


@pytest.mark.parametrize("i", GOLDEN_CASES)
def test_losses_are_the_authors(golden, i):
    arrays = golden("losses")
    case = json.loads(str(arrays["cases"]))[i]
    kind = case["loss"].replace("ntxent", "nt_xent")
    config = Loss(kind=kind, margin=case.get("margin", 0.0), beta=case.get("beta", 0.0))
    a, b, labels = (arrays[f"{i}.{key}"] for key in "a b labels".split())

    def loss(views, temperature):
        z = normalise(jnp.concatenate(views))
        return contrastive(z, jnp.tile(labels, 2), temperature, config)

    value, (views, temperature) = jax.value_and_grad(loss, argnums=(0, 1))(
        (a, b), case["temperature"]
    )
    np.testing.assert_allclose(value, arrays[f"{i}.loss"], rtol=1e-5)
    np.testing.assert_allclose(temperature, arrays[f"{i}.grad_temperature"], rtol=1e-4)
    for mine, theirs in zip(views, (arrays[f"{i}.grad_a"], arrays[f"{i}.grad_b"]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * abs(theirs).max())


@pytest.mark.parametrize("kind", ["supcon", "hscl", "nt_xent"])
@pytest.mark.parametrize("temperature", [0.005, 0.02, 1.0, 10.0])
@pytest.mark.parametrize("alike", [True, False])
def test_losses_are_finite_for_every_temperature(kind, temperature, alike):
    z, labels = embeddings(), jnp.tile(jnp.arange(6), 2)
    z = jnp.ones_like(z) / 6**0.5 if alike else jnp.asarray(z)
    config = Loss(kind=kind, beta=2.0)
    value, gradients = jax.value_and_grad(contrastive, argnums=(0, 2))(
        z, labels, jnp.float32(temperature), config
    )
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in gradients)


def test_supcon_computes_in_float32_whatever_comes_in():
    z, labels = jnp.asarray(embeddings(), jnp.bfloat16), jnp.tile(jnp.arange(6), 2)
    assert supcon(z, labels, 0.1).dtype == jnp.float32
    assert supcon(z, labels, 0.1) == supcon(z.astype(jnp.float32), labels, 0.1)


def test_a_zero_row_has_a_finite_gradient():
    gradient = jax.grad(lambda x: normalise(x).sum())(jnp.zeros((2, 3)))
    assert jnp.isfinite(gradient).all()

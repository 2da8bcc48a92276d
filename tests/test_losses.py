import json
from functools import partial
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax.config import Loss
from chns_jax.devices.sharding import make_mesh, put
from chns_jax.training import losses
from chns_jax.training.losses import bounded, init_params, margin_share, normalise


def compiled(loss):
    """A loss as one program, as training has it: step by step it would be a hundred."""
    settings = set(signature(loss).parameters) - {
        "z", "embeddings", "labels", "temperature", "params", "weight", "bias", "step"
    }  # fmt: skip
    return jax.jit(loss, static_argnames=sorted(settings))


aam_softmax = compiled(losses.aam_softmax)
hscl = compiled(losses.hscl)
nt_xent = compiled(losses.nt_xent)
sphereface2 = compiled(losses.sphereface2)
supcon = compiled(losses.supcon)
training_loss = compiled(losses.training_loss)


def gradient(of, argnums=0):
    return jax.jit(jax.grad(of, argnums))


def value_and_gradient(of, argnums=(0, 1)):
    return jax.jit(jax.value_and_grad(of, argnums))


def supcon_loop(z, labels, temperature, margin=0.0):
    """Khosla et al. 2020, equation 2, one exponential at a time."""
    rows, total = len(z), 0.0
    for i in range(rows):
        view = (i + rows // 2) % rows
        logit = {}
        for a in range(rows):
            if a != i:
                logit[a] = (float(z[i] @ z[a]) - (margin if a == view else 0.0)) / temperature
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
    by_z, by_temperature = gradient(supcon, (0, 2))(
        jnp.asarray(z), jnp.asarray(labels), jnp.float32(temperature)
    )
    for i, j in [(0, 0), (3, 2), (11, 5)]:
        step = np.zeros_like(z)
        step[i, j] = h
        rise = supcon_loop(z + step, labels, temperature) - supcon_loop(
            z - step, labels, temperature
        )
        assert by_z[i, j] == pytest.approx(rise / (2 * h), rel=1e-3, abs=1e-4)
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
    # The loop subtracts the margin from the cosine, which is then divided by the temperature.
    assert nt_xent(jnp.asarray(z), 0.3, margin=0.1) == pytest.approx(
        supcon_loop(z, labels, 0.3, 0.1 * 0.3), rel=2e-5
    )


def make_loss(kind, labels, **options):
    """loss(z, temperature), with keyword arguments block and mesh."""
    labels = jnp.asarray(labels)
    if kind == "nt_xent":
        return partial(nt_xent, **options)
    return lambda z, t, **how: {"supcon": supcon, "hscl": hscl}[kind](
        z, labels, t, **options, **how
    )


@pytest.mark.parametrize("i", range(14))
def test_contrastive_losses_are_the_authors(golden, i):
    arrays = golden("losses")
    case = json.loads(str(arrays["cases"]))[i]
    kind = case["loss"].replace("ntxent", "nt_xent")
    options = {key: case[key] for key in ("margin", "beta") if key in case}
    a, b, labels = (arrays[f"{i}.{key}"] for key in "a b labels".split())
    loss = make_loss(kind, np.tile(labels, 2), **options)

    def of_views(views, temperature):
        return loss(normalise(jnp.concatenate(views)), temperature)

    value, (views, temperature) = value_and_gradient(of_views)((a, b), case["temperature"])
    np.testing.assert_allclose(value, arrays[f"{i}.loss"], rtol=1e-5)
    np.testing.assert_allclose(temperature, arrays[f"{i}.grad_temperature"], rtol=1e-4)
    for mine, theirs in zip(views, (arrays[f"{i}.grad_a"], arrays[f"{i}.grad_b"]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * abs(theirs).max())


@pytest.mark.parametrize("i", [14, 15])
def test_aam_softmax_is_the_authors(golden, i):
    arrays = golden("losses")
    case = json.loads(str(arrays["cases"]))[i]
    assert case["loss"] == "aam_softmax"
    names = ("embeddings", "weight", "labels")
    embeddings, weight, labels = (jnp.asarray(arrays[f"{i}.{name}"]) for name in names)
    loss = partial(aam_softmax, labels=labels, margin=case["margin"], scale=case["scale"])
    value, gradients = value_and_gradient(loss)(embeddings, weight)
    np.testing.assert_allclose(value, arrays[f"{i}.loss"], rtol=1e-5)
    for mine, name in zip(gradients, ("grad_embeddings", "grad_weight"), strict=True):
        theirs = arrays[f"{i}.{name}"]
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * abs(theirs).max())


def test_aam_softmax_is_the_plain_sum_and_falls_at_every_angle():
    """Cross-entropy by its definition in two dimensions, where angles can be named."""
    angles, classes = np.radians([3.0, 40.0, 100.0, 175.0]), np.radians([0.0, 90.0, 200.0])
    labels = np.array([0, 1, 0, 0])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1.0], [3.0], [0.2], [1.0]]
    weight = np.stack([np.cos(classes), np.sin(classes)], axis=1) * 2.0
    margin, scale, total = 0.2, 30.0, 0.0
    for angle, label in zip(angles, labels, strict=True):
        logits = np.cos(angle - classes)
        apart = abs((angle - classes[label] + np.pi) % (2 * np.pi) - np.pi)
        far = apart > np.pi - margin
        logits[label] -= margin * np.sin(margin) if far else 0
        logits[label] = logits[label] if far else np.cos(apart + margin)
        logits *= scale
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]
    mine = aam_softmax(
        jnp.asarray(points), jnp.asarray(weight), jnp.asarray(labels), margin=margin, scale=scale
    )
    assert mine == pytest.approx(total / 4, rel=1e-5)

    def of_angle(angle):
        point = jnp.stack([jnp.cos(angle), jnp.sin(angle)])[None]
        labels = jnp.zeros(1, int)
        return aam_softmax(point, jnp.asarray(weight), labels, margin=margin, scale=5.0)

    rise = gradient(of_angle)
    assert all(rise(np.radians(x)) > 0 for x in (5.0, 60.0, 120.0, 165.0))
    assert jnp.isfinite(rise(0.0))


@pytest.mark.parametrize("kind", ["supcon", "hscl", "nt_xent"])
@pytest.mark.parametrize(
    "how", [{"block": 7}, {"block": 16}, {"devices": 8}, {"devices": 4, "block": 3}]
)
def test_blocks_and_devices_change_neither_value_nor_gradient(kind, how):
    rows = 48
    labels = np.tile(np.arange(rows // 2) % 15, 2)  # some speakers have four rows
    options = {"beta": 0.5} if kind == "hscl" else {"margin": 0.1}
    loss = make_loss(kind, labels, **options)
    z = jnp.asarray(embeddings(rows, 8), jnp.float32)

    def value_and_gradients(z, **how):
        return value_and_gradient(lambda z, t: 3 * loss(z, t, **how))(z, 0.2)

    dense = value_and_gradients(z, block=None)
    if "devices" in how:
        mesh = make_mesh(how["devices"])
        mine = value_and_gradients(put(mesh, np.asarray(z)), mesh=mesh, block=how.get("block"))
        assert len(mine[1][0].sharding.device_set) == how["devices"]
    else:
        mine = value_and_gradients(z, **how)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["aam_softmax", "sphereface2"])
def test_classifications_are_the_same_on_eight_devices(kind):
    rng, mesh = np.random.default_rng(0), make_mesh(8)
    rows, weight = rng.normal(size=(16, 6)), rng.normal(size=(5 * 2, 6))
    config = Loss(kind=kind, sub_centres=2, top_k=2 if kind == "aam_softmax" else 0)

    def loss(rows, weight, labels):
        params = {"weight": weight, "bias": jnp.float32(0)}
        return training_loss(rows, labels, params, config)[0]

    labels = rng.integers(0, 5, 16).astype(np.int32)
    step = value_and_gradient(loss)
    one = step(rows.astype(np.float32), weight, labels)
    eight = step(put(mesh, rows.astype(np.float32)), weight, put(mesh, labels))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def classes_loop(x, weight, labels, centres, own, other):
    """Sums over classes, by row and class, one angle at a time: own and other of (cosine, row)."""
    x, weight = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, weight))
    rows = []
    for row, label in zip(x, labels, strict=True):
        cosines = [max(row @ w for w in of) for of in weight.reshape(-1, centres, weight.shape[1])]
        rows.append([own(c) if j == label else other(c) for j, c in enumerate(cosines)])
    return np.array(rows)


CLASSES = np.random.default_rng(5).normal(size=(7 * 3, 6))  # three centres of each of seven


@pytest.mark.parametrize(
    "centres, top_k",
    [(3, 3), *(pytest.param(*p, marks=pytest.mark.long) for p in ((3, 0), (1, 2), (3, 6)))],
)
def test_sub_centres_and_the_nearest_others_are_the_plain_loop(centres, top_k):
    """Deng et al. 2020 and Zhao et al. 2022, with wespeaker's order of centres."""
    x, labels, weight = embeddings(), np.arange(12) % 7, CLASSES[: 7 * centres]
    margin, scale, near = 0.2, 20.0, 0.1

    def widened(c):
        return np.cos(np.arccos(c) + margin) if c > -np.cos(margin) else c - margin * np.sin(margin)

    logits = classes_loop(x, weight, labels, centres, widened, lambda c: c)
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        others = sorted((j for j in range(7) if j != label), key=lambda j: -row[j])
        for j in others[:top_k]:
            row[j] = np.cos(np.arccos(row[j]) - near)
        total += np.log(np.exp(scale * row).sum()) - scale * row[label]
    mine = aam_softmax(
        jnp.asarray(x), jnp.asarray(weight), jnp.asarray(labels), margin=margin, scale=scale,
        sub_centres=centres, top_k=top_k, top_k_margin=near,
    )  # fmt: skip
    assert mine == pytest.approx(total / 12, rel=1e-5)


@pytest.mark.parametrize("centres, bias", [pytest.param(1, 0.0, marks=pytest.mark.long), (3, -1.5)])
def test_sphereface2_is_the_plain_loop(centres, bias):
    """Wen et al. 2022, type C, a binary cross-entropy at a time; and its slopes by weight and bias
    are those of differences."""
    x, labels, weight = embeddings(), np.arange(12) % 7, CLASSES[: 7 * centres]
    margin, scale, share, t = 0.2, 8.0, 0.7, 3.0

    def loop(weight, bias):
        def g(c):
            return 2 * ((c + 1) / 2) ** t - 1

        def own(c):
            return -share * np.log(1 / (1 + np.exp(-(scale * (g(c) - margin) + bias))))

        def other(c):
            return -(1 - share) * np.log(1 - 1 / (1 + np.exp(-(scale * (g(c) + margin) + bias))))

        return classes_loop(x, weight, labels, centres, own, other).sum(axis=1).mean()

    def mine(weight, bias):
        return sphereface2(
            jnp.asarray(x), weight, bias, jnp.asarray(labels), margin=margin, scale=scale,
            own_share=share, power=t, sub_centres=centres,
        )  # fmt: skip

    value, (by_weight, by_bias) = value_and_gradient(mine)(jnp.asarray(weight), jnp.float32(bias))
    assert value == pytest.approx(loop(weight, bias), rel=1e-5)
    h, step = 1e-6, np.zeros_like(weight)
    step[4, 2] = h
    rise = loop(weight + step, bias) - loop(weight - step, bias)
    assert by_weight[4, 2] == pytest.approx(rise / (2 * h), rel=1e-3, abs=1e-5)
    assert by_bias == pytest.approx(
        (loop(weight, bias + h) - loop(weight, bias - h)) / (2 * h), rel=1e-3
    )


@pytest.mark.parametrize(
    "kind", [pytest.param("aam_softmax", marks=pytest.mark.long), "sphereface2"]
)
def test_a_batch_of_few_speakers_is_told_from_all(kind):
    """As one from clusters: classes that are not in it are pushed away too."""
    z, labels = jnp.asarray(embeddings()), jnp.arange(12) % 2
    config = Loss(kind=kind, aam_scale=4.0)
    params = {"weight": jnp.asarray(CLASSES[:7]), "bias": jnp.float32(0)}
    slopes = gradient(lambda params: training_loss(z, labels, params, config)[0])(params)
    assert (np.linalg.norm(slopes["weight"], axis=1) > 1e-3).all()


def test_classifications_are_finite_at_every_angle():
    """At the poles, where rounding leaves cosines beyond 1, and with a steep power."""
    x = jnp.asarray([[1.0, 1e-4], [-3.0, 3e-4], [1e-20, 0.0]])
    weight, labels = jnp.asarray([[1.0, 1e-4], [-1.0, 0.0]]), jnp.zeros(3, int)

    def both(x, weight):
        binary = sphereface2(
            x, weight, jnp.float32(0), labels, margin=0.2, scale=32.0, own_share=0.7, power=2.5
        )
        return binary + aam_softmax(
            x, weight, labels, margin=0.5, scale=32.0, top_k=1, top_k_margin=0.1
        )

    value, gradients = value_and_gradient(both)(x, weight)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


def test_the_margin_grows_as_wespeakers():
    """Of 100 to 300: none, then 1 - 0.001 ** share, all of it; a whole one is no traced number."""
    loss = Loss(kind="aam_softmax", aam_margin_grows=(100, 300), aam_margin=0.4)
    at = {step: float(margin_share(loss, step)) for step in (0, 100, 150, 200, 299, 300, 9999)}
    expected = {
        0: 0,
        100: 0,
        150: 1 - 0.001**0.25,
        200: 1 - 0.001**0.5,
        299: 0.998965,
        300: 1,
        9999: 1,
    }
    assert at == pytest.approx(expected, abs=1e-6)
    z, labels = jnp.asarray(embeddings()), jnp.arange(12) % 7
    params = {"weight": jnp.asarray(CLASSES[:7])}
    value, metrics = training_loss(z, labels, params, loss, step=150)
    margin = 0.4 * at[150]
    assert metrics["margin"] == pytest.approx(margin, rel=1e-5)
    by_hand = aam_softmax(z, params["weight"], labels, margin=margin, scale=30.0)
    assert value == pytest.approx(float(by_hand), rel=1e-5)
    assert margin_share(Loss(kind="aam_softmax"), 5) == 1.0


@pytest.mark.long
def test_the_margin_of_the_nearest_others_grows_with_it():
    loss = Loss(kind="aam_softmax", aam_margin_grows=(0, 10), aam_margin=0.0, top_k=2)
    z, labels = jnp.asarray(embeddings()), jnp.arange(12) % 7
    params = {"weight": jnp.asarray(CLASSES[:7])}
    first, whole = (training_loss(z, labels, params, loss, step=step)[0] for step in (0, 10))
    plain = aam_softmax(z, params["weight"], labels, margin=0.0, scale=30.0)
    assert first == pytest.approx(float(plain), rel=1e-5) and whole > first + 0.1


@pytest.mark.parametrize(
    "joint", [pytest.param("aam_softmax", marks=pytest.mark.long), "sphereface2"]
)
def test_joint_losses_are_their_weighted_sum(joint):
    z, labels = jnp.asarray(embeddings()), jnp.tile(jnp.arange(6), 2)
    config = Loss(kind="supcon", margin=0.1, joint=joint, joint_weight=0.3)
    params = init_params(config, jax.random.key(0), embedding=6, classes=7)
    bias = {"bias"} if joint == "sphereface2" else set()
    assert set(params) == {"temperature", "weight"} | bias
    value, metrics = training_loss(z, labels, params, config)
    contrastive = float(supcon(z, labels, 0.1, margin=0.1))
    alone, _ = training_loss(z, labels, params, Loss(kind=joint))
    assert value == pytest.approx(contrastive + 0.3 * float(alone), rel=1e-5)
    assert metrics["loss/supcon"] == pytest.approx(contrastive, rel=1e-5)
    assert metrics[f"loss/{joint}"] == pytest.approx(float(alone), rel=1e-5)


def test_memory_grows_with_the_rows_and_not_with_their_square():
    def temporary_bytes(rows, block):
        z, labels = jnp.zeros((rows, 8)), jnp.zeros(rows, int)
        step = gradient(lambda z: supcon(z, labels, 0.1, block=block))
        return step.lower(z).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4096, 64) < 3 * temporary_bytes(2048, 64)
    assert temporary_bytes(4096, 64) < temporary_bytes(4096, None) / 20


@pytest.mark.parametrize("kind", ["supcon", "hscl", "nt_xent"])
@pytest.mark.parametrize("temperature", [0.005, 0.02, 1.0, 10.0])
@pytest.mark.parametrize("alike", [True, False])
def test_losses_are_finite_for_every_temperature(kind, temperature, alike):
    labels = np.tile(np.arange(6), 2)
    loss = make_loss(kind, labels, **({"beta": 2.0} if kind == "hscl" else {}))
    z = np.ones((12, 6)) / 6**0.5 if alike else embeddings()
    value, gradients = value_and_gradient(loss)(jnp.asarray(z), jnp.float32(temperature))
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("kind", ["supcon", "hscl", "nt_xent", "aam_softmax", "sphereface2"])
def test_the_config_names_the_loss(kind):
    z, labels = jnp.asarray(embeddings()), jnp.tile(jnp.arange(6), 2)
    config = Loss(kind=kind, margin=0.1, beta=0.3, learn_temperature=kind == "supcon")
    params = init_params(config, jax.random.key(0), embedding=6, classes=7)
    value, metrics = training_loss(4 * z, labels, params, config)
    np.testing.assert_allclose(metrics["z"], z, rtol=1e-5)
    expected = {
        "supcon": lambda: supcon(z, labels, 0.1, margin=0.1),
        "hscl": lambda: hscl(z, labels, 0.1, beta=0.3),
        "nt_xent": lambda: nt_xent(z, 0.1, margin=0.1),
        "aam_softmax": lambda: aam_softmax(z, params["weight"], labels, margin=0.2, scale=30.0),
        "sphereface2": lambda: sphereface2(
            z, params["weight"], jnp.float32(0), labels,
            margin=0.2, scale=30.0, own_share=0.7, power=3.0,
        ),
    }[kind]()  # fmt: skip
    assert value == pytest.approx(float(expected), rel=1e-5)
    learnt = {
        "supcon": {"temperature"},
        "aam_softmax": {"weight"},
        "sphereface2": {"weight", "bias"},
    }
    assert set(params) == learnt.get(kind, set())
    assert ("temperature" in metrics) == (kind not in ("aam_softmax", "sphereface2"))


def test_a_temperature_below_its_bound_is_moved_back_to_it():
    loss = Loss(min_temperature=0.02)
    for moved, kept in ((-3.0, 0.02), (0.01, 0.02), (0.5, 0.5)):
        params = bounded({"temperature": jnp.float32(moved)}, loss)
        assert params["temperature"] == np.float32(kept)
    assert bounded({"weight": jnp.ones(3)}, loss).keys() == {"weight"}


@pytest.mark.parametrize("kind", ["supcon", "hscl", "nt_xent", "aam_softmax", "sphereface2"])
@pytest.mark.parametrize("block", [None, 5])
def test_padding_counts_for_nothing(kind, block):
    rows, labels = embeddings(), np.tile(np.arange(6) // 2, 2)
    padded = np.concatenate([rows, np.random.default_rng(1).normal(size=(5, rows.shape[1]))])
    padded_labels = np.concatenate([labels, [0, 1, 2, 0, 1]])
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(3, rows.shape[1])))
    options = {} if kind in ("aam_softmax", "sphereface2") else {"block": block}

    def loss(z, labels, count):
        labels = jnp.asarray(labels)
        if kind == "supcon":
            return supcon(z, labels, 0.1, margin=0.1, rows=count, **options)
        if kind == "hscl":
            return hscl(z, labels, 0.1, beta=0.5, rows=count, **options)
        if kind == "nt_xent":
            return nt_xent(z, 0.1, margin=0.1, rows=count, **options)
        if kind == "sphereface2":
            return sphereface2(
                z, weight, jnp.float32(0), labels,
                margin=0.2, scale=30.0, own_share=0.7, power=3.0, rows=count,
            )  # fmt: skip
        return aam_softmax(z, weight, labels, margin=0.2, scale=30.0, rows=count)

    def value_and_gradient_of(z, labels, count):
        return value_and_gradient(lambda z: loss(z, labels, count), 0)(z.astype(np.float32))

    value, alone = value_and_gradient_of(rows, labels, None)
    mine, by_padded = value_and_gradient_of(padded, padded_labels, len(rows))
    assert mine == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(by_padded[: len(rows)], alone, atol=1e-6)
    assert not np.asarray(by_padded)[len(rows) :].any()


def test_supcon_computes_in_float32_whatever_comes_in():
    z, labels = jnp.asarray(embeddings(), jnp.bfloat16), jnp.tile(jnp.arange(6), 2)
    assert supcon(z, labels, 0.1).dtype == jnp.float32
    assert supcon(z, labels, 0.1) == supcon(z.astype(jnp.float32), labels, 0.1)


def test_a_zero_row_has_a_finite_gradient():
    slopes = gradient(lambda x: normalise(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(slopes).all()

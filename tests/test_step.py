import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from support import CONFIG, LABELS, REDIMNET2, RIRS, SHALLOW, audio, build

from chns_jax.common.errors import UserError
from chns_jax.common.vectors import unit
from chns_jax.config import (
    Augment,
    Config,
    Data,
    Encoder,
    Loss,
    Noise,
    Optimizer,
    Reverberation,
    Sampler,
    SpecAugment,
    Speed,
    ThinResNet,
    Training,
)
from chns_jax.devices.sharding import make_mesh, padded_rows
from chns_jax.embedding.embedder import embed_step
from chns_jax.encoders import make_encoder
from chns_jax.encoders.features import log_mel
from chns_jax.runs.state import sha256
from chns_jax.training import build as training_build
from chns_jax.training.augment import augment_audio, mask_spectrogram, slot_keys
from chns_jax.training.losses import training_loss
from chns_jax.training.optimizer import make_optimizer, schedule
from chns_jax.training.step import moving_average


def noisy(audio):
    rng = np.random.default_rng(9)
    noise = rng.normal(0, 1000, audio.shape).astype(np.int16)
    snr = np.where(np.arange(len(audio)) % 3, 10, np.inf).astype(np.float32)
    return {"audio": audio, "labels": LABELS, "noise": noise, "snr": snr}


AUGMENTED = Augment(
    noise=Noise(probability=0.5, root="somewhere"),
    reverberation=Reverberation(probability=0.5),
    speed=Speed(probability=0.5, new_speakers=True),
    spec_augment=SpecAugment(probability=0.5),
)


RESNET = Encoder(
    kind="thin_resnet",
    embedding=8,
    thin_resnet=ThinResNet(layers=(1, 1), filters=(8, 16)),
)


def replaced(training: dict, **parts) -> Config:
    """CONFIG with short crops, some keys of `training`, and other parts."""
    parts = {"data": Data(crop_seconds=0.2), **parts}
    training = dataclasses.replace(CONFIG.training, **training)
    return dataclasses.replace(CONFIG, training=training, **parts)


NO_DECAY = Optimizer(learning_rate=0.003, weight_decay=0.0)


@pytest.mark.parametrize(
    "encoder, kind, augment, micro_batch",
    [  # fewer rows than devices hold, below, are the harder case
        pytest.param(SHALLOW, "supcon", AUGMENTED, None, marks=pytest.mark.long),
        pytest.param(SHALLOW, "aam_softmax", Augment(), None, marks=pytest.mark.long),
        pytest.param(SHALLOW, "sphereface2", Augment(), None, marks=pytest.mark.long),
        pytest.param(SHALLOW, "supcon", AUGMENTED, 8, marks=pytest.mark.long),
        pytest.param(REDIMNET2, "supcon", Augment(), None, marks=pytest.mark.long),
    ],
)
def test_eight_devices_are_one(encoder, kind, augment, micro_batch):
    config = replaced(
        {"micro_batch": micro_batch},
        encoder=encoder, loss=Loss(kind=kind), augment=augment, optimizer=NO_DECAY,
    )  # fmt: skip
    states = {}
    for devices in (1, 8):
        _, _, state, step = build(config, devices)
        state, metrics = step(state, noisy(audio()))
        states[devices] = jax.device_get((metrics, state))
    (one, one_state), (eight, eight_state) = states[1], states[8]
    np.testing.assert_allclose(one["loss"], eight["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["z"], eight["z"], atol=1e-5)
    for part in ("batch_stats", "gradient"):
        of = {
            "batch_stats": lambda state: state.variables["batch_stats"],
            # The first moment after one step: a tenth of the gradient.
            "gradient": lambda state: optax.tree.get(state.optimizer, "mu"),
        }[part]
        leaves = jax.tree.leaves(of(one_state))
        largest = max(
            np.abs(leaf).max() for leaf in leaves
        )  # some gradients are zero but for noise
        for a, b in zip(leaves, jax.tree.leaves(of(eight_state)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest)


def gradient_of(state):
    """The gradient of the first step, without weight decay: ten times Adam's first moment."""
    return jax.tree.map(lambda mu: 10 * mu, optax.tree.get(state.optimizer, "mu"))


def assert_same(mine, theirs):
    """Trees equal to float accuracy of their largest value."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=3e-5 * largest), mine, theirs)


def test_micro_batches_have_the_gradient_of_their_definition():
    """One gradient through two passes of every second row, over crops augmented all at once."""
    augment = AUGMENTED
    config = replaced({"micro_batch": 8}, augment=augment, optimizer=NO_DECAY)
    _, encoder, state, step = build(config)
    batch = noisy(audio())
    seed, slot = config.training.seed, jnp.arange(16)

    @jax.jit
    def augmented(batch):
        crops, labels = augment_audio(
            {**batch, "slot": slot}, jnp.asarray(RIRS), augment,
            seed=seed, step=jnp.int32(0), samples=config.crop_samples, speakers=8, pairs=8,
        )  # fmt: skip
        frames = log_mel(crops, config.features)
        return mask_spectrogram(frames, augment.spec_augment, slot_keys(seed, 0, slot)), labels

    frames, labels = augmented(batch)
    before = state.variables["batch_stats"]

    def loss_of(params):
        statistics, embeddings = [], {}
        for i in range(2):
            variables = {"params": params["encoder"], "batch_stats": before}
            z, updated = encoder.apply(variables, frames[i::2], True, mutable=["batch_stats"])
            statistics.append(updated["batch_stats"])
            embeddings.update(zip(range(i, 16, 2), z, strict=True))
        stacked = jnp.stack([embeddings[row] for row in range(16)])
        loss, metrics = training_loss(stacked, labels, params["loss"], config.loss)
        return loss, (jax.tree.map(lambda *all: jnp.stack(all), *statistics), metrics["z"])

    gradient, (statistics, z) = jax.jit(jax.grad(loss_of, has_aux=True))(state.variables["params"])
    after, metrics = step(state, batch)
    assert_same(metrics["z"], z)
    assert_same(gradient_of(after), gradient)
    # One update, by the variance of all rows: those of the parts, and how their means vary.
    for path, (moved, parts) in flatten_dict(
        jax.tree.map(lambda *both: both, after.variables["batch_stats"], statistics)
    ).items():
        expected = parts.mean(0)
        if path[-1] == "var":
            means = flatten_dict(statistics)[*path[:-1], "mean"]
            expected = expected + 0.1 * (means / 0.1).var(0)
        np.testing.assert_allclose(moved, expected, rtol=0.02, atol=1e-4)


@pytest.mark.long
def test_one_micro_batch_is_the_plain_step():
    batch = noisy(audio())
    afters = {}
    for micro_batch in (None, 16):
        config = replaced({"micro_batch": micro_batch}, augment=AUGMENTED, optimizer=NO_DECAY)
        _, _, state, step = build(config)
        after, metrics = step(state, batch)
        afters[micro_batch] = (metrics, after.variables["batch_stats"], gradient_of(after))
    for mine, theirs in zip(afters[16], afters[None], strict=True):
        assert_same(mine, theirs)


def shapes(config):
    """Of the first state."""
    return training_build.build(config, 8, make_mesh(1)).shapes()


def compiled(config, devices=1, samples=16_000):
    """The compiled step of 16 rows."""
    made = training_build.build(config, 8, make_mesh(devices))
    batch = {
        "audio": jax.ShapeDtypeStruct((16, samples), np.int16),
        "labels": jax.ShapeDtypeStruct((16,), np.int32),
    }
    return made.update.lower(made.shapes(), batch, None).compile()


@pytest.mark.long
def test_micro_batches_take_less_memory():
    config = replaced({}, data=Data(crop_seconds=1.0))
    few = replaced({"micro_batch": 4}, data=Data(crop_seconds=1.0))
    whole, parts = (compiled(c).memory_analysis().temp_size_in_bytes for c in (config, few))
    assert parts < 0.4 * whole


MOVES = r" (all-gather|all-to-all|collective-permute)\("


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_no_audio_and_no_frames_change_their_device(micro_batch):
    text = compiled(replaced({"micro_batch": micro_batch}), devices=8, samples=4000).as_text()
    moves = [line for line in text.splitlines() if re.search(MOVES, line)]
    sizes = [math.prod(map(int, re.search(r"\[([\d,]*)\]", move)[1].split(","))) for move in moves]
    assert moves and max(sizes) <= 16 * 8, moves  # embeddings, (2b, d)


@pytest.mark.parametrize(
    "encoder",
    [SHALLOW, *(pytest.param(other, marks=pytest.mark.long) for other in (RESNET, REDIMNET2))],
    ids=lambda encoder: encoder.kind,
)
def test_bfloat16_is_near_float32_and_keeps_its_state_in_float32(encoder):
    batch = {"audio": audio(), "labels": LABELS}
    metrics, gradients = {}, {}
    for compute in ("float32", "bfloat16"):
        config = replaced({"compute": compute}, encoder=encoder, optimizer=NO_DECAY)
        _, _, state, step = build(config)
        after, metrics[compute] = step(state, batch)
        gradients[compute] = jnp.concatenate(
            [leaf.ravel() for leaf in jax.tree.leaves(gradient_of(after))]
        )
        dtypes = {leaf.dtype for leaf in jax.tree.leaves((after.variables, metrics[compute]))}
        assert dtypes == {jnp.dtype("float32")}
    one, other = gradients.values()
    assert jnp.vdot(one, other) > 0.99 * jnp.linalg.norm(one) * jnp.linalg.norm(other)
    float32, bfloat16 = metrics.values()
    np.testing.assert_allclose(bfloat16["loss"], float32["loss"], rtol=0.03)
    assert 1e-4 < np.abs(bfloat16["z"] - float32["z"]).max() < 0.2


@pytest.mark.parametrize(
    "encoder",
    [SHALLOW, *(pytest.param(other, marks=pytest.mark.long) for other in (RESNET, REDIMNET2))],
)
def test_activations_made_again_change_nothing_but_memory(encoder):
    """The bytes kept for the gradient are measured, as XLA makes everything once on a CPU."""
    batch = {"audio": audio(), "labels": LABELS}
    afters, states, kept = {}, {}, {}
    for remat in (False, True):
        config = replaced({"remat": remat}, encoder=encoder, optimizer=NO_DECAY)
        _, module, states[remat], step = build(config)
        after, metrics = step(states[False], batch)  # of the encoder that keeps them
        afters[remat] = (metrics, after.variables["batch_stats"], gradient_of(after))
        statistics = states[remat].variables["batch_stats"]

        def of(params, module=module, statistics=statistics):
            variables = {"params": params, "batch_stats": statistics}
            return module.apply(variables, jnp.zeros((16, 300, 20)), True, mutable=["batch_stats"])[
                0
            ]

        pullback = jax.eval_shape(
            lambda params, of=of: jax.vjp(of, params)[1],
            states[remat].variables["params"]["encoder"],
        )
        kept[remat] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))
    assert sha256(states[True].variables) == sha256(states[False].variables)
    for mine, theirs in zip(afters[True], afters[False], strict=True):
        assert_same(mine, theirs)
    assert kept[True] < 0.8 * kept[False]


def test_another_speed_is_another_class():
    augment = Augment(speed=Speed(probability=1.0, factors=(0.8, 1.25), new_speakers=True))
    config = dataclasses.replace(
        CONFIG, loss=Loss(kind="aam_softmax"), augment=augment, data=Data(crop_seconds=0.2)
    )
    assert shapes(config).variables["params"]["loss"]["weight"].shape == (3 * 8, 8)


NEAREST = Loss(kind="aam_softmax", sub_centres=2, top_k=3, aam_margin_grows=(5, 20))
SGD = Optimizer(kind="sgd", learning_rate=0.03, decay="exponential", last_learning_rate=0.01)


@pytest.mark.parametrize(
    "training, parts",
    [
        ({}, {}),
        pytest.param({"compute": "bfloat16"}, {}, marks=pytest.mark.long),
        pytest.param({}, {"loss": NEAREST}, marks=pytest.mark.long),
        pytest.param(
            {}, {"loss": Loss(kind="sphereface2"), "optimizer": SGD}, marks=pytest.mark.long
        ),
        pytest.param(
            {}, {"loss": Loss(kind="hscl", joint="aam_softmax", joint_weight=0.5)},
            marks=pytest.mark.long,
        ),
    ],
    ids=["float32", "bfloat16", "aam_softmax", "sphereface2", "joint"],
)  # fmt: skip
def test_training_separates_the_speakers(training, parts):
    training = dataclasses.replace(CONFIG.training, **training)
    config = dataclasses.replace(CONFIG, training=training, **parts)
    _, _, state, step = build(config)
    encoder = make_encoder(config.encoder)
    losses = []
    for i in range(40):
        state, metrics = step(state, {"audio": audio(i), "labels": LABELS})
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 40 and np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    np.testing.assert_allclose(np.linalg.norm(metrics["z"], axis=1), 1, atol=1e-5)
    embed = jax.jit(partial(embed_step, config=CONFIG, encoder=encoder))
    one, alone = (embed(state.variables, rows) for rows in (audio(99), audio(99)[3:4]))
    np.testing.assert_allclose(one[3:4], alone, rtol=1e-4, atol=1e-5)  # inference: rows are apart


@pytest.mark.long
def test_redimnet2_separates_the_speakers():
    config = replaced(
        {}, encoder=REDIMNET2, loss=Loss(), augment=Augment(), optimizer=NO_DECAY
    )  # as on eight devices
    _, _, state, step = build(config)
    losses = []
    for i in range(20):
        state, metrics = step(state, {"audio": audio(i), "labels": LABELS})
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < 0.8 * losses[0]


def test_the_state_is_a_function_of_the_seed():
    one, same = build()[2], build.__wrapped__()[2]
    assert sha256(one.variables) == sha256(same.variables)
    seeded = dataclasses.replace(CONFIG, training=Training(steps=40, seed=2))
    assert sha256(build(seeded)[2].variables) != sha256(one.variables)


def test_sha256_sees_every_value():
    variables = jax.device_get(build()[2].variables)
    before = sha256(variables)
    stats = variables["batch_stats"]["blocks_0"]["norm"]
    stats["mean"] = stats["mean"] + np.float32(1e-7)
    assert sha256(variables) != before


def test_the_moving_average_forgets_the_start():
    """Its share of the average is 2 / 11 after one update, and 0.4 once there were as many."""
    average, expected = {"w": jnp.float32(100)}, 100.0
    for step, value in enumerate([1.0, 5.0, -2.0, 8.0, 3.0, 0.0]):
        average = moving_average(average, {"w": jnp.float32(value)}, step, 0.4)
        kept = (2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4)[step]
        expected = kept * expected + (1 - kept) * value
        assert average["w"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_the_moving_average_is_that_of_all_updates():
    """Of parameters and statistics; the updates are those without it."""
    _, _, state, step = build(replaced({"average_decay": 0.4}, optimizer=NO_DECAY))
    _, _, plain, plain_step = build(replaced({}, optimizer=NO_DECAY))
    assert sha256(state.average) == sha256(state.variables)
    expected = state.average
    plain, _ = plain_step(plain, {"audio": audio(), "labels": LABELS})
    for n in range(5):
        state, _ = step(state, {"audio": audio(n), "labels": LABELS})
        expected = moving_average(expected, state.variables, n, 0.4)
        if n == 0:
            assert_same(gradient_of(state), gradient_of(plain))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, state.average, expected)
    assert sha256(state.evaluated) == sha256(state.average) != sha256(state.variables)
    assert sha256(plain.evaluated) == sha256(plain.variables)


def test_a_fixed_temperature_is_no_parameter():
    fixed = dataclasses.replace(CONFIG, loss=Loss(temperature=0.3, learn_temperature=False))
    assert set(shapes(fixed).variables["params"]) == {"encoder"}


def test_the_learning_rate_rises_then_falls_as_a_cosine():
    optimizer = dataclasses.replace(CONFIG.optimizer, learning_rate=0.01, warmup=0.1)
    rate = schedule(optimizer, 100)
    assert rate(0) == 0 and rate(5) == pytest.approx(0.005) and rate(10) == pytest.approx(0.01)
    for step in (30, 55, 99):
        expected = 0.005 * (1 + np.cos(np.pi * (step - 10) / 90))
        assert rate(step) == pytest.approx(expected, rel=1e-4)
    assert schedule(dataclasses.replace(optimizer, warmup=0.0), 100)(0) == pytest.approx(0.01)


def test_weight_decay_is_added_to_the_gradient_as_pytorch_does():
    """Adam of g + w * decay, by its definition."""
    optimizer = dataclasses.replace(
        CONFIG.optimizer, learning_rate=0.1, weight_decay=0.5, warmup=0.0
    )
    tx = make_optimizer(optimizer, 10)
    weight, first, second = 2.0, 0.0, 0.0
    params, state = jnp.float32(weight), tx.init(jnp.float32(weight))
    for t, gradient in enumerate([0.3, -2.0, 0.1], start=1):
        update, state = tx.update(jnp.float32(gradient), state, params)
        params = params + update
        g = gradient + 0.5 * weight
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        rate = float(schedule(optimizer, 10)(t - 1))
        weight -= rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        assert params == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize(
    "kind, micro_batch",
    [
        ("supcon", None),
        pytest.param("supcon", 5, marks=pytest.mark.long),
        pytest.param("aam_softmax", None, marks=pytest.mark.long),
        pytest.param("aam_softmax", 5, marks=pytest.mark.long),
    ],
)
def test_any_number_of_devices_is_one(kind, micro_batch):
    """Ten rows on eight devices: padding is in no loss, no gradient and no statistics."""
    config = replaced(
        {"micro_batch": micro_batch},
        loss=Loss(kind=kind), augment=AUGMENTED, sampler=Sampler(speakers=5),
    )  # fmt: skip
    batch = jax.tree.map(lambda rows: np.concatenate([rows[:5], rows[8:13]]), noisy(audio()))
    afters = {}
    for devices in (1, 8):
        _, _, state, step = build(config, devices)
        after, metrics = step(state, batch)
        assert metrics["z"].shape == (10, 8)
        afters[devices] = jax.device_get((metrics, after.variables["batch_stats"]))
        afters[devices] += (jax.device_get(gradient_of(after)),)
    np.testing.assert_allclose(afters[8][0]["loss"], afters[1][0]["loss"], rtol=1e-5)
    for mine, theirs in zip(afters[8], afters[1], strict=True):
        assert_same(mine, theirs)


def test_rows_are_filled_up_for_the_devices():
    with pytest.raises(UserError, match="training.devices is 99"):
        make_mesh(99)
    assert [padded_rows(make_mesh(n), 1300) for n in (1, 7, 8)] == [1300, 1302, 1304]
    assert padded_rows(make_mesh(8), 1300, 130) == 10 * 136


CLUSTERED = Sampler(speakers=8, hard_ratio=0.5)


@pytest.mark.long
def test_easy_rows_alone_make_the_statistics():
    config = replaced({"batch_statistics": "easy"}, sampler=CLUSTERED)
    batch = {"audio": audio(), "labels": LABELS}
    _, _, state, step = build(config)
    before, _ = step(state, batch)
    after, _ = step(state, batch, clustered=True)
    easy = np.r_[4:8, 12:16]  # of each view, the first half are from clusters
    alone = {"audio": batch["audio"][np.r_[easy, easy]], "labels": LABELS}
    expected, _ = step(state, alone)
    first = ("blocks_0", "norm", "mean")
    mine, theirs, all_rows = (
        flatten_dict(x.variables["batch_stats"])[first] for x in (after, expected, before)
    )
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    assert np.abs(mine - all_rows).max() > 1e-4


def test_running_statistics_stay_once_batches_are_from_clusters():
    config = replaced({"batch_statistics": "running"}, sampler=CLUSTERED)
    batch = {"audio": audio(), "labels": LABELS}
    _, encoder, state, step = build(config)
    state, _ = step(state, batch)
    after, metrics = step(state, batch, clustered=True)
    statistics = (x.variables["batch_stats"] for x in (after, state))
    jax.tree.map(np.testing.assert_array_equal, *statistics)
    crops = jnp.asarray(batch["audio"][:, :3200])
    z = jax.jit(partial(embed_step, config=config, encoder=encoder))(state.variables, crops)
    np.testing.assert_allclose(metrics["z"], unit(np.asarray(z)), atol=1e-5)

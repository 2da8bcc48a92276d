import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax.config import Ecapa, Encoder, ThinResNet
from chns_jax.encoders import make_encoder
from chns_jax.encoders.initial import initial_variables
from chns_jax.encoders.layers import (
    AttentiveStatistics,
    BatchNorm,
    Conv1d,
    SqueezeExcitation,
    torch_uniform,
)
from chns_jax.interop.torch_weights import from_torch, infer_encoder, to_torch

SMALL = Encoder(
    embedding=8,
    ecapa=Ecapa(
        channels=(8, 8, 8, 16), kernel_sizes=(5, 3, 3, 1), dilations=(1, 2, 3, 1),
        res2net_scale=4, se_channels=4, attention_channels=4,
    ),
)  # fmt: skip
BANDS = 20
# As users compile, without the flags of conftest.py: where rounding matters.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


@pytest.fixture(scope="module")
def speechbrain(golden):
    """SpeechBrain's ECAPA-TDNN with random weights: arrays, our encoder, our variables."""
    arrays = golden("ecapa_small")
    theirs = json.loads(str(arrays["config"]))
    config = Encoder(
        embedding=theirs["lin_neurons"],
        ecapa=Ecapa(
            channels=tuple(theirs["channels"]),
            kernel_sizes=tuple(theirs["kernel_sizes"]),
            dilations=tuple(theirs["dilations"]),
            res2net_scale=theirs["res2net_scale"],
            se_channels=theirs["se_channels"],
            attention_channels=theirs["attention_channels"],
        ),
    )
    return arrays, config, from_torch(part(arrays, "state."), config)


@pytest.mark.parametrize("kind", ["ecapa_tdnn", "thin_resnet"])
def test_initial_variables_are_those_of_flax(kind):
    ecapa = Ecapa((16, 16, 16, 16, 32), se_channels=8, attention_channels=8)
    resnet = ThinResNet((1, 1, 1, 1), (4, 4, 8, 8))
    encoder = make_encoder(Encoder(kind, embedding=8, ecapa=ecapa, thin_resnet=resnet))
    x = jnp.zeros((1, 40, BANDS))
    of_flax = jax.jit(lambda: encoder.init(jax.random.key(3), x, False))()
    ours = initial_variables(encoder, 3, 40, BANDS)
    assert jax.tree.structure(ours) == jax.tree.structure(of_flax)
    for one, other in zip(*map(jax.tree.leaves, (ours, of_flax)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_draws_of_weights_are_those_of_jax_whatever_their_number():
    for shape in ((3, 2, 2), (5, 80, 16), (7,), (1, 300, 70)):
        bound = max(1, math.prod(shape[:-1])) ** -0.5
        expected = jax.random.uniform(jax.random.key(5), shape, jnp.float32, -bound, bound)
        np.testing.assert_array_equal(torch_uniform(jax.random.key(5), shape), expected)


def initial(encoder, frames, rows=1, bands=BANDS, seed=0):
    """Variables, and normal features (rows, frames, bands)."""
    x = normal(rows, frames, bands, seed=seed)
    return initial_variables(encoder, 0, frames, bands), x


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def undo_step(after, after_once_more):
    """Statistics before a step: after = 0.9 before + 0.1 batch, and so once more."""
    return (1.9 * after - after_once_more) / 0.9


def assert_gradients(
    variables: dict,
    config: Encoder,
    arrays: dict,
    dtype: str = "float64",
    within: float = 1e-4,
    bands: int = 80,
) -> None:
    """Where the reference has a gradient of the outputs' sum of squares, ours is the same.

    In float32, rounding may put inputs of a ReLU that lie within 1e-5 of zero on its other side,
    and one of them moves the gradients of the first layers by some per cent.
    """
    with jax.enable_x64(dtype == "float64"):
        encoder = make_encoder(config, dtype=dtype)
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        x = jnp.asarray(arrays["train_x"], dtype)

        def sum_of_squares(params):
            tree = variables | {"params": params}
            return jnp.square(encoder.apply(tree, x, True, mutable=["batch_stats"])[0]).sum()

        options = OPTIMISED if dtype == "float32" else None
        compiled = jax.jit(jax.grad(sum_of_squares), compiler_options=options)
        gradient = compiled(variables["params"])
    mine = to_torch(
        {"params": gradient, "batch_stats": variables["batch_stats"]}, config, bands=bands
    )
    theirs = part(arrays, "grad_sumsq.")
    assert theirs
    for name, value in theirs.items():
        assert relative(mine[name], value) < within, name


def assert_outputs(variables: dict, config: Encoder, arrays: dict, given: list[str]) -> None:
    """In training the outputs are the reference's, and so they are in evaluation.

    The stored statistics are those after the training batch; the outputs in evaluation mode are of
    those before it. So this checks the update of the statistics as well: undone, it must give the
    outputs.
    """
    encoder = make_encoder(config)
    train = jax.jit(lambda variables, x: encoder.apply(variables, x, True, mutable=["batch_stats"]))
    evaluate = jax.jit(lambda variables, x: encoder.apply(variables, x, False))
    output, updated = train(variables, jnp.asarray(arrays["train_x"]))
    assert relative(output, arrays["train_y"]) < 1e-4

    stats = jax.tree.map(undo_step, variables["batch_stats"], updated["batch_stats"])
    before = {"params": variables["params"], "batch_stats": stats}
    for i in given:
        x = jnp.asarray(arrays[f"x{i}"])
        assert relative(evaluate(before, x), arrays[f"y{i}"]) < 1e-4


def relative(mine, theirs):
    return np.abs(mine - theirs).max() / np.abs(theirs).max()


def test_ecapa_is_speechbrains_in_training_and_after(speechbrain):
    arrays, config, variables = speechbrain
    assert_outputs(variables, config, arrays, given="012")


def test_ecapa_gradients_are_speechbrains(speechbrain):
    arrays, config, variables = speechbrain
    assert_gradients(variables, config, arrays)


@pytest.mark.long
def test_ecapa_gradients_are_speechbrains_in_float32_too(speechbrain):
    arrays, config, variables = speechbrain
    assert_gradients(variables, config, arrays, "float32", within=1e-3)


def thin_resnet(arrays) -> tuple[dict, Encoder]:
    """The variables and the config of a stored ThinResNet of the authors."""
    theirs = json.loads(str(arrays["config"]))
    options = ThinResNet(
        layers=tuple(theirs["layers"]),
        filters=tuple(theirs["num_filters"]),
        pooling=theirs["encoder_type"].lower(),
        attend_over={"B1TF": "frequency", "B1FT": "time"}[theirs["input"]],
    )
    config = Encoder(kind="thin_resnet", embedding=theirs["nOut"], thin_resnet=options)
    return from_torch(part(arrays, "state."), config), config


@pytest.mark.parametrize("name", ["thin_resnet_asp_official", "thin_resnet_sap_clova"])
def test_thin_resnet_is_the_authors(golden, name):
    arrays = golden(name)
    assert_outputs(*thin_resnet(arrays), arrays, given="1")


@pytest.mark.parametrize(
    "name",
    ["thin_resnet_sap_clova", pytest.param("thin_resnet_asp_official", marks=pytest.mark.long)],
)
def test_thin_resnet_gradients_are_the_authors(golden, name):
    arrays = golden(name)
    assert_gradients(*thin_resnet(arrays), arrays)


@pytest.fixture(scope="module")
def wespeaker(golden):
    """wespeaker's ReDimNet2 with random weights: arrays, bands, our encoder, our variables."""
    arrays = golden("redimnet2_small")
    state, bands = part(arrays, "state."), json.loads(str(arrays["config"]))["F"]
    config = infer_encoder(state)
    return arrays, bands, config, from_torch(state, config, bands=bands)


def test_redimnet2_is_wespeakers_in_training_and_after(wespeaker):
    arrays, bands, config, variables = wespeaker
    encoder = make_encoder(config)
    evaluate = jax.jit(lambda variables, x: encoder.apply(variables, x, False))
    x = jnp.asarray(arrays["x1"])  # of 57 frames
    assert relative(evaluate(variables, x), arrays["y1"]) < 1e-4
    train = jax.jit(lambda variables, x: encoder.apply(variables, x, True, mutable=["batch_stats"]))
    output, updated = train(variables, jnp.asarray(arrays["train_x"]))
    assert relative(output, arrays["train_y"]) < 1e-4
    after = to_torch({"params": variables["params"], **updated}, config, bands=bands)
    theirs = part(arrays, "after.")
    assert theirs
    for name, value in theirs.items():
        assert relative(after[name], value) < 1e-5, name


@pytest.mark.long
def test_redimnet2_gradients_are_wespeakers(wespeaker):
    arrays, bands, config, variables = wespeaker
    assert_gradients(variables, config, arrays, bands=bands)


def test_the_mobile_model_has_the_papers_size():
    shapes = jax.eval_shape(
        lambda: make_encoder(Encoder()).init(jax.random.key(0), jnp.zeros((1, 32, 80)), False)
    )
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 2_049_952


def test_convolution_is_the_plain_sum():
    x = normal(2, 9, 3)
    layer = Conv1d(4, kernel_size=3, dilation=2)
    variables = layer.init(jax.random.key(0), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    padded = np.pad(x, ((0, 0), (2, 2), (0, 0)), mode="reflect")
    expected = np.zeros((2, 9, 4))
    for t in range(9):
        expected[:, t] = sum(padded[:, t + 2 * k] @ kernel[k] for k in range(3)) + bias
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_attentive_pooling_is_the_plain_sum_over_time():
    """Weights of a channel sum to one over the frames; they weigh mean and deviation."""
    x = normal(2, 7, 4)
    layer = AttentiveStatistics(3)
    variables = layer.init(jax.random.key(1), x, False)
    params = jax.device_get(variables["params"])
    expected = np.zeros((2, 8))
    for row in range(2):
        context = np.concatenate([x[row].mean(0), np.sqrt(x[row].var(0))])
        score = np.zeros((7, 4))
        for t in range(7):
            hidden = np.concatenate([x[row, t], context]) @ params["tdnn"]["conv"]["kernel"][0]
            hidden = np.maximum(0, hidden + params["tdnn"]["conv"]["bias"]) / np.sqrt(1 + 1e-5)
            score[t] = np.tanh(hidden) @ params["conv"]["kernel"][0] + params["conv"]["bias"]
        for c in range(4):
            weight = np.exp(score[:, c]) / np.exp(score[:, c]).sum()
            mean = (weight * x[row, :, c]).sum()
            expected[row, c] = mean
            expected[row, 4 + c] = np.sqrt((weight * (x[row, :, c] - mean) ** 2).sum())
    np.testing.assert_allclose(layer.apply(variables, x, False), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_encoder_gradients_are_finite_differences():
    encoder, h = make_encoder(SMALL), 2e-4
    variables, x = initial(encoder, frames=40, rows=4)
    weight = normal(4, 8, seed=1)

    @jax.jit
    def value(params):
        tree = {"params": params, "batch_stats": variables["batch_stats"]}
        return (weight * encoder.apply(tree, x, True, mutable=["batch_stats"])[0]).sum()

    params = variables["params"]
    gradient = jax.jit(jax.grad(value))(params)
    # Along its own direction the gradient is steepest, and rounding matters least.
    length = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
    moved = [
        jax.tree.map(lambda p, g, side=side: p + side * h * g / length, params, gradient)
        for side in (1, -1)
    ]
    slope = (value(moved[0]) - value(moved[1])) / (2 * h)
    assert slope == pytest.approx(float(length), rel=0.02)


def test_a_convolution_says_when_frames_are_too_few():
    with pytest.raises(ValueError, match="2 frames are too few"):
        Conv1d(4, kernel_size=3, dilation=2).init(jax.random.key(0), jnp.zeros((1, 2, 3)))


def test_batch_norm_statistics_are_pytorchs():
    x = 2 + 3 * normal(4, 5, 2)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, True)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)  # init is not a step
    y, updated = layer.apply(variables, x, True, mutable=["batch_stats"])
    flat = np.asarray(x).reshape(-1, 2)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    unbiased = flat.var(0, ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y).reshape(-1, 2).std(0), 1, atol=1e-3)


def test_thin_resnet_attends_over_time_by_default():
    encoder = make_encoder(Encoder(kind="thin_resnet", embedding=8))
    x = jnp.zeros((1, 48, 80))
    frames = {}
    for over in ("time", "frequency"):
        option = dataclasses.replace(encoder, attend_over=over)

        def seen(option=option):
            variables = option.init(jax.random.key(0), x, False)
            return option.apply(variables, x, False, capture_intermediates=True)[1]

        intermediates = jax.eval_shape(seen)["intermediates"]
        frames[over] = intermediates["sap_linear"]["__call__"][0].shape[1]
    assert frames == {"time": 12, "frequency": 20}  # a quarter of 48 frames, of 80 bands


def test_in_evaluation_rows_do_not_see_each_other_and_every_frame_counts():
    encoder = make_encoder(SMALL)
    variables, x = initial(encoder, frames=40, rows=3)

    def first(x):
        return encoder.apply(variables, x, False)[0].sum()

    gradient = np.abs(jax.jit(jax.grad(first))(x)).sum(axis=2)
    assert (gradient[0] > 0).all()
    assert (gradient[1:] == 0).all()


def test_sums_over_frames_are_float32_whatever_is_convolved():
    """19,200 frames, each with a gradient of 1: in bfloat16 the sum would stop at 256."""
    x = jnp.ones((64, 300, 8), jnp.bfloat16)
    conv, gate, norm = Conv1d(8, kernel_size=3), SqueezeExcitation(4), BatchNorm()
    for layer in (conv, gate):
        assert layer.apply(layer.init(jax.random.key(0), x), x).dtype == jnp.bfloat16

    variables = conv.init(jax.random.key(0), x)
    gradient = jax.grad(lambda v: conv.apply(v, x).astype(jnp.float32).sum())(variables)
    np.testing.assert_allclose(gradient["params"]["bias"], 64 * 300)

    variables = norm.init(jax.random.key(0), x, True)
    noise = (3 + normal(*x.shape)).astype(jnp.bfloat16)
    y, updated = norm.apply(variables, noise, True, mutable=["batch_stats"])
    exact = np.asarray(noise, np.float64).reshape(-1, 8)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * exact.mean(0), rtol=1e-5)
    assert y.dtype == jnp.bfloat16
    gradient = jax.grad(lambda v: norm.apply(v, x, False).astype(jnp.float32).sum())(variables)
    np.testing.assert_allclose(gradient["params"]["bias"], 64 * 300)


def test_batch_norm_has_the_gradient_of_its_definition():
    x, dy = 3 + normal(2, 4, 9, 5)
    params = {"scale": normal(5, seed=1), "bias": normal(5, seed=2)}
    stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}

    def definition(params, x):
        mean, var = x.mean((0, 1)), x.var((0, 1))
        return params["scale"] * (x - mean) / jnp.sqrt(var + 1e-5) + params["bias"]

    def layer(params, x):
        variables = {"params": params, "batch_stats": stats}
        return BatchNorm().apply(variables, x, True, mutable=["batch_stats"])[0]

    y, gradient = jax.vjp(layer, params, x)
    expected_y, expected = jax.vjp(definition, params, x)
    np.testing.assert_allclose(y, expected_y, atol=1e-5)
    for mine, theirs in zip(
        jax.tree.leaves(gradient(dy)), jax.tree.leaves(expected(dy)), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_constant_channels_are_channels_that_repeat():
    x, constant = normal(2, 7, 3), normal(2, 1, 4, seed=1)
    repeated = jnp.concatenate([x, jnp.broadcast_to(constant, (2, 7, 4))], axis=-1)
    conv = Conv1d(5)
    variables = conv.init(jax.random.key(0), repeated)
    assert variables["params"]["kernel"].shape == (1, 7, 5)
    expected = conv.apply(variables, repeated)
    np.testing.assert_allclose(conv.apply(variables, x, constant=constant), expected, atol=1e-6)

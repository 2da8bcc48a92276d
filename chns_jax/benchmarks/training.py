"""Training steps, forward passes and features, against PyTorch and against a matrix product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chns_jax.benchmarks.measure import Row, Sizes, alternate, faster, torch_is_here
from chns_jax.config import Ecapa, Encoder, Features, Loss, Optimizer, ThinResNet
from chns_jax.encoders import make_encoder
from chns_jax.encoders.features import log_mel
from chns_jax.training.losses import init_params, training_loss
from chns_jax.training.optimizer import make_optimizer

NAMES = {"ecapa_tdnn": "mobile ECAPA-TDNN", "thin_resnet": "ThinResNet-34"}
OTHERS = {"ecapa_tdnn": "SpeechBrain", "thin_resnet": "PyTorch"}
FASTER = {"ecapa_tdnn": 2.0, "thin_resnet": 1.0}  # than PyTorch: the target
LEAST_SHARE = {"ecapa_tdnn": 0.5}  # of the rate of a matrix product: the target
BANDS = 80
Kind = Literal["ecapa_tdnn", "thin_resnet"]


def ecapa(sizes: Sizes) -> Iterator[Row]:
    """The mobile ECAPA-TDNN's step and forward pass."""
    yield from _encoder("ecapa_tdnn", sizes)


def thin_resnet(sizes: Sizes) -> Iterator[Row]:
    """The ThinResNet-34's step and forward pass."""
    yield from _encoder("thin_resnet", sizes)


def features(sizes: Sizes) -> Iterator[Row]:
    """Log-mel of a batch."""
    config, rows = Features(), sizes.rows["ecapa_tdnn"]
    samples = (sizes.frames - 1) * config.hop
    waveform = np.random.default_rng(0).normal(0, 0.1, (rows, samples)).astype(np.float32)
    compute = jax.jit(lambda waveform: log_mel(waveform, config))
    functions = {"ours": lambda: compute(waveform).block_until_ready()}
    if torch_is_here():
        import torch
        from speechbrain.lobes.features import Fbank

        fbank = Fbank(sample_rate=config.sample_rate, n_mels=config.bands)
        of_torch = torch.from_numpy(waveform)
        functions["theirs"] = lambda: fbank(of_torch)
    seconds = alternate(functions, sizes.repeats)
    what = f"log-mel, {rows} x {samples / config.sample_rate:g} s"
    yield _against(what, seconds, "SpeechBrain's Fbank", None)


def make_steps(
    encoder: Encoder, optimizer: Optimizer, x: np.ndarray, labels: np.ndarray
) -> tuple[Callable[[], object], Callable[[], object], float]:
    """A training step of SupCon and Adam on log-mel `x` (2b, t, f), the forward pass alone, and the
    step's floating-point operations."""
    module, loss = make_encoder(encoder), Loss(kind="supcon")
    tx = make_optimizer(optimizer, 1000)
    frames, speakers = jnp.asarray(x), jnp.asarray(labels)
    variables = jax.jit(lambda: module.init(jax.random.key(0), frames[:1], False))()
    params = {
        "encoder": variables["params"],
        "loss": init_params(
            loss, jax.random.key(1), embedding=encoder.embedding, classes=len(labels)
        ),
    }

    def update(state, x):
        params, batch_stats, moments = state

        def loss_of(params):
            tree = {"params": params["encoder"], "batch_stats": batch_stats}
            embedding, updated = module.apply(tree, x, True, mutable=["batch_stats"])
            return training_loss(embedding, speakers, params["loss"], loss)[0], updated

        (value, updated), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, moments = tx.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), updated["batch_stats"], moments), value

    states = [jax.device_put((params, variables["batch_stats"], tx.init(params)))]
    forward = jax.jit(lambda variables, x: module.apply(variables, x, False))
    kept = jax.tree.map(jnp.copy, variables)  # the step is given its own arrays to overwrite
    compiled = jax.jit(update, donate_argnums=0).lower(states[0], frames).compile()

    def step() -> float:
        states[0], value = compiled(states[0], frames)
        return float(value)  # waits for the device

    flops = (compiled.cost_analysis() or {})["flops"]
    return step, lambda: forward(kept, frames).block_until_ready(), flops


def encoder_of(kind: Kind, sizes: Sizes) -> Encoder:
    """The encoder that is measured."""
    return Encoder(
        kind=kind,
        ecapa=Ecapa(channels=sizes.channels, res2net_scale=sizes.res2net_scale),
        thin_resnet=ThinResNet(layers=sizes.layers, filters=sizes.filters),
    )


def batch_of(kind: str, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel (2b, t, f) and labels, two rows of each speaker."""
    rows = sizes.rows[kind]
    x = np.random.default_rng(0).normal(size=(rows, sizes.frames, BANDS)).astype(np.float32)
    return x, np.tile(np.arange(rows // 2), 2)


def _encoder(kind: Kind, sizes: Sizes) -> Iterator[Row]:
    encoder, optimizer = encoder_of(kind, sizes), Optimizer()
    x, labels = batch_of(kind, sizes)
    steps, forwards = {}, {}
    steps["ours"], forwards["ours"], flops = make_steps(encoder, optimizer, x, labels)
    if torch_is_here():
        import torch

        from chns_jax.benchmarks import torch_models

        on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        device = "cuda" if on_gpu else "cpu"
        steps["theirs"], forwards["theirs"] = torch_models.make_steps(
            encoder, optimizer, x, labels, device
        )
    matrix = jnp.ones((sizes.matrix, sizes.matrix))
    product = jax.jit(lambda a: a @ a)
    steps["product"] = lambda: product(matrix).block_until_ready()

    seconds = alternate(steps, sizes.repeats)
    name, size = NAMES[kind], f"{len(x)} x {sizes.frames} frames"
    yield _against(f"{name} training step, {size}", seconds, OTHERS[kind], FASTER[kind])
    if kind in LEAST_SHARE:
        rate = 2 * sizes.matrix**3 / seconds["product"]
        share, least = flops / seconds["ours"] / rate, LEAST_SHARE[kind]
        other, target = "matrix product", f">= {least:g}"
        yield Row(
            f"{name} training step's rate", flops / seconds["ours"] / 1e9, "GFLOP/s", other,
            rate / 1e9, share, target, share >= least,
        )  # fmt: skip
    seconds = alternate(forwards, sizes.repeats)
    yield _against(f"{name} forward pass, {size}", seconds, OTHERS[kind], None)


def _against(what: str, seconds: dict[str, float], other: str, target: float | None) -> Row:
    if "theirs" not in seconds:
        return Row(what, seconds["ours"], "s")
    return faster(what, seconds["ours"], other, seconds["theirs"], target)

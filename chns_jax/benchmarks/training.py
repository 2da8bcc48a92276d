"""Training steps, forward passes and features, against PyTorch and against a matrix product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from chns_jax.benchmarks.measure import Row, Sizes, alternate, faster, of_torch
from chns_jax.config import Config, Data, Ecapa, Encoder, Features, Sampler, ThinResNet, Training
from chns_jax.devices.sharding import make_mesh, put
from chns_jax.embedding.embedder import embed_step
from chns_jax.encoders import make_encoder
from chns_jax.encoders.features import log_mel
from chns_jax.training.build import build

NAMES = {
    "ecapa_tdnn": "mobile ECAPA-TDNN",
    "thin_resnet": "ThinResNet-34",
    "redimnet2": "ReDimNet2-B1",
}
LOG_MEL = {"redimnet2": Features(kind="redimnet2", bands=72, f_min=20, f_max=7600)}
OTHERS = {"ecapa_tdnn": "SpeechBrain", "thin_resnet": "PyTorch", "redimnet2": "PyTorch"}
FASTER = {"ecapa_tdnn": 2.0, "thin_resnet": 1.0, "redimnet2": 1.0}  # than PyTorch: the target
LEAST_SHARE = {"ecapa_tdnn": 0.5}  # of the rate of a matrix product: the target
Kind = Literal["ecapa_tdnn", "thin_resnet", "redimnet2"]


def ecapa(sizes: Sizes) -> Iterator[Row]:
    """The mobile ECAPA-TDNN's step and forward pass."""
    yield from _encoder("ecapa_tdnn", sizes)


def thin_resnet(sizes: Sizes) -> Iterator[Row]:
    """The ThinResNet-34's step and forward pass."""
    yield from _encoder("thin_resnet", sizes)


def redimnet2(sizes: Sizes) -> Iterator[Row]:
    """The ReDimNet2-B1's step and forward pass."""
    yield from _encoder("redimnet2", sizes)


def features(sizes: Sizes) -> Iterator[Row]:
    """Log-mel of a batch."""
    config, rows = Features(), sizes.rows["ecapa_tdnn"]
    samples = (sizes.frames - 1) * config.hop
    waveform = np.random.default_rng(0).normal(0, 0.1, (rows, samples)).astype(np.float32)
    compute = jax.jit(lambda waveform: log_mel(waveform, config))
    ours = {"log-mel": lambda: compute(waveform).block_until_ready()}
    with of_torch("make_log_mel", config, waveform) as theirs:
        seconds = alternate(ours | theirs, sizes.repeats, untimed=1)
    what = f"log-mel, {rows} x {samples / config.sample_rate:g} s"
    yield _against(what, "log-mel", seconds, "SpeechBrain's Fbank", None)


def make_steps(
    config: Config, audio: np.ndarray, labels: np.ndarray
) -> tuple[Callable[[], object], Callable[..., object], float]:
    """The training step of a config on crops (2b, s) int16, and embedding them, or others that are
    given, in inference mode, both from memory of the host on, log-mel included; and the step's
    floating-point operations."""
    mesh = make_mesh(1)
    built, batch = build(config, len(labels), mesh), {"audio": audio, "labels": labels}
    states = [built.init()]
    update = built.update.lower(states[0], built.put(batch), None).compile()
    flops = (update.cost_analysis() or {})["flops"]
    # The step is given its own arrays to overwrite.
    kept = jax.tree.map(jnp.copy, states[0].variables)
    encoder = make_encoder(config.encoder)
    embed = jax.jit(partial(embed_step, config=config, encoder=encoder))

    def step() -> float:
        states[0], metrics = update(states[0], built.put(batch), None)
        return float(metrics["loss"])  # waits for the device

    def forward(crops: np.ndarray = audio) -> jax.Array:
        return embed(kept, put(mesh, crops)).block_until_ready()

    return step, forward, flops


def config_of(kind: Kind, sizes: Sizes) -> Config:
    """SupCon and Adam with the encoder that is measured."""
    features = LOG_MEL.get(kind, Features())
    seconds = (sizes.frames - 1) * features.hop / features.sample_rate
    return Config(
        features=features,
        data=Data(crop_seconds=seconds),
        encoder=encoder_of(kind, sizes),
        sampler=Sampler(kind="random", speakers=sizes.rows[kind] // 2),
        training=Training(steps=1000),
    )


def encoder_of(kind: Kind, sizes: Sizes) -> Encoder:
    """The encoder that is measured."""
    return Encoder(
        kind=kind,
        ecapa=Ecapa(channels=sizes.channels, res2net_scale=sizes.res2net_scale),
        thin_resnet=ThinResNet(layers=sizes.layers, filters=sizes.filters),
        redimnet2=sizes.redimnet2,
    )


def batch_of(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Crops (2b, s) int16 and labels, two rows of each speaker."""
    rows = 2 * config.sampler.speakers
    audio = np.random.default_rng(0).normal(0, 3000, (rows, config.crop_samples))
    return audio.astype(np.int16), np.tile(np.arange(rows // 2, dtype=np.int32), 2)


def _encoder(kind: Kind, sizes: Sizes) -> Iterator[Row]:
    config = config_of(kind, sizes)
    audio, labels = batch_of(config)
    step, forward, flops = make_steps(config, audio, labels)
    matrix = jnp.ones((sizes.matrix, sizes.matrix))
    multiply = jax.jit(lambda a: a @ a)
    ours = {
        "step": step,
        "product": lambda: multiply(matrix).block_until_ready(),
        "forward": forward,
    }
    on_gpu = jax.default_backend() == "gpu"
    with of_torch("make_steps", config, audio, labels, on_gpu) as theirs:
        seconds = alternate(ours | theirs, sizes.repeats, untimed=1)

    name, size = NAMES[kind], f"{len(audio)} x {config.data.crop_seconds:g} s, with log-mel"
    yield _against(f"{name} training step, {size}", "step", seconds, OTHERS[kind], FASTER[kind])
    if kind in LEAST_SHARE:
        rate = 2 * sizes.matrix**3 / seconds["product"]
        share, least = flops / seconds["step"] / rate, LEAST_SHARE[kind]
        other, target = "matrix product", f">= {least:g}"
        yield Row(
            f"{name} training step's rate", flops / seconds["step"] / 1e9, "GFLOP/s", other,
            rate / 1e9, share, target, share >= least,
        )  # fmt: skip
    yield _against(f"{name} forward pass, {size}", "forward", seconds, OTHERS[kind], None)


def _against(
    what: str, function: str, seconds: dict[str, float], other: str, target: float | None
) -> Row:
    ours, theirs = seconds[function], seconds.get(f"their {function}")
    return Row(what, ours, "s") if theirs is None else faster(what, ours, other, theirs, target)

"""What every encoder costs: parameters, multiply-adds, and times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chns_jax.benchmarks.measure import Row, Sizes, alternate
from chns_jax.benchmarks.training import LOG_MEL, batch_of, make_steps
from chns_jax.config import (
    Config,
    Data,
    Ecapa,
    Encoder,
    Features,
    ReDimNet2,
    Sampler,
    ThinResNet,
    Training,
)
from chns_jax.encoders import make_encoder
from chns_jax.encoders.features import frame_count

SECONDS = 3.0  # of the crop that multiply-adds are counted of
FILE_SECONDS = 10.0


def _redimnet2(**options) -> Encoder:
    return Encoder(kind="redimnet2", redimnet2=ReDimNet2(**options))


# The encoders of the configs.
ENCODERS = {
    "mobile ECAPA-TDNN": Encoder(),
    "ECAPA-TDNN, 512": Encoder(ecapa=Ecapa(channels=(512,) * 4 + (1536,))),
    "ECAPA-TDNN, 1024": Encoder(ecapa=Ecapa(channels=(1024,) * 4 + (1536,))),
    "ThinResNet-34": Encoder(kind="thin_resnet", thin_resnet=ThinResNet()),
    "ReDimNet2-B0": _redimnet2(
        channels=12, reductions=(36, 36, 36, 36, 18, 18), head_channels=64
    ),
    "ReDimNet2-B1": _redimnet2(),
    "ReDimNet2-B2": _redimnet2(
        channels=20, frequency_strides=(1, 2, 1, 3, 1, 2), reductions=(40, 30, 30, 20, 20, 10)
    ),
    "ReDimNet2-B3": _redimnet2(
        channels=24, expansions=(4.0, 3.0, 2.0, 1.0, 1.0, 1.0), reductions=(24,) * 6
    ),
}  # fmt: skip


def encoders(sizes: Sizes) -> Iterator[Row]:
    """Of each encoder, what is counted; of those that `sizes` names, what is timed as well."""
    for name, encoder in ENCODERS.items():
        features = LOG_MEL.get(encoder.kind, Features())
        parameters, multiply_adds = counted(encoder, features)
        yield Row(f"{name}, parameters", parameters / 1e6, "M")
        yield Row(f"{name}, multiply-adds a second of speech", multiply_adds / 1e6, "M")
        if name not in (sizes.timed or ENCODERS):
            continue
        config = Config(
            features=features,
            encoder=encoder,
            data=Data(crop_seconds=sizes.crop_seconds),
            sampler=Sampler(kind="random", speakers=sizes.encoder_rows // 2),
            training=Training(steps=1000),
        )
        step, embed, _ = make_steps(config, *batch_of(config))
        samples = round(FILE_SECONDS * features.sample_rate)
        file = np.random.default_rng(0).normal(0, 3000, (1, samples)).astype(np.int16)
        times = alternate(
            {"training step": step, "forward pass": embed, "file": partial(embed, file)},
            sizes.repeats,
        )
        size = f"{sizes.encoder_rows} x {sizes.crop_seconds:g} s"
        yield Row(f"{name}, training step, {size}", times["training step"], "s")
        yield Row(f"{name}, forward pass, {size}", times["forward pass"], "s")
        yield Row(f"{name}, embedding of a file of {FILE_SECONDS:g} s", times["file"], "s")


def counted(encoder: Encoder, features: Features) -> tuple[int, float]:
    """Parameters, and the multiply-adds of products and convolutions for a second of speech.

    They are counted of a crop of `SECONDS`, as those of attention grow with the square of it.
    """
    module = make_encoder(encoder)
    frames = frame_count(round(SECONDS * features.sample_rate), features)
    x = jax.ShapeDtypeStruct((1, frames, features.bands), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
    traced = jax.make_jaxpr(lambda variables, x: module.apply(variables, x, False))(variables, x)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return parameters, products(traced.jaxpr) / SECONDS


def products(jaxpr: Any) -> int:
    """Multiply-adds of a program's products and convolutions."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [operand.aval.shape for operand in equation.invars if hasattr(operand, "aval")]
        made = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += made * math.prod(shapes[0][axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            outputs, *others = equation.params["dimension_numbers"].rhs_spec
            total += made * math.prod(shapes[1][axis] for axis in others)
        elif equation.primitive.name == "cond":  # the last is of all but CPUs
            total += _inside(equation.params["branches"][-1])
        else:
            times = equation.params.get("length", 1)  # of a scan
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
            ):
                if hasattr(inner, "eqns"):
                    total += times * _inside(inner)
    return total


def _inside(closed: Any) -> int:
    return products(getattr(closed, "jaxpr", closed))

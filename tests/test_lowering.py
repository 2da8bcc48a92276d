"""The programs of GPUs and TPUs, made without one: traced once, and lowered for each platform."""

import dataclasses
import itertools
import re
from collections import Counter

import jax
import numpy as np
import pytest
from support import REDIMNET2
from test_step import AUGMENTED, CONFIG, RESNET, SHALLOW, replaced

from chns_jax.config import Augment, Features, Loss
from chns_jax.devices.sharding import make_mesh
from chns_jax.embedding import embedder as embedding
from chns_jax.embedding.embedder import Embedder
from chns_jax.encoders import convolution, depthwise, sums
from chns_jax.training.build import build

ACCELERATORS = ("cuda", "tpu")
ENCODERS = {"ecapa_tdnn": SHALLOW, "thin_resnet": RESNET, "redimnet2": REDIMNET2}
ROWS = 2 * CONFIG.sampler.speakers
OF_CPU = {  # its functions, and the names that they bear in the lowered program
    "product_with_ones": (sums, "_product_with_ones"),
    "weight_gradient_by_image": (convolution, "weight_gradient"),
    "sum_of_shifted": (depthwise, "_of_shifted"),
    "kernel_gradient_by_tap": (depthwise, "_kernel_gradient"),
}


def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.fixture(autouse=True)
def named(monkeypatch):
    """What is computed otherwise on CPUs bears a name in the lowered program."""
    for name, (module, function) in OF_CPU.items():
        monkeypatch.setattr(module, function, jax.named_call(getattr(module, function), name=name))


def traced_step(config, devices):
    """The training step of 16 rows, with all that its augmentation is given."""
    made = build(config, CONFIG.sampler.speakers, make_mesh(devices))
    audio = array((ROWS, config.read_samples), np.int16)
    batch = {"audio": audio, "labels": array((ROWS,), np.int32)}
    if config.augment.noise.probability:
        batch |= {"noise": audio, "snr": array((ROWS,), np.float32)}
    in_rooms = config.augment.reverberation.probability
    rirs = array((3, 50), np.float32) if in_rooms else None
    return made.update.trace(made.shapes(), batch, rirs)


def traced_embedding(config, devices, padded):
    """What embeds crops, or padded utterances."""
    mesh = make_mesh(devices)
    embedder = Embedder(config, mesh)
    variables = build(config, CONFIG.sampler.speakers, mesh).shapes().variables
    audio = array((ROWS, 8000), np.int16)
    if padded:
        return embedder._padded.trace(variables, audio, array((ROWS,), np.int32))
    return embedder._crops.trace(variables, audio)


def program(traced, platform):
    return traced.lower(lowering_platforms=(platform,)).as_text(debug_info=True)


def precisions(text):
    """How many products and convolutions there are of each precision."""
    found = Counter()
    for line in text.splitlines():
        if re.search(r"= stablehlo\.(dot_general|convolution)\b", line):
            stated = re.findall(r"(?<=precision = \[)\w+|(?<=<precision )\w+", line)
            found[stated[0] if stated else "none"] += 1
    return found


def assert_lowered(traced, encoder, *, trains):
    """Accelerators get no program of a CPU and call nothing but XLA; CPUs get their own.

    Returns the programs of the accelerators.
    """
    texts = [program(traced, platform) for platform in ACCELERATORS]
    for text in texts:
        assert not [name for name in OF_CPU if name in text]
        assert set(re.findall(r"custom_call @(\w+)", text)) <= {"Sharding"}
    text = program(traced, "cpu")
    of_2d, of_each = encoder != "ecapa_tdnn", encoder == "redimnet2"
    expected = True, trains and of_2d, of_each, trains and of_each
    assert tuple(name in text for name in OF_CPU) == expected
    return texts


def check_step(encoder, compute, devices, **keys):
    training = {"compute": compute}
    training |= {key: keys.pop(key) for key in ("micro_batch", "remat") if key in keys}
    config = replaced(training, encoder=ENCODERS[encoder], **keys)
    assert_lowered(traced_step(config, devices), encoder, trains=True)


NEAREST = Loss(kind="aam_softmax", sub_centres=3, top_k=5)


@pytest.mark.parametrize(
    "encoder, compute, devices, keys",
    [
        ("ecapa_tdnn", "float32", 8, {"augment": AUGMENTED, "micro_batch": 8}),
        ("thin_resnet", "bfloat16", 8, {"loss": Loss(kind="hscl"), "remat": True}),
        ("redimnet2", "bfloat16", 8, {"remat": True}),
        pytest.param("ecapa_tdnn", "bfloat16", 1, {"loss": NEAREST}, marks=pytest.mark.long),
    ],
)
def test_training_steps_are_lowered_for_accelerators(encoder, compute, devices, keys):
    check_step(encoder, compute, devices, **keys)


# Every two values of two columns meet in a row.
PAIRS = [
    ("ecapa_tdnn", "bfloat16", 1, "supcon", AUGMENTED, 8, True),
    ("ecapa_tdnn", "bfloat16", 8, "sphereface2", Augment(), 8, True),
    ("ecapa_tdnn", "float32", 8, "aam_softmax", AUGMENTED, None, False),
    ("ecapa_tdnn", "float32", 8, "hscl", AUGMENTED, 8, True),
    ("ecapa_tdnn", "float32", 8, "nt_xent", Augment(), 8, False),
    ("redimnet2", "bfloat16", 1, "aam_softmax", Augment(), None, False),
    ("redimnet2", "bfloat16", 1, "nt_xent", AUGMENTED, None, False),
    ("redimnet2", "bfloat16", 1, "sphereface2", AUGMENTED, 8, False),
    ("redimnet2", "bfloat16", 8, "supcon", Augment(), None, False),
    ("redimnet2", "float32", 8, "hscl", AUGMENTED, 8, True),
    ("thin_resnet", "bfloat16", 1, "hscl", Augment(), None, False),
    ("thin_resnet", "bfloat16", 1, "nt_xent", Augment(), 8, True),
    ("thin_resnet", "bfloat16", 8, "aam_softmax", Augment(), 8, True),
    ("thin_resnet", "float32", 1, "sphereface2", AUGMENTED, None, True),
    ("thin_resnet", "float32", 8, "supcon", Augment(), 8, True),
]


def test_every_two_values_meet_in_a_row():
    for one, other in itertools.combinations(zip(*PAIRS, strict=True), 2):
        met = {(repr(a), repr(b)) for a, b in zip(one, other, strict=True)}
        assert len(met) == len({a for a, _ in met}) * len({b for _, b in met})


@pytest.mark.long
@pytest.mark.parametrize("encoder, compute, devices, kind, augment, micro_batch, remat", PAIRS)
def test_all_training_steps_are_lowered_for_accelerators(
    encoder, compute, devices, kind, augment, micro_batch, remat
):
    check_step(
        encoder, compute, devices, loss=Loss(kind=kind), augment=augment, micro_batch=micro_batch,
        remat=remat,
    )  # fmt: skip


@pytest.mark.parametrize(
    "encoder, devices, padded",
    [
        *itertools.product(("ecapa_tdnn", "thin_resnet"), (1, 8), (False, True)),
        ("redimnet2", 8, True),
    ],
)
def test_embeddings_are_products_in_float32_on_accelerators(encoder, devices, padded):
    """However training multiplies: JAX's own default is TensorFloat-32 or bfloat16."""
    training = {"compute": "bfloat16", "product_precision": "bfloat16"}
    config = replaced(training, encoder=ENCODERS[encoder])
    traced = traced_embedding(config, devices, padded)
    for text in assert_lowered(traced, encoder, trains=False):
        assert set(precisions(text)) == {"HIGHEST"}


def test_embeddings_of_kaldis_features_are_lowered():
    features = Features(kind="kaldi", bands=20, f_min=20)
    config = dataclasses.replace(replaced({}), features=features)
    for text in assert_lowered(traced_embedding(config, 8, True), "ecapa_tdnn", trains=False):
        assert set(precisions(text)) == {"HIGHEST"}


@pytest.mark.parametrize(
    "precision, stated",
    [("bfloat16", "DEFAULT"), ("tensorfloat32", "HIGH"), ("float32", "HIGHEST")],
)
def test_training_multiplies_as_it_is_told(precision, stated):
    """The products that are always exact are those of the features and of the loss."""
    config = replaced({"product_precision": precision}, encoder=RESNET)
    found = precisions(program(traced_step(config, 1), "cuda"))
    always = {"HIGHEST": 1 + 3}  # the mel filters; cosines, and their gradients by either side
    assert found.keys() == always.keys() | {stated}
    if stated != "HIGHEST":
        assert found["HIGHEST"] == always["HIGHEST"]
        assert found[stated] > 20


def test_what_is_lowered_may_be_exported():
    """jax.export refuses custom calls that are not known to stay."""
    config, devices = replaced({}), 8
    made = build(config, CONFIG.sampler.speakers, make_mesh(devices))
    audio, labels = array((ROWS, config.read_samples), np.int16), array((ROWS,), np.int32)
    exported = jax.export.export(made.update, platforms=ACCELERATORS)(
        made.shapes(), {"audio": audio, "labels": labels}, None
    )
    assert exported.nr_devices == devices and exported.platforms == ACCELERATORS


@pytest.mark.parametrize("backend", ["gpu", "tpu", "a backend of tomorrow"])
def test_an_embedder_of_any_backend(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    seconds = embedding.BATCH_SECONDS_OF_ACCELERATORS
    embedder = Embedder(replaced({}), make_mesh(2))
    assert embedder.batch_samples == 2 * seconds * CONFIG.features.sample_rate

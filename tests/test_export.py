"""What is exported equals JAX, run by onnxruntime, and by sherpa-onnx where it may be."""

import dataclasses
import json
import os
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import sherpa_onnx
import soundfile
from jax.export import symbolic_shape
from support import REDIMNET2, save_untrained
from test_masks import ECAPA, random_variables, speechlike, thin_resnet

from chns_jax import SpeakerEncoder, export
from chns_jax.config import Config, Encoder, Features
from chns_jax.devices.sharding import make_mesh
from chns_jax.embedding.embedder import Embedder
from chns_jax.embedding.model import Model
from chns_jax.encoders import make_encoder
from chns_jax.encoders.features import log_mel
from chns_jax.interop import onnx_models
from chns_jax.interop.onnx_digest import is_as_described
from chns_jax.interop.onnx_graph import to_onnx
from chns_jax.scoring import calibration

RATE = 16_000
SMALL = {"ecapa": ECAPA, "asp-time": thin_resnet("asp", "time"), "redimnet2": REDIMNET2}
FULL = {kind: Encoder(kind=kind) for kind in ("ecapa_tdnn", "thin_resnet", "redimnet2")}
KINDS = ("speechbrain", "kaldi", "kaldi_hamming", "sherpa", "redimnet2")


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    data = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])


def model_of(encoder, features):
    """A trained run's, with weights drawn at random."""
    config = Config(encoder=encoder, features=features)
    drawn = random_variables(make_encoder(encoder), features.bands)
    variables = {"params": {"encoder": drawn["params"]}, "batch_stats": drawn["batch_stats"]}
    return Model(config, 0, variables, Embedder(config, make_mesh(1)))


def of_jax(model, waveforms):
    """L2-normalised embeddings (b, d) of waveforms (b, s)."""
    config, variables = model.config, model.variables
    encoder = make_encoder(config.encoder)
    of_encoder = {"params": variables["params"]["encoder"], "batch_stats": variables["batch_stats"]}
    x = jax.jit(lambda x: log_mel(x, config.features))(waveforms)
    made = np.asarray(jax.jit(lambda x: encoder.apply(of_encoder, x, False))(x))
    return np.asarray(x), made / np.linalg.norm(made, axis=1, keepdims=True)


def assert_equal(model, models, shapes):
    """Both models, of waveforms (b, s) of so many rows and samples."""
    rng, speaker, encoder = np.random.default_rng(0), *map(session, reversed(models))
    for rows, samples in shapes:
        waveforms = np.stack([speechlike(samples, rng) for _ in range(rows)]) / np.float32(32768)
        x, expected = of_jax(model, waveforms)
        (from_waveforms,) = speaker.run(["embedding"], {"waveform": waveforms})
        (from_features,) = encoder.run(["embedding"], {"features": x})
        np.testing.assert_allclose(from_features, expected, atol=1e-4)
        np.testing.assert_allclose(from_waveforms, expected, atol=1e-4)


@pytest.mark.parametrize("name, kind", [("ecapa", "sherpa"), ("asp-time", "speechbrain")])
def test_a_model_of_any_batch_and_length(name, kind):
    model = model_of(SMALL[name], Features(kind=kind, bands=20, f_min=20))
    models = onnx_models.make(model, None)
    assert all(proto.ir_version <= 10 for proto in models)
    assert all(proto.opset_import[0].version <= 20 for proto in models)
    assert not {node.domain for node in models.speaker.graph.node} - {""}
    assert_equal(model, models, [(1, 3200), (3, 5277)])


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_small_encoder_of_every_log_mel(kind):
    """Lengths of every remainder by the strides and hops."""
    for encoder in SMALL.values():
        model = model_of(encoder, Features(kind=kind, bands=20, f_min=20))
        shapes = [(2, 3200 + 160 * i + (0, 159)[i % 2]) for i in range(3)]
        assert_equal(model, onnx_models.make(model, None), shapes)


@pytest.mark.long
@pytest.mark.parametrize("name", FULL)
def test_encoders_of_two_million_parameters(name):
    model = model_of(FULL[name], Features(kind="sherpa", bands=72, f_min=20, f_max=7600))
    assert_equal(model, onnx_models.make(model, None), [(1, 8000), (2, 48_137)])


@lru_cache
def of_sherpa(folder, name):
    """The models of an encoder for sherpa-onnx, written; and its own extractor of the first."""
    model = model_of(SMALL[name], Features(kind="sherpa", f_min=20, f_max=7600))
    models = onnx_models.make(model, None)
    path = os.path.join(folder, f"{name}.onnx")
    with open(path, "wb") as file:
        file.write(models.encoder.SerializeToString())
    config = sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=path, num_threads=1)
    return session(models.speaker), sherpa_onnx.SpeakerEmbeddingExtractor(config)


def heard_by_sherpa(extractor, waveform):
    stream = extractor.create_stream()
    stream.accept_waveform(RATE, waveform)
    stream.input_finished()
    assert extractor.is_ready(stream)
    embedding = np.asarray(extractor.compute(stream))
    return embedding / np.linalg.norm(embedding)


def assert_heard_alike(folder, name, waveforms):
    speaker, extractor = of_sherpa(str(folder), name)
    assert extractor.dim == 16
    manager = sherpa_onnx.SpeakerEmbeddingManager(extractor.dim)
    for i, waveform in enumerate(waveforms):
        theirs = heard_by_sherpa(extractor, waveform)
        (ours,) = speaker.run(None, {"waveform": waveform[None]})
        assert ours[0] @ theirs > 0.999
        assert manager.add(f"speaker {i}", theirs)
    for i, waveform in enumerate(waveforms):
        found = manager.search(heard_by_sherpa(extractor, waveform), threshold=0.9999)
        assert found == f"speaker {i}"


def test_sherpa_onnx_hears_what_we_hear(tmp_path):
    rng = np.random.default_rng(3)
    voices = [speechlike(samples, rng) / np.float32(32768) for samples in (5000, 8123)]
    assert_heard_alike(tmp_path, "ecapa", voices)


@pytest.mark.long
def test_sherpa_onnx_hears_real_speech_as_we_do(real_data, tmp_path):
    paths = sorted((real_data / "vox2mini").rglob("*.flac"))[::200]
    assert_heard_alike(
        tmp_path, "ecapa", [soundfile.read(path, dtype="float32")[0] for path in paths]
    )


def test_only_what_sherpa_onnx_computes_is_for_it():
    theirs = Features(kind="sherpa", f_min=20, f_max=7600)
    assert onnx_models.is_sherpas(theirs)
    assert onnx_models.is_sherpas(dataclasses.replace(theirs, mean_normalise=False))
    for change in ({"kind": "kaldi"}, {"bands": 40}, {"f_max": 8000.0}, {"window_ms": 20.0}):
        assert not onnx_models.is_sherpas(dataclasses.replace(theirs, **change))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An untrained run that has a calibration, and what export made of it."""
    run = save_untrained(tmp_path_factory.mktemp("export") / "run", 0)
    encoder = SpeakerEncoder.load(run)
    digest = onnx_models.checkpoint_digest(encoder.model)
    made_by = {"checkpoint": digest, "segments": None, "norm": None}
    made = calibration.Calibration(9.0, -3.0, {}, 1.0, {"prior": 0.1}, made_by, 20, 9, 90, 0.3, 0.2)
    calibration.save(run / "calibration.json", made)
    out = run.parent / "onnx"
    export.main([str(run), str(out), "--format", "onnx", "--int8"])
    return encoder, made, out


def test_the_command_writes_what_the_run_is(exported):
    encoder, made, out = exported
    names = ["encoder.int8.onnx", "encoder.onnx", "speaker.int8.onnx", "speaker.onnx"]
    assert sorted(path.name for path in out.iterdir()) == names
    of_speaker = session(str(out / "speaker.onnx")).get_modelmeta().custom_metadata_map
    about = {
        "sample_rate": "16000",
        "output_dim": "8",
        "digest": made.scores["checkpoint"],
    }
    assert json.loads(of_speaker.pop("calibration")) == dataclasses.asdict(made)
    assert len(of_speaker.pop("sha256")) == 64
    assert of_speaker == {**about, "shortest_seconds": "0.2"}
    # Of features that sherpa-onnx does not compute, nothing makes it take the model.
    of_encoder = session(str(out / "encoder.onnx")).get_modelmeta().custom_metadata_map
    assert {key: value for key, value in of_encoder.items() if key != "sha256"} == about
    assert all(is_as_described(onnx.load(path)) for path in out.iterdir())
    waveform = speechlike(9000, np.random.default_rng(0))
    expected = encoder.embed(waveform, sample_rate=RATE)
    given = {"waveform": waveform[None] / np.float32(32768)}
    (embedding,) = session(str(out / "speaker.onnx")).run(None, given)
    np.testing.assert_allclose(embedding[0], expected, atol=1e-4)
    (rounded,) = session(str(out / "speaker.int8.onnx")).run(None, given)
    assert 0.99 < rounded[0] @ expected < 1 - 1e-7


def test_a_published_model_has_the_onnx_of_its_weights(exported, tmp_path):
    """Which are not those of the run, in half the size."""
    encoder, made, _ = exported
    run, out = tmp_path / "run", tmp_path / "out"
    dataclasses.replace(encoder, calibration=made).save_pretrained(run)
    export.main([str(run), str(out), "--format", "hub", "--dtype", "float16"])
    published = onnx_models.checkpoint_digest(SpeakerEncoder.load(out).model)
    about = session(str(out / "speaker.onnx")).get_modelmeta().custom_metadata_map
    assert about["digest"] == published != made.scores["checkpoint"]
    assert json.loads(about["calibration"])["scores"]["checkpoint"] == published


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_package_that_is_missing_is_named(package, untrained, tmp_path, command, monkeypatch):
    find = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == package else find(name))
    given = ["--format", "onnx", "--int8"]
    _, said = command("export", untrained, tmp_path / "out", *given, status=2)
    assert f"needs {package}, which pip install 'chns_jax[onnx]' brings" in said


def converted(function, array):
    b, t = symbolic_shape("b, t", constraints=["b >= 1", "t >= 7"])
    shape = jax.ShapeDtypeStruct((b, t, array.shape[-1]), jnp.float32)
    return session(to_onnx(function, {"x": shape}, "y")).run(None, {"x": array})[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, : x.shape[1] // 4 * 4] * x.shape[1],
        lambda x: x[:, ::-1][:, : -(-x.shape[1] // 3)],
        lambda x: jnp.pad(x, ((0, 0), (2, x.shape[1] % 5), (1, 0)), constant_values=2),
        lambda x: jnp.broadcast_to(x.sum(1, keepdims=True), x.shape).sum(1),
        lambda x: jnp.where(jnp.arange(x.shape[1])[:, None] < 3, x, jnp.maximum(x, 0)).max(2),
        lambda x: jnp.fft.rfft(x, axis=-1).imag,
        lambda x: jnp.repeat(x, 3, axis=1).swapaxes(1, 2).reshape(x.shape[0], -1),
    ],
)
def test_lengths_are_those_of_the_input(function):
    for frames in (7, 8, 12):
        x = np.random.default_rng(frames).normal(size=(2, frames, 6)).astype(np.float32)
        np.testing.assert_allclose(converted(function, x), function(jnp.asarray(x)), atol=1e-5)


def test_a_primitive_that_is_unknown_is_named():
    with pytest.raises(NotImplementedError, match="primitive cumsum is not converted"):
        converted(lambda x: jnp.cumsum(x, axis=1), np.zeros((1, 7, 2), np.float32))

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from support import REDIMNET2

from chns_jax import config as configs
from chns_jax import convert
from chns_jax.common.errors import UserError
from chns_jax.config import Config, Ecapa, Encoder, ThinResNet
from chns_jax.embedding import model
from chns_jax.encoders import make_encoder
from chns_jax.interop import redimnet2, torch_weights

ECAPA = Encoder(
    embedding=8,
    ecapa=Ecapa(
        channels=(8, 8, 8, 16, 24),  # one block is wider than the one before
        kernel_sizes=(5, 3, 3, 5, 1),
        res2net_scale=4,
        se_channels=3,
        attention_channels=5,
    ),
)
RESNET = Encoder(
    kind="thin_resnet",
    embedding=6,
    thin_resnet=ThinResNet(layers=(1, 2), filters=(8, 16), pooling="sap"),
)
BANDS = 20


def state_of(encoder: Encoder) -> dict[str, np.ndarray]:
    """A state dict of random numbers."""
    shapes = jax.eval_shape(
        lambda: make_encoder(encoder).init(jax.random.key(0), jnp.zeros((1, 99, BANDS)), False)
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: rng.uniform(0.1, 1, a.shape).astype(np.float32), shapes)
    return torch_weights.to_torch(variables, encoder, bands=BANDS)


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype and value.shape == other[name].shape, name
        assert value.tobytes() == other[name].tobytes(), name


def convert_to_run(tmp_path, state: dict, *keys: str, name: str = "w.safetensors"):
    save_file(state, tmp_path / name)
    convert.main([str(tmp_path / name), str(tmp_path / "run"), *keys])
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name", ["ecapa_small", "thin_resnet_asp_official", "thin_resnet_sap_clova"]
)
def test_the_references_weights_come_back_bit_for_bit(golden, name):
    """What is inferred from the shapes is what the reference was made with."""
    arrays = golden(name)
    state = {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}
    made_with = json.loads(str(arrays["config"]))
    kind, prefix = torch_weights.find_encoder(state)
    assert prefix == ""
    inferred = torch_weights.infer(state, kind)
    assert inferred.pop("encoder.kind") == kind
    if kind == "ecapa_tdnn":
        assert inferred.pop("features.bands") == 80
        assert inferred.pop("encoder.embedding") == made_with["lin_neurons"]
        names = ("channels", "kernel_sizes", "res2net_scale", "se_channels", "attention_channels")
        options = {name: inferred.pop(f"encoder.ecapa.{name}") for name in names}
        assert json.loads(json.dumps(options)) == {name: made_with[name] for name in names}
        encoder = Encoder(embedding=made_with["lin_neurons"], ecapa=Ecapa(**options))
    else:
        assert inferred.pop("encoder.embedding") == made_with["nOut"]
        names = ("layers", "filters", "pooling")
        options = {name: inferred.pop(f"encoder.thin_resnet.{name}") for name in names}
        assert json.loads(json.dumps(list(options.values()))) == [
            made_with["layers"], made_with["num_filters"], made_with["encoder_type"].lower(),
        ]  # fmt: skip
        encoder = Encoder(kind=kind, embedding=made_with["nOut"], thin_resnet=ThinResNet(**options))
    assert not inferred
    back = torch_weights.to_torch(torch_weights.from_torch(state, encoder), encoder)
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert counters and all(
        back[key].dtype == np.int64 and back[key].shape == () and back[key] == 0 for key in counters
    )
    assert_same(
        {key: value for key, value in back.items() if key not in counters},
        {key: value for key, value in state.items() if key not in counters},
    )
    assert set(back) == set(state)


@pytest.mark.long
def test_wespeakers_weights_come_back_bit_for_bit(golden):
    arrays = golden("redimnet2_small")
    state = {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}
    made_with = json.loads(str(arrays["config"]))
    bands = torch_weights.infer(state, "redimnet2")["features.bands"]
    encoder = torch_weights.infer_encoder({f"model.{k}": v for k, v in state.items()})
    options = encoder.redimnet2
    stages = [
        [[over_frequency, over_time], blocks, expansion, [[3, 3]], reduction]
        for over_frequency, over_time, blocks, expansion, reduction in zip(
            options.frequency_strides, options.time_strides, options.blocks, options.expansions,
            options.reductions, strict=True,
        )
    ]  # fmt: skip
    assert stages == made_with["stages_setup"]
    assert (bands, options.channels) == (made_with["F"], made_with["C"])
    assert (options.head, options.head_channels) == ("1d", made_with["out_channels"])
    assert (encoder.embedding, options.group_norm) == (made_with["embed_dim"], 0)
    back = torch_weights.to_torch(
        torch_weights.from_torch(state, encoder, bands=bands), encoder, bands=bands
    )
    for values in (state, back):
        counters = [name for name in values if name.endswith("num_batches_tracked")]
        assert counters and all(values.pop(name).shape == () for name in counters)
    assert_same(back, state)


def test_an_encoder_is_inferred_from_the_shapes_of_any():
    for encoder in (ECAPA, RESNET, REDIMNET2):
        state = {f"encoder.{name}": value for name, value in state_of(encoder).items()}
        assert torch_weights.infer_encoder(state) == encoder


def test_a_checkpoint_of_redimnet2s_authors(tmp_path, monkeypatch, capsys):
    """Their model_config tells what shapes do not: without a head, what is pooled."""
    options = dataclasses.replace(REDIMNET2.redimnet2, head_channels=None)
    encoder = dataclasses.replace(REDIMNET2, redimnet2=options)
    state = state_of(encoder)
    spec, classes = "spec.torchfb.1.flipped_filter", "projection.weight"
    state |= {spec: np.ones((1, 1, 2), np.float32), classes: np.ones((3, 8), np.float32)}
    settings = {
        "return_2d_output": True, "agg_gnorm": True, "feat_type": "tf", "causal": "none",
        "spec_params": {"do_preemph": True, "do_spec_aug": False, "norm_signal": True},
    }  # fmt: skip
    held = {"state_dict": state, "model_config": settings}
    monkeypatch.setattr(torch_weights, "_read_torch", lambda path: held)
    (tmp_path / "w.pt").write_bytes(b"")
    convert.main([str(tmp_path / "w.pt"), str(tmp_path / "run")])
    assert f"left out: {spec}, {classes}" in capsys.readouterr().err
    config = model.load(tmp_path / "run").config
    assert config.encoder == encoder
    features = config.features
    assert (features.kind, features.bands) == ("redimnet2", BANDS)
    assert (features.f_min, features.f_max, features.mean_normalise) == (20, 7600, True)

    convert.main([str(tmp_path / "run"), str(tmp_path / "back.safetensors")])
    assert_same(load_file(tmp_path / "back.safetensors"), without(state, spec, classes))
    assert redimnet2.what_settings_tell({"agg_gnorm": 2})["encoder.redimnet2.group_norm"] == 2
    settings["feat_type"] = "pt"
    with pytest.raises(UserError, match="model_config has feat_type pt, where only tf is known"):
        convert.main([str(tmp_path / "w.pt"), str(tmp_path / "other")])


def without(state: dict, *names: str) -> dict:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize("encoder", [ECAPA, RESNET], ids=["ecapa", "resnet"])
def test_a_file_becomes_a_run_and_a_file_again(tmp_path, encoder, capsys):
    state = state_of(encoder)
    run = convert_to_run(tmp_path, state)
    config = configs.load(["--config", str(run / "config.yaml")])
    assert config.out == str(run)
    assert config.encoder == encoder
    assert config.features.bands == (BANDS if encoder is ECAPA else 80)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["step"] == 0 and summary["converted_from"] == "w.safetensors"

    loaded = model.load(run)
    assert loaded.step == 0 and set(loaded.variables["params"]) == {"encoder"}
    mine = flatten_dict(
        {"params": loaded.variables["params"]["encoder"],
         "batch_stats": loaded.variables["batch_stats"]}
    )  # fmt: skip
    theirs = flatten_dict(torch_weights.from_torch(state, encoder, bands=BANDS))
    assert set(mine) == set(theirs)
    assert all(np.asarray(mine[path]).tobytes() == theirs[path].tobytes() for path in mine)

    convert.main([str(run), str(tmp_path / "back.safetensors"), "--checkpoint", "0"])
    assert_same(load_file(tmp_path / "back.safetensors"), state)
    assert "left out" not in capsys.readouterr().err


def test_an_npz_is_read_as_well(tmp_path):
    state = state_of(RESNET)
    np.savez(tmp_path / "w.npz", **state)
    assert_same(torch_weights.read_file(tmp_path / "w.npz"), state)


def test_a_run_with_a_loss_is_written_without_it(tmp_path):
    """Training has params["loss"], which no PyTorch encoder has."""
    from chns_jax.runs import checkpoint

    state, config = state_of(ECAPA), Config(out="x", encoder=ECAPA)
    encoder = torch_weights.from_torch(state, ECAPA, bands=BANDS)
    variables = {
        "params": {"encoder": encoder["params"], "loss": {"log_temperature": np.float32(0)}},
        "batch_stats": encoder["batch_stats"],
    }
    with checkpoint.open_manager(tmp_path / "run" / "checkpoints") as manager:
        checkpoint.save_variables(manager, variables, "")
    text = configs.to_yaml(config).replace("bands: 80", f"bands: {BANDS}")
    (tmp_path / "run" / "config.yaml").write_text(text)
    convert.main([str(tmp_path / "run"), str(tmp_path / "out.safetensors")])
    assert_same(load_file(tmp_path / "out.safetensors"), state)


@pytest.mark.parametrize("prefix", ["encoder.", "module.model.", "__S__."])
@pytest.mark.parametrize("encoder", [ECAPA, RESNET], ids=["ecapa", "resnet"])
def test_an_encoder_is_found_under_its_prefix(encoder, prefix):
    state = state_of(encoder)
    whole = {prefix + name: value for name, value in state.items()}
    whole |= {"loss.temperature": np.ones(()), "classifier.fc.weight": np.ones((3, 8))}
    loaded = {"state_dict": whole, "epoch": 3, "hyper_parameters": {"lr": 0.1}}
    found = torch_weights.unwrap(loaded)
    assert torch_weights.find_encoder(found) == (encoder.kind, prefix)
    assert torch_weights.unwrap(whole).keys() == whole.keys()


def test_what_is_left_out_is_said(tmp_path, capsys):
    state = {f"encoder.{name}": value for name, value in state_of(RESNET).items()}
    state |= {"encoder.torchfb.0.flipped_filter": np.ones((1, 1, 2), np.float32)}
    state |= {"loss.fc.weight": np.ones((3, 4), np.float32), "fc.weight": np.ones(2, np.float32)}
    run = convert_to_run(tmp_path, state)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    named = set(line.removeprefix("left out: ").split(", "))
    assert named == {"encoder.torchfb.0.flipped_filter", "loss.fc.weight", "fc.weight"}
    assert model.load(run).config.encoder.kind == "thin_resnet"


def test_two_encoders_and_none_are_refused():
    state = state_of(RESNET)
    two = {f"{side}.{name}": value for side in ("a", "b") for name, value in state.items()}
    with pytest.raises(UserError, match="holds 2 encoders, under 'a.', 'b.'"):
        torch_weights.find_encoder(two)
    with pytest.raises(UserError, match="no name ends with mfa.conv.conv.weight or sap_linear"):
        torch_weights.find_encoder({"weight": np.ones(3)})
    for loaded in (np.ones(3), {}, {"state_dict": 3}, {"state_dict": {}}, {"epoch": 3}):
        with pytest.raises(UserError, match="holds no state dict of tensors by name$"):
            torch_weights.unwrap(loaded)


def test_a_state_dict_is_found_one_level_down():
    state = {"weight": np.ones(3)}
    for name in ("state_dict", "model", "model_state_dict"):
        assert torch_weights.unwrap({name: state, "epoch": 3, "optimizer": {"lr": 0.1}}) == state
    with pytest.raises(UserError, match="no state dict of tensors by name but under net, ema:"):
        torch_weights.unwrap({"net": state, "ema": state, "epoch": 3})
    with pytest.raises(UserError, match="holds state dicts under state_dict, model: keep one"):
        torch_weights.unwrap({"model": state, "state_dict": state})


@pytest.mark.parametrize(
    "encoder, name, change, message",
    [
        (ECAPA, "blocks.2.tdnn1.conv.conv.weight", None, "is missing"),
        (ECAPA, "blocks.1.res2net_block.blocks.1.conv.conv.weight", None, "is missing"),
        (ECAPA, "fc.conv.bias", lambda x: x[:0], r"has shape \(0,\), which holds no numbers"),
        (ECAPA, "mfa.conv.conv.weight", lambda x: x[:0], ".* which holds no numbers"),
        (
            ECAPA,
            "blocks.2.tdnn1.conv.conv.weight",
            np.transpose,
            r".*, which does not begin with \(8, 8\)",
        ),
        (ECAPA, "mfa.conv.conv.weight", lambda x: x.swapaxes(1, 2), r".* begin with \(24, 32\)"),
        (REDIMNET2, "backbone.stage0.2.weight", None, "is missing"),
        (REDIMNET2, "backbone.stage0.0.w", lambda x: x[:, :, 1:], "is not of multiples of 4 chan"),
        (RESNET, "layer1.0.conv1.weight", None, "is missing"),
        (RESNET, "layer2.0.bn1.weight", None, "is missing"),
        (RESNET, "layer2.0.conv1.weight", np.transpose, r".* instead of \(16, 8, 3, 3\)"),
        (RESNET, "fc.weight", np.transpose, r"has shape \(16, 6\), .* with \(6,\)"),
    ],
)
def test_the_tensor_that_misleads_about_the_architecture_is_named(
    tmp_path, encoder, name, change, message
):
    state = state_of(encoder)
    value = state.pop(name)
    if change is not None:
        state[name] = np.ascontiguousarray(change(value))
    with pytest.raises(UserError, match=f"w.safetensors: .*tensor {name} {message}"):
        convert_to_run(tmp_path, state)


@pytest.mark.parametrize(
    "encoder, name, missing",
    [
        (RESNET, "layer1.999.bn1.bias", "layer1.1.bn1.weight"),
        (ECAPA, "blocks.1.res2net_block.blocks.999.x", "blocks.1.res2net_block.blocks.3.conv"),
    ],
)
def test_a_name_alone_makes_no_thousand_layers(encoder, name, missing):
    state = {**state_of(encoder), name: np.ones(1, np.float32)}
    with pytest.raises(UserError, match=f"tensor {missing}.* (is missing|begin with)"):
        torch_weights.infer(state, encoder.kind)


def test_a_tensor_of_a_kind_that_numpy_does_not_have_is_named(tmp_path):
    state = {"fc.weight": np.ones(3, ml_dtypes.float8_e4m3fn)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="tensor fc.weight is F8_E4M3, which NumPy does not have"):
        torch_weights.read_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize("encoder", [ECAPA, RESNET], ids=["ecapa", "resnet"])
def test_a_tensor_that_does_not_fit_is_named(encoder):
    state = state_of(encoder)

    def message(changed: dict) -> str:
        with pytest.raises(UserError) as caught:
            torch_weights.from_torch(changed, encoder, bands=BANDS)
        return str(caught.value)

    for name, value in list(state.items())[::9]:
        without = {key: value for key, value in state.items() if key != name}
        if name.endswith("num_batches_tracked"):
            torch_weights.from_torch(without, encoder, bands=BANDS)
            continue
        assert f"tensor {name} is missing" in message(without)
        wrong = message({**without, name: np.ones((*value.shape, 2), np.float32)})
        assert f"tensor {name} has shape {(*value.shape, 2)} instead of {value.shape}" in wrong
    assert {name.endswith("num_batches_tracked") for name in list(state)[::9]} == {True, False}
    extra = {**state, "fc.more": np.ones(2), "fc.num_batches_tracked": np.ones(())}
    assert "tensor fc.more is unknown to it, and 1 more" in message(extra)
    spoilt = state | {"bn1.bias" if "bn1.bias" in state else "fc.conv.bias": np.array([np.nan] * 8)}
    assert "holds NaN" in message(spoilt)
    assert "is int64" in message({k: v.astype(np.int64) for k, v in state.items()})


def test_variables_that_do_not_fit_are_named():
    variables = torch_weights.from_torch(state_of(ECAPA), ECAPA, bands=BANDS)
    fc = variables["params"]["fc"]
    kernel = fc.pop("kernel")
    with pytest.raises(UserError, match=r"tensor fc.conv.weight is missing$"):
        torch_weights.to_torch(variables, ECAPA, bands=BANDS)
    fc["kernel"] = kernel[0]
    with pytest.raises(UserError, match=r"has shape \(48, 8\) instead of \(8, 48, 1\)$"):
        torch_weights.to_torch(variables, ECAPA, bands=BANDS)
    fc |= {"kernel": kernel, "more": np.ones(3)}
    with pytest.raises(UserError, match="tensor params/fc/more is unknown"):
        torch_weights.to_torch(variables, ECAPA, bands=BANDS)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    state = {k: v if v.dtype == np.int64 else v.astype(dtype) for k, v in state_of(RESNET).items()}
    save_file(state, tmp_path / "w.safetensors")
    read = torch_weights.read_file(tmp_path / "w.safetensors")
    variables = torch_weights.from_torch(read, RESNET)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        variables["params"]["fc"]["kernel"], state["fc.weight"].T.astype(np.float32)
    )


def test_keys_that_shapes_do_not_tell_are_taken_from_the_command_line(tmp_path):
    text = "features: {kind: kaldi, f_min: 20}\nout: elsewhere\nencoder: {embedding: 9}\n"
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match="fc.conv.bias has shape"):  # files beat what is inferred
        convert_to_run(tmp_path, state_of(ECAPA), "--config", str(tmp_path / "c.yaml"))
    keys = ["--config", str(tmp_path / "c.yaml"), "--encoder.ecapa.dilations", "[1,2,2,2,1]"]
    keys += ["--encoder.embedding", "8"]
    run = convert_to_run(tmp_path, state_of(ECAPA), *keys)
    config = model.load(run).config
    assert (config.features.kind, config.features.f_min, config.out) == ("kaldi", 20, str(run))
    assert list(config.encoder.ecapa.dilations) == [1, 2, 2, 2, 1]


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            ["--encoder.embedding", "9"],
            r"fc.conv.bias has shape \(8,\) instead of \(9,\), and 1 more do",
        ),
        (["--features.bands", "80"], r"blocks.0.conv.conv.weight has shape \(8, 20, 5\)"),
        (["--encoder.kind", "thin_resnet"], "is missing, and [0-9]+ more"),
        (["--encoder.ecapa.dilation", "3"], "dilation"),
        (["--encoder.ecapa.dilations", "[1,1,1]"], "one entry a layer"),
    ],
)
def test_keys_that_contradict_the_shapes(tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        convert_to_run(tmp_path, state_of(ECAPA), *keys)
    assert not (tmp_path / "run").exists() and len(list(tmp_path.iterdir())) == 1


def test_bad_files_and_names(tmp_path):
    good, state = tmp_path / "good.safetensors", state_of(RESNET)
    save_file(state, good)
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-9])
    (tmp_path / "text.safetensors").write_text("no weights, but some words\n")
    (tmp_path / "text.npz").write_text("no weights, but some words\n")
    (tmp_path / "empty.npz").write_text("")
    np.savez(tmp_path / "other.npz", speakers=np.array(["a"]), cluster=np.zeros(1))
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    (tmp_path / "w.txt").write_text("1 2 3")
    lacking = {name: value for name, value in state.items() if name != "fc.weight"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    flat = {**state, "layer1.0.conv1.weight": np.ones(3, np.float32)}
    save_file(flat, tmp_path / "flat.safetensors")
    (tmp_path / "run").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    cases = [
        ("gone.safetensors", "new", "gone.safetensors does not exist"),
        ("cut.safetensors", "new", "cut.safetensors: it is no file of safetensors, or cut off"),
        ("text.safetensors", "new", "it is no file of safetensors"),
        ("text.npz", "new", "text.npz: it is no .npz of plain arrays"),
        ("empty.npz", "new", "it is no .npz of plain arrays"),
        ("pickled.npz", "new", "it is no .npz of plain arrays"),
        ("other.npz", "new", "other.npz: no name ends with"),
        ("w.txt", "new", "w.txt is none of .pt, .pth, .ckpt, .safetensors, .npz"),
        ("lacking.safetensors", "new", "lacking.safetensors: tensor fc.weight is missing"),
        ("flat.safetensors", "new", r"conv1.weight has shape \(3,\) instead of \(8, 8, 3, 3\)"),
        ("good.safetensors", "run", "run exists, and is not overwritten"),
        ("good.safetensors", "w.txt", "w.txt exists, and is not overwritten"),
        ("good.safetensors", "dangling", "dangling exists, and is not overwritten"),
        ("good.safetensors", "new.pt", "new.pt is the name of a file"),
        ("good.safetensors", "w.txt/new", "w.txt is not a folder"),
        ("run", "new.pt", "does not end with .safetensors"),
        ("run", "new.safetensors", "run is not a run folder"),
    ]
    before = sorted(tmp_path.iterdir())
    for source, target, message in cases:
        with pytest.raises(UserError, match=message):
            convert.main([str(tmp_path / source), str(tmp_path / target)])
    with pytest.raises(UserError, match="a run has a config of its own: leave out encoder.embed"):
        arguments = [str(tmp_path / "run"), str(tmp_path / "x.safetensors")]
        convert.main([*arguments, "--encoder.embedding", "3"])
    for option in (["--out", "x"], ["--out=x"]):
        for source in ("run", "good.safetensors"):
            with pytest.raises(UserError, match="new is what is written: leave out --out"):
                convert.main([str(tmp_path / source), str(tmp_path / "new"), *option])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.long
def test_pytorchs_files(tmp_path):
    """A checkpoint of Lightning, in half precision, and files that PyTorch will not read."""
    torch = pytest.importorskip("torch")
    state = state_of(RESNET)
    tensors = {f"encoder.{k}": torch.from_numpy(np.array(v)) for k, v in state.items()}
    tensors["encoder.fc.weight"] = torch.nn.Parameter(tensors["encoder.fc.weight"].bfloat16())
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "w.ckpt")
    read = torch_weights.read_file(tmp_path / "w.ckpt")
    assert set(read) == set(tensors) and read["encoder.fc.weight"].dtype == np.float32
    np.testing.assert_allclose(read["encoder.fc.weight"], state["fc.weight"], rtol=1e-2)
    convert.main([str(tmp_path / "w.ckpt"), str(tmp_path / "run")])

    torch.save({"state_dict": tensors, "hyper_parameters": RESNET}, tmp_path / "classes.ckpt")
    (tmp_path / "text.pt").write_text("hello, no weights\n" * 9)
    (tmp_path / "empty.pt").write_text("")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "w.ckpt").read_bytes()[:-900])
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    for kind, odd in {
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.ones(3, device="meta"),
    }.items():
        torch.save({"model": {"fc.weight": odd}}, tmp_path / f"{kind}.pt")
    for name, message in [
        ("classes.ckpt", "objects of other classes"),
        ("text.pt", "it is no file of PyTorch"),
        ("empty.pt", "it is no file of PyTorch"),
        ("cut.pt", "it is no file of PyTorch"),
        ("tensor.pt", "it holds no state dict"),
        ("sparse.pt", r"tensor fc.weight \(float32, sparse_coo, on device cpu\) is no plain array"),
        ("meta.pt", r"tensor fc.weight \(float32, strided, on device meta\)"),
    ]:
        with pytest.raises(UserError, match=message):
            convert.main([str(tmp_path / name), str(tmp_path / "new")])


def test_pytorch_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"needs PyTorch, which pip install 'chns_jax\[torch\]'"):
        convert.main([str(tmp_path / "w.pt"), str(tmp_path / "run")])


def test_the_commands_use_a_converted_run(tmp_path, tones, command):
    """evaluate, verify, cluster and train accept it; a mistake ends with status 2."""
    save_file(state_of(ECAPA), tmp_path / "w.safetensors")
    run, keys = tmp_path / "run", ["--data.crop_seconds", "0.5"]
    command("convert", tmp_path / "w.safetensors", run, *keys)
    files = sorted(str(path.relative_to(tones)) for path in tones.rglob("*.flac"))
    output, _ = command("verify", tones / files[0], tones / files[0], "--model", run)
    assert json.loads(output)["cosine"] == pytest.approx(1, abs=1e-5)
    trials = [f"{int(a[:3] == b[:3])} {a} {b}\n" for a in files[:8] for b in files[:8] if a < b]
    (tmp_path / "trials.txt").write_text("".join(trials))
    where = ["--root", tones, "--cache", tmp_path / "cache", "--model", run]
    output, _ = command("evaluate", "--trials", tmp_path / "trials.txt", *where)
    assert 0 <= json.loads(output)["eer"] <= 1
    table = tmp_path / "table.npz"
    command("cluster", "--out", table, "--clusters", 3, *where)
    assert table.is_file()
    _, errors = command("train", "--config", run / "config.yaml")
    assert "is complete" in errors

    output, errors = command("convert", tmp_path / "w.safetensors", run, status=2)
    assert output == "" and errors.count("\n") == 1 and errors.startswith("error: ")

"""Published models: the same encoder in a folder that anybody may use, or may have written."""

import json
import os
import shutil
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file
from support import CONFIG, REDIMNET2, first_state

from chns_jax import SpeakerEncoder
from chns_jax import config as configs
from chns_jax.common import errors
from chns_jax.common.errors import UserError
from chns_jax.config import NOT_PUBLISHED, USED_OF_PUBLISHED, Config, read_run
from chns_jax.embedding import model
from chns_jax.runs import published
from chns_jax.runs.folder import RunFolder, training_speakers
from chns_jax.runs.state import digest
from chns_jax.scoring import calibration
from chns_jax.training.finetuning import start_from
from chns_jax.verification import cohort as cohorts
from chns_jax.verification import hub, model_card
from chns_jax.verification.model_card import About

RESULT = {
    "eer": 0.1234,
    "min_dcf": {"0.01": 0.61, "0.05": 0.4},
    "min_cllr": 0.3,
    "targets": 20,
    "nontargets": 400,
    "intervals": {
        "eer": [0.1, 0.15],
        "min_dcf": {"0.01": [0.5, 0.7], "0.05": [0.3, 0.5]},
        "min_cllr": [0.2, 0.4],
    },
}
ABOUT = About("cc-by-4.0", "tones: those of a test", {"list [a] of *tones*": RESULT})


@pytest.fixture(scope="module")
def encoder(untrained):
    """The encoder of an untrained run, calibrated with a cohort as if it had been trained."""
    loaded = SpeakerEncoder.load(untrained)
    norm = {"kind": "as-norm", "speakers": 5, "top": 3, "cohort": "x"}
    made_by = {"checkpoint": loaded.checkpoint, "segments": None, "norm": norm}
    made = calibration.Calibration(
        2.0, -1.0, {"cohort_mean": 0.5}, 0.3, {"prior": 0.4}, made_by, 12, 20, 400, 0.5, 0.4
    )
    rows = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    return replace(loaded, calibration=made, cohort=cohorts.Cohort(rows, 3, "x"))


@pytest.fixture(scope="module")
def there(encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "of-tones"
    encoder.save_pretrained(folder, about=ABOUT)
    return folder


@pytest.fixture
def copy(there, tmp_path) -> Path:
    return Path(shutil.copytree(there, tmp_path / "copy"))


@pytest.fixture(scope="module")
def waveforms():
    draw = np.random.default_rng(1).normal(0, 0.1, (3, 8000))
    return list(draw.astype(np.float32))


def test_a_round_trip_keeps_every_bit(encoder, there, waveforms):
    read = SpeakerEncoder.from_pretrained(there)
    assert read.checkpoint == encoder.checkpoint
    theirs, mine = (e.embed(waveforms, sample_rate=16_000) for e in (read, encoder))
    np.testing.assert_array_equal(theirs, mine)
    assert read.calibration == encoder.calibration
    np.testing.assert_array_equal(read.cohort.embeddings, encoder.cohort.embeddings)
    assert read.cohort.top == 3 and read.model.step == encoder.model.step
    decisions = [e.verify(*waveforms[:2], sample_rate=16_000) for e in (read, encoder)]
    assert decisions[0] == decisions[1]
    names = {path.name.partition("-")[0] for path in there.iterdir()}
    assert names == {"config.yaml", "model.safetensors", "calibration.json", "README.md", "cohort"}
    for key in ("features", "encoder"):
        assert getattr(read.model.config, key) == getattr(encoder.model.config, key)
    assert SpeakerEncoder.load(there, 0).checkpoint == encoder.checkpoint
    with pytest.raises(UserError, match="holds no checkpoint 7: it is a published model, of step"):
        SpeakerEncoder.load(there, 7)


def test_half_precision_keeps_embeddings(encoder, there, waveforms, tmp_path):
    encoder.save_pretrained(tmp_path / "half", dtype="float16", about=ABOUT)
    read = SpeakerEncoder.from_pretrained(tmp_path / "half")
    theirs, mine = (e.embed(waveforms, sample_rate=16_000) for e in (read, encoder))
    cosines = (theirs * mine).sum(axis=1)
    assert cosines.min() > 0.9999 and not np.array_equal(theirs, mine)
    assert read.checkpoint != encoder.checkpoint  # and the calibration is of what is there
    assert read.calibration.scores["checkpoint"] == read.checkpoint and read.cohort is not None
    kinds = {name: a.dtype for name, a in load_file(tmp_path / "half/model.safetensors").items()}
    assert {str(kind) for name, kind in kinds.items() if name.startswith("params")} == {"float16"}
    assert {str(kind) for name, kind in kinds.items() if name.startswith("batch")} == {"float32"}
    # Published again, it is the same, with its card.
    read.save_pretrained(tmp_path / "again", dtype="float16")
    for path in (tmp_path / "half").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    large = {**encoder.model.variables, "params": {"encoder": {"x": np.array([7e4])}}}
    with pytest.raises(UserError, match="a parameter exceeds 65504"):
        published.for_publishing(large, "float16")


def test_nothing_of_the_machine_or_the_loss_is_published(encoder, there):
    for path in there.iterdir():
        assert str(Path.home()).encode() not in path.read_bytes()
        assert encoder.model.config.out.encode() not in path.read_bytes()
    assert not any("loss" in name for name in load_file(there / "model.safetensors"))
    text = (there / "config.yaml").read_text()
    assert text == configs.to_published_yaml(encoder.model.config)
    # Whatever takes any text may be the name of a file; the keys below take words.
    known = configs.keys.keys_of(Config)
    words = {"hosts.coordinator"}
    texts = {key for key, about in known.items() if "str" in str(about.annotation)} - words
    left_out = {key for key in known if configs._is_among(key, NOT_PUBLISHED)}
    assert texts <= left_out and words <= left_out
    used = {key for key in known if configs._is_among(key, USED_OF_PUBLISHED)}
    assert not used & left_out
    sections = {key.partition(".")[0] for key in known}
    assert {key for key in NOT_PUBLISHED + USED_OF_PUBLISHED} <= {*known, *sections}


def test_a_folder_that_is_there_is_not_overwritten(encoder, there, tmp_path):
    (tmp_path / "link").symlink_to("nothing")
    for folder in (there, tmp_path / "link"):
        with pytest.raises(UserError, match="exists, and is not overwritten"):
            encoder.save_pretrained(folder)
    with pytest.raises(UserError, match="is no name of the hub"):
        encoder.save_pretrained(tmp_path / "new", about=About("My own!"))
    assert os.listdir(tmp_path) == ["link"]
    (tmp_path / "a.onnx").write_bytes(b"onnx")
    encoder.save_pretrained(tmp_path / "new", onnx=tmp_path / "a.onnx")
    assert (tmp_path / "new" / "speaker.onnx").read_bytes() == b"onnx"


def test_commands_take_it_as_a_run(untrained, there, tones, tmp_path, command):
    files = [tones / "s00/r0/u0.flac", tones / "s01/r0/u0.flac"]
    (mine, _), (theirs, _) = (
        command("embed", *files, "--model", path, "--out", tmp_path / f"{name}.npz")
        for name, path in {"run": untrained, "there": there}.items()
    )
    embeddings = [np.load(tmp_path / f"{name}.npz")["embeddings"] for name in ("run", "there")]
    np.testing.assert_array_equal(*embeddings)
    decision = json.loads(command("verify", *files, "--model", there)[0])
    assert decision["cosine"] == pytest.approx(float(embeddings[0][0] @ embeddings[0][1]), abs=1e-4)
    for name, path in {"run": untrained, "there": there}.items():
        command("convert", path, tmp_path / f"{name}.safetensors")
    weights = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("run", "there")]
    assert weights[0] == weights[1]
    lists = ["--trials", tmp_path / "list.txt", "--root", tones, "--cache", tmp_path / "cache"]
    (tmp_path / "list.txt").write_text("1 s00/r0/u0.flac s00/r1/u2.flac\n0 s00/r0/u0.flac s01/r0/u0.flac\n")  # fmt: skip  # noqa: E501
    _, said = command("evaluate", "--model", there, *lists, "--norm", "as-norm", status=2)
    assert "whom a published model was trained on is not in its folder: --cohort DIR" in said
    assert training_speakers(there, read_run(there), 100) is None
    _, said = command("export", there, tmp_path / "again", "--format", "hub")
    assert (tmp_path / "again/README.md").read_bytes() == (there / "README.md").read_bytes()


def test_training_starts_from_it(untrained, there):
    config = read_run(untrained)
    mine = first_state(config, speakers=9)
    config = replace(config, training=replace(config.training, start_from=str(there)))
    zeros = replace(mine, variables=jax.tree.map(lambda a: 0 * a, mine.variables))
    begun = start_from(config, zeros, "speakers")
    jax.tree.map(
        np.testing.assert_array_equal,
        begun.variables["params"]["encoder"],
        mine.variables["params"]["encoder"],
    )


def test_shapes_are_those_of_every_encoder():
    for encoder in (CONFIG.encoder, REDIMNET2):
        config = replace(CONFIG, encoder=encoder, features=replace(CONFIG.features, bands=20))
        variables = first_state(config, speakers=2).variables
        flat = flatten_dict(published.for_publishing(variables, "float32"), sep="/")
        assert {name: a.shape for name, a in flat.items()} == published.expected_shapes(config)


def rewritten(folder: Path, change, about=None) -> None:
    """The weights after `change` of their tensors, with a digest that fits."""
    tensors, path = load_file(folder / "model.safetensors"), folder / "model.safetensors"
    said = published.read_metadata(folder)._asdict()
    change(tensors)
    said |= {"sha256": digest(tensors), **(about or {})}
    save_file(tensors, path, {"chns_jax": json.dumps(said)})


FIRST = "batch_stats/asp_bn/mean"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(FIRST), f"model.safetensors lacks {FIRST}"),
        (lambda t: t.update(more=np.zeros(3)), "model.safetensors has more"),
        (lambda t: t.update({FIRST: t[FIRST][:-1]}), rf"holds {FIRST} as F32 of shape \(31,\)"),
        (lambda t: t.update({FIRST: t[FIRST].astype(np.float64)}), "as F64 of shape"),
        (lambda t: t.update({FIRST: t[FIRST] * np.nan}), "holds numbers that are not finite"),
        (lambda t: [t.popitem() for _ in range(len(t) - 3)], "fewer than the layers"),
    ],
)
def test_weights_of_another_encoder(copy, change, message):
    rewritten(copy, change)
    with pytest.raises(UserError, match=message):
        SpeakerEncoder.load(copy)


@pytest.mark.parametrize(
    "about, message",
    [
        ({"step": -1}, "does not say what it holds"),
        ({"step": "1"}, "does not say what it holds"),
        ({"config": 3}, "does not say what it holds"),
        ({"more": 3}, "does not say what it holds"),
        ({"sha256": "0"}, "is not what was written"),
        ({"config": "features: {kind: kaldi}"}, r"put back features.kind \(was kaldi\)"),
        ({"config": "["}, "the config in a checkpoint of .* is damaged"),
    ],
)
def test_what_weights_say_of_themselves(copy, about, message):
    rewritten(copy, lambda tensors: None, about)
    with pytest.raises(UserError, match=message):
        SpeakerEncoder.load(copy)


def test_damaged_weights(copy):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    cut = [whole[:end] for end in (0, 5, 8, 60, 8 + length, len(whole) - 1)]
    flipped = []
    for place in (3, 9, 8 + length // 2, 8 + length, len(whole) - 1):
        bits = bytearray(whole)
        bits[place] ^= 4
        flipped.append(bytes(bits))
    nested = b"[" * 100_000
    for data in [*cut, *flipped, len(nested).to_bytes(8, "little") + nested, whole + b"x"]:
        path.write_bytes(data)
        with pytest.raises(UserError, match="model.safetensors .*: get the model again"):
            SpeakerEncoder.load(copy)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="model.safetensors is no regular file"):
        SpeakerEncoder.load(copy)


@pytest.mark.parametrize(
    "more, message",
    [
        ("", r"put back features.bands \(was 20\), encoder.embedding \(was 8\)"),
        ("data: {root: /etc}", "data.root in .*config.yaml is not for a published model"),
        ("augment: {noise: {root: x}}", "augment.noise.root in .* is not for a published"),
        ("training: {start_from: x}", "training.start_from in .* is not for a published"),
        ("hosts: {count: 2}", "hosts.count in .* is not for a published"),
        ("out: ../../x", "out in .* is not for a published"),
        ("base: /etc/passwd", "base in .* is not for a published"),
        ("training: {stepz: 3}", "training.stepz in .* is unknown"),
        ("loss: !!python/name:os.system x", "line 1 has the tag"),
        ("a: " + "b" * 500_000, "has more than 100000 characters"),
        ("a: " + "b" * 100_000, "has more than 100000 characters"),
    ],
)
def test_the_config_of_a_stranger(copy, more, message):
    (copy / "config.yaml").write_text(more)
    with pytest.raises(UserError, match=message):
        SpeakerEncoder.load(copy)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "README.md", "more"])
def test_links_lead_nowhere_else(copy, there, tmp_path, name):
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to("/etc/hostname")
    with pytest.raises(UserError, match=f"{name} is a link that leads out of its folder"):
        SpeakerEncoder.load(copy)
    # huggingface_hub keeps files as links to blobs.
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    shutil.copytree(there, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert read_run(snapshot) == read_run(there)


def test_a_calibration_that_is_huge(copy):
    with open(copy / "calibration.json", "a") as file:
        file.write(" " * (1 << 20))
    with pytest.raises(UserError, match="calibration.json is not what chns_jax.calibrate writes"):
        SpeakerEncoder.load(copy)


def test_the_hub_reads_the_card(there, encoder, tmp_path):
    card = ModelCard.load(there / "README.md")
    data = card.data
    assert (data.library_name, data.license) == ("chns_jax", "cc-by-4.0")
    assert "speaker-verification" in data.tags and data.model_name == "of-tones"
    assert data.trained_on == "tones: those of a test"
    found = {(r.metric_name, r.metric_value, *r.metric_args["interval_95"])
             for r in data.eval_results}  # fmt: skip
    assert found == {
        ("EER (%)", 12.34, 10.0, 15.0),
        ("minDCF at p = 0.01", 0.61, 0.5, 0.7),
        ("minDCF at p = 0.05", 0.4, 0.3, 0.5),
    }
    for result in data.eval_results:
        assert result.task_type == "speaker-verification"
        assert result.dataset_name == "list [a] of *tones*"
        assert result.dataset_type == "list-a-of-tones"
    for words in ("replayed", "surveillance", "Languages", "@inproceedings", "12 speakers"):
        assert words in card.text
    assert r"list \[a\] of \*tones\* | EER (%) | 12.34 | 10 to 15 |" in card.text
    # As it reads it, it writes it, and the other way round.
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()
    replace(encoder, calibration=None, cohort=None).save_pretrained(tmp_path / "plain")
    plain = ModelCard.load(tmp_path / "plain" / "README.md")
    assert plain.data.license == "unknown" and plain.data.eval_results is None
    assert "is not calibrated" in plain.text and "does not say" in plain.text
    assert published.front_matter(there)["trained_on"] == ABOUT.trained_on
    for text in ("no matter", "---\n[\n---\n", "---\n- a\n---\n"):
        (tmp_path / "plain" / "README.md").write_text(text)
        assert published.front_matter(tmp_path / "plain") == {}


@pytest.mark.parametrize(
    "change",
    [
        {"eer": None},
        {"eer": True},
        {"eer": 1.5},
        {"eer": float("nan")},
        {"min_dcf": 3},
        {"min_dcf": {"x": 0.1}},
        {"intervals": {"eer": [0.1, 0.2]}},
        {"intervals": {"eer": [0.1], "min_dcf": {}}},
        {"intervals": {"eer": [0.1, 0.2], "min_dcf": {"0.3": [0, 1]}}},
        "[]",
        "[" * 100_000,
    ],
)
def test_what_evaluate_does_not_print(change, tmp_path):
    text = change if isinstance(change, str) else json.dumps({**RESULT, **change})
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match="r.json is not what chns_jax.evaluate prints"):
        model_card.read_result(tmp_path / "r.json")


def test_names_on_the_hub(there, encoder, monkeypatch):
    fetched = []

    def fetch(name, **options):
        fetched.append((name, options))
        return str(there)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert SpeakerEncoder.from_pretrained("org/tones").checkpoint == encoder.checkpoint
    ((name, options),) = fetched
    assert name == "org/tones" and {"config.yaml", "model.safetensors"} <= {
        *options["allow_patterns"]
    }
    for wrong in ("gone", "a/b/c", "../x", "org/", "", "org/ü"):
        with pytest.raises(UserError, match="is neither a folder nor a name on the hub"):
            SpeakerEncoder.from_pretrained(wrong)


def test_a_name_that_cannot_be_fetched_is_one_sentence(monkeypatch, tmp_path):
    """By the library itself, which is told that there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="org/gone is no folder, and cannot be fetched") as caught:
        SpeakerEncoder.from_pretrained("org/gone")
    assert "\n" not in errors._one_line(str(caught.value)) and len(str(caught.value)) < 300
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "chns_jax\[hub\]"'):
        hub.find("org/gone")


def test_pushing_to_the_hub(encoder, there, monkeypatch):
    done = []

    class Api:
        def create_repo(self, name, **options):
            done.append((name, options))

        def upload_folder(self, *, repo_id, folder_path):
            read = SpeakerEncoder.from_pretrained(folder_path)
            done.append((repo_id, Path(folder_path).name, read.checkpoint))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    encoder.push_to_hub("org/tones", private=True, about=ABOUT)
    SpeakerEncoder.load(there).push_to_hub("org/tones")  # by the card that it has
    assert done[:2] == [
        ("org/tones", {"private": True, "exist_ok": True}),
        ("org/tones", "tones", encoder.checkpoint),
    ]
    assert len(done) == 4
    with pytest.raises(UserError, match="the card of org/tones has no licence"):
        encoder.push_to_hub("org/tones")
    with pytest.raises(UserError, match="is neither a folder nor a name on the hub"):
        encoder.push_to_hub("tones", about=ABOUT)
    monkeypatch.setattr(Api, "create_repo", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match="cannot be put on the hub .ZeroDivisionError"):
        encoder.push_to_hub("org/tones", about=ABOUT)
    assert len(done) == 4


def test_the_model_in_the_box(tmp_path, monkeypatch, capfd, tones):
    """Whatever it is, it is small, calibrated, has a card, and half precision keeps it."""
    monkeypatch.chdir(tmp_path)
    box = SpeakerEncoder.load()
    said = capfd.readouterr().err
    assert said.startswith("no --model: the model in the box, trained on ")
    assert said.count("\n") == 1
    files = {path.name: path.stat().st_size for path in published.BOX_FOLDER.iterdir()}
    assert {*files} == {"config.yaml", "model.safetensors", "calibration.json", "README.md"}
    assert sum(files.values()) <= 2_000_000
    kinds = {str(a.dtype) for name, a in load_file(published.BOX_FOLDER / "model.safetensors")
             .items() if name.startswith("params/")}  # fmt: skip
    assert kinds == {"float16"}
    one, other = tones / "s00/r0/u0.flac", tones / "s05/r1/u3.flac"
    decision = box.verify(one, other)
    assert np.isfinite(decision.log_likelihood_ratio) and -1 <= decision.cosine <= 1
    data = ModelCard.load(published.BOX_FOLDER / "README.md").data
    assert data.license not in (None, "unknown") and data.trained_on
    assert SpeakerEncoder.load("box").checkpoint == box.checkpoint
    assert SpeakerEncoder.from_pretrained("box").checkpoint == box.checkpoint
    assert capfd.readouterr().err == ""
    Path("box").mkdir()  # which then is meant
    with pytest.raises(UserError, match="box is not a run folder"):
        published.find_model("box")
    assert published.find_model(None) == str(published.BOX_FOLDER)


def test_commands_without_a_model_use_the_box(command, tones, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded, load = [], lru_cache(model.load)

    def load_noting(*given, **options):
        loaded.append(given)
        return load(*given, **options)

    monkeypatch.setattr(model, "load", load_noting)
    one, other = tones / "s00/r0/u0.flac", tones / "s00/r1/u2.flac"
    output, said = command("verify", one, other)
    assert "no --model: the model in the box" in said
    assert {"cosine", "log_likelihood_ratio", "same_speaker"} <= {*json.loads(output)}
    output, said = command("gallery", "enroll", "Ann", one, "--gallery", "g")
    output, _ = command("gallery", "identify", one, "--gallery", "g")
    assert json.loads(output)["nearest"][0]["name"] == "Ann"
    command("embed", one, "--out", "a.npz")
    command("embed", one, "--out", "b.npz", "--model", "box")
    assert np.load("a.npz")["embeddings"].shape == np.load("b.npz")["embeddings"].shape
    assert all(Path(given[0]) == published.BOX_FOLDER for given in loaded)
    lists = ["--trials", "list.txt", "--root", tones]
    Path("list.txt").write_text("1 s00/r0/u0.flac s00/r1/u2.flac\n0 s00/r0/u0.flac s01/r0/u0.flac\n")  # fmt: skip  # noqa: E501
    before = (published.BOX_FOLDER / "calibration.json").read_bytes()
    _, said = command("calibrate", "--model", "box", *lists, status=2)
    assert "the model in the box is calibrated, and stays as it is" in said
    assert (published.BOX_FOLDER / "calibration.json").read_bytes() == before


def test_run_folders_name_what_is_published():
    folder = RunFolder(Path("x"))
    assert {folder.config.name, folder.calibration.name} < set(hub.READ)
    assert folder.cohort("0" * 64).match(hub.READ[-1])

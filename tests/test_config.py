import dataclasses
from pathlib import Path

import pytest

from chns_jax import config as configs
from chns_jax.config import Config, Sampler
from chns_jax.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_is_headed_by_what_to_expect(path):
    configs.load(["--config", str(path)])
    head = path.read_text().split("\nout:")[0]
    for word in (f"python -m chns_jax.train --config configs/{path.name}", "Hardware:", "EER"):
        assert word in head, word


def test_a_config_written_is_the_config_read(tmp_path):
    arguments = ["--sampler.hard_ratio", "0.25", "--encoder.ecapa.channels", "[8,8,16]"]
    arguments += ["--encoder.ecapa.kernel_sizes", "[5,3,1]", "--encoder.ecapa.dilations", "[1,2,1]"]
    config = configs.load([*arguments, "--data.trials", "list.txt", "--data.more_roots", "[a,b]"])
    (tmp_path / "config.yaml").write_text(configs.to_yaml(config))
    again = configs.load(["--config", str(tmp_path / "config.yaml")])
    assert again == config and not configs.differences(again, config)
    assert config.sampler.hard_ratio == 0.25 and list(config.data.more_roots) == ["a", "b"]


def test_overrides_come_after_files(tmp_path):
    (tmp_path / "a.yaml").write_text("training: {steps: 5, seed: 3}\nsampler: {kind: random}\n")
    (tmp_path / "b.yaml").write_text("training: {steps: 6}\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    config = configs.load([*files, "--training.seed", "9"])
    assert (config.training.steps, config.training.seed, config.sampler.kind) == (6, 9, "random")


def test_differences_name_the_keys_that_matter():
    one = Config()
    other = Config(out="elsewhere", sampler=dataclasses.replace(one.sampler, hard_ratio=0.9))
    assert configs.differences(one, other) == ["sampler.hard_ratio"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--training.stepz", "3"], "training.stepz"),
        (["--training.steps", "many"], "training.steps"),
        (["--training.steps", "0"], "training.steps"),
        (["--sampler.kind", "hardest"], "sampler.kind"),
        (["--sampler.hard_ratio", "1.5"], "sampler.hard_ratio"),
        (["--sampler.speakers", "1"], "sampler.speakers must be at least 2"),
        (["--sampler.refresh_every", "never"], "sampler.refresh_every never needs sampler.table"),
        (["--encoder.ecapa.channels", "[8, 8]"], "need one entry a layer"),
        (["--encoder.ecapa.channels", "[8,9,9,9,8]"], "must be multiples of"),
        (["--features.f_max", "9000"], "features.f_max"),
        (["--loss.temperature", "0.001"], "loss.temperature must lie above"),
        (["--data.crop_seconds", "0.02"], "data.crop_seconds"),
        (["--data.crop_seconds", "inf"], "data.crop_seconds"),
        (["--validation.segment_seconds", "0.03"], "validation.segment_seconds"),
        (["--encoder.ecapa.dilations", "[1,400,3,4,1]"], "data.crop_seconds 3 must hold 401"),
        (["--encoder.thin_resnet.filters", "[4,8,8,8]"], "encoder.thin_resnet.filters"),
        (["--features.hop_ms", "0.001"], "features.hop_ms"),
        (["--config", "gone.yaml"], "gone.yaml"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        configs.load(arguments)
    assert "\n" not in str(raised.value)


def test_mistakes_in_a_file_are_named(tmp_path):
    for text, message in [
        ("training: {stepz: 3}", "stepz"),
        ("training: [", "arsing"),
        ("3", "c.yaml"),
        ("sampler: 5", "c.yaml"),
    ]:
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            configs.load(["--config", str(tmp_path / "c.yaml")])


def test_clustering_once_is_a_start_step_without_refreshes():
    arguments = ["--sampler.refresh_every", "never", "--sampler.start_step", "100"]
    assert configs.load(arguments).sampler == Sampler(refresh_every="never", start_step=100)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "c.yaml").write_bytes(bytes([0, 1, 255]))
    with pytest.raises(UserError, match="c.yaml"):
        configs.load(["--config", str(tmp_path / "c.yaml")])

import dataclasses
import shutil
import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from support import CONFIG, build

from chns_jax import train
from chns_jax.common.errors import UserError
from chns_jax.config import Augment, Loss, Speed, ThinResNet, to_yaml
from chns_jax.runs import checkpoint
from chns_jax.runs.checkpoint import Progress
from chns_jax.runs.published import BOX_FOLDER
from chns_jax.sampling import clusters as tables
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.training import stopping
from chns_jax.training.finetuning import check_unheard, start_from

CONFIGS = Path(__file__).parents[1] / "configs"
AAM = dataclasses.replace(CONFIG, loss=Loss(kind="aam_softmax"))
FAST = Augment(speed=Speed(probability=0.5, factors=(0.9, 1.1), new_speakers=True))


def saved(folder, config, names="names"):
    """The first state of `config`, with other values, as the checkpoint of a run."""
    state = build(config)[2]
    state = state.replace(variables=jax.tree.map(lambda a: a + 1, state.variables))
    with checkpoint.open_manager(folder / "checkpoints") as manager:
        checkpoint.save(manager, state, None, Progress(0, 0.0, names, ""), "seed: 0", None)
    (folder / "config.yaml").write_text(to_yaml(config))
    return state.variables


def started_from(run, config=AAM, state=None):
    """`state`, or the first one of `config`, as it starts from `run`."""
    training = dataclasses.replace(config.training, start_from=str(run))
    state = build(config)[2] if state is None else state
    return start_from(dataclasses.replace(config, training=training), state, "names")


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_encoder_and_classes_are_taken(tmp_path):
    theirs = saved(tmp_path, AAM)
    started = started_from(tmp_path)
    assert_equal(started.variables, theirs)
    assert int(started.step) == 0


def test_the_classes_of_other_speeds_are_left_behind(tmp_path):
    theirs = saved(tmp_path, dataclasses.replace(AAM, augment=FAST))
    assert theirs["params"]["loss"]["weight"].shape == (24, 8)
    started = started_from(tmp_path).variables["params"]
    np.testing.assert_array_equal(started["loss"]["weight"], theirs["params"]["loss"]["weight"][:8])


def test_centres_and_bias_are_classes_too(tmp_path):
    """Of as many centres, and the temperature of a joint loss is its own."""
    joint = Loss(joint="sphereface2", sub_centres=2)
    config = dataclasses.replace(CONFIG, loss=joint)
    theirs = saved(tmp_path, config)["params"]["loss"]
    fresh = build(config)[2].variables["params"]["loss"]
    of_loss = started_from(tmp_path, config).variables["params"]["loss"]
    assert_equal(of_loss, theirs | {"temperature": fresh["temperature"]})
    assert of_loss["bias"] == 1 and of_loss["weight"].shape == (16, 8)
    other = dataclasses.replace(config, loss=dataclasses.replace(joint, sub_centres=1))
    fresh = build(other)[2]
    assert_equal(
        started_from(tmp_path, other, fresh).variables["params"]["loss"],
        fresh.variables["params"]["loss"],
    )


@pytest.mark.parametrize("config, names", [(AAM, "others"), (CONFIG, "names")])
def test_the_classes_of_others_are_not_taken(tmp_path, config, names):
    theirs = saved(tmp_path, config, names)
    fresh = build(AAM)[2]
    started = started_from(tmp_path, AAM, fresh).variables
    assert_equal(started["params"]["encoder"], theirs["params"]["encoder"])
    assert_equal(started["batch_stats"], theirs["batch_stats"])
    assert_equal(started["params"]["loss"], fresh.variables["params"]["loss"])


def test_a_contrastive_run_starts_with_its_own_temperature(tmp_path):
    saved(tmp_path, AAM)
    fresh = build(CONFIG)[2]
    started = started_from(tmp_path, CONFIG, fresh).variables["params"]
    assert_equal(started["loss"], fresh.variables["params"]["loss"])


def other_encoder(**changed):
    ecapa = dataclasses.replace(CONFIG.encoder.ecapa, **changed)
    return {"encoder": dataclasses.replace(CONFIG.encoder, ecapa=ecapa)}


WIDER = other_encoder(channels=(8, 16, 24))


@pytest.mark.parametrize(
    "changed, key",
    [
        ({"features": dataclasses.replace(CONFIG.features, kind="kaldi")}, "features.kind"),
        (WIDER, "encoder.ecapa.channels"),
        (other_encoder(dilations=(1, 1, 1)), "encoder.ecapa.dilations"),
    ],
)
def test_another_config_is_named(tmp_path, changed, key):
    """Features and dilations have no shapes that tell."""
    (tmp_path / "config.yaml").write_text(to_yaml(dataclasses.replace(CONFIG, **changed)))
    with pytest.raises(UserError, match=f"was trained with another {key}: give features"):
        started_from(tmp_path, CONFIG)


def test_what_makes_no_embedding_may_differ(tmp_path):
    unused = dataclasses.replace(CONFIG.encoder, thin_resnet=ThinResNet(attend_over="frequency"))
    faster = dataclasses.replace(CONFIG.training, remat=True, compute="bfloat16", steps=7)
    theirs = saved(tmp_path, CONFIG)
    changed = dataclasses.replace(CONFIG, encoder=unused, training=faster)
    (tmp_path / "config.yaml").write_text(to_yaml(changed))
    started = started_from(tmp_path, CONFIG)
    assert_equal(started.variables["params"]["encoder"], theirs["params"]["encoder"])


def test_a_run_that_is_not_what_it_says_is_named(tmp_path):
    saved(tmp_path, dataclasses.replace(CONFIG, **WIDER))
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    with pytest.raises(UserError, match="differs in batch_stats/asp_bn/mean"):
        started_from(tmp_path, CONFIG)
    with pytest.raises(UserError, match="is not a run folder"):
        started_from(tmp_path / "gone", CONFIG)


def test_speakers_whom_the_run_before_was_trained_on_cannot_validate(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    training = dataclasses.replace(CONFIG.training, start_from=str(tmp_path))
    config = dataclasses.replace(CONFIG, training=training)
    heard = SpeakerClusters(np.zeros(3, np.int32), np.zeros((1, 8), np.float32))
    tables.save(tmp_path / "tables" / "step_0000004.npz", heard, ["a", "b", "c"])
    check_unheard(config, np.array(["d", "e"]))
    with pytest.raises(UserError, match="was trained on 2 of the 3 speakers who .*, b first"):
        check_unheard(config, np.array(["b", "c", "d"]))


def test_a_run_whose_training_speakers_nobody_knows_is_said(tmp_path, capsys):
    """One that was converted has neither tables nor training speakers."""
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    (tmp_path / "checkpoints" / "0").mkdir(parents=True)
    training = dataclasses.replace(CONFIG.training, start_from=str(tmp_path))
    check_unheard(dataclasses.replace(CONFIG, training=training), np.array(["a"]))
    assert "was trained on is not known" in capsys.readouterr().err


def test_the_model_in_the_box_has_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    training = dataclasses.replace(CONFIG.training, start_from="box")
    check_unheard(dataclasses.replace(CONFIG, training=training), np.array(["a"]))
    assert f"{BOX_FOLDER} was trained on is not known" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
def test_large_margin_fine_tuning_goes_on_where_training_ended(tiny, tmp_path):
    """With a rate of almost 0, the encoder of the second run is that of the first."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    aam = ["--loss.kind", "aam_softmax", "--sampler.kind", "utterances", "--training.steps", "2"]
    train.main([*tiny, *aam, "--out", first])
    more = ["--config", str(CONFIGS / "large_margin.yaml"), "--data.crop_seconds", "0.7"]
    more += ["--optimizer.learning_rate", "1e-9", "--training.steps", "1", "--out", second]
    train.main([*tiny, *aam, *more, "--training.start_from", first])
    encoders = [
        checkpoint.restore_variables(tmp_path / run, "last", build()[2].step.sharding).variables[
            "params"
        ]
        for run in ("first", "second")
    ]
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), *encoders)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_goes_on_without_the_one_that_it_started_from(tiny, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    train.main([*tiny, "--training.steps", "1", "--out", str(first)])
    arguments = [*tiny, "--training.steps", "3", "--out", str(second)]
    arguments += ["--training.start_from", str(first)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):  # after the first step
        patch.setattr(stopping, "stop_signals", lambda: nullcontext([signal.SIGTERM]))
        train.main(arguments)
    shutil.rmtree(first)
    train.main(arguments)
    assert (second / "summary.json").exists()

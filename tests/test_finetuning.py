import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from test_step import CONFIG, build

from chns_jax import checkpoint, train
from chns_jax.checkpoint import Progress
from chns_jax.config import Augment, Ecapa, Encoder, Loss, Speed
from chns_jax.errors import UserError
from chns_jax.finetuning import start_from

CONFIGS = Path(__file__).parents[1] / "configs"
AAM = dataclasses.replace(CONFIG, loss=Loss(kind="aam_softmax"))
FAST = Augment(speed=Speed(probability=0.5, factors=(0.9, 1.1), new_speakers=True))


def saved(folder, config, names="names"):
    """The first state of `config`, with other values, as the checkpoint of a run."""
    state = build(config)[2]
    state = state.replace(variables=jax.tree.map(lambda a: a + 1, state.variables))
    with checkpoint.open_manager(folder / "checkpoints") as manager:
        checkpoint.save(manager, state, None, Progress(0, 0.0, names, ""), "seed: 0", None)
    return state.variables


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_encoder_and_classes_are_taken(tmp_path):
    theirs = saved(tmp_path, AAM)
    started = start_from(tmp_path, build(AAM)[2], "names")
    assert_equal(started.variables, theirs)
    assert int(started.step) == 0


def test_the_classes_of_other_speeds_are_left_behind(tmp_path):
    theirs = saved(tmp_path, dataclasses.replace(AAM, augment=FAST))
    assert theirs["params"]["loss"]["weight"].shape == (24, 8)
    started = start_from(tmp_path, build(AAM)[2], "names").variables["params"]
    np.testing.assert_array_equal(started["loss"]["weight"], theirs["params"]["loss"]["weight"][:8])


@pytest.mark.parametrize("config, names", [(AAM, "others"), (CONFIG, "names")])
def test_the_classes_of_others_are_not_taken(tmp_path, config, names):
    theirs = saved(tmp_path, config, names)
    fresh = build(AAM)[2]
    started = start_from(tmp_path, fresh, "names").variables
    assert_equal(started["params"]["encoder"], theirs["params"]["encoder"])
    assert_equal(started["batch_stats"], theirs["batch_stats"])
    assert_equal(started["params"]["loss"], fresh.variables["params"]["loss"])


def test_a_contrastive_run_starts_with_its_own_temperature(tmp_path):
    saved(tmp_path, AAM)
    fresh = build(CONFIG)[2]
    started = start_from(tmp_path, fresh, "names").variables["params"]
    assert_equal(started["loss"], fresh.variables["params"]["loss"])


def test_another_encoder_is_named(tmp_path):
    wider = Encoder(embedding=8, ecapa=Ecapa(channels=(8, 8, 8, 8, 24), res2net_scale=4))
    saved(tmp_path, dataclasses.replace(CONFIG, encoder=wider))
    with pytest.raises(UserError, match="differs in batch_stats/asp_bn/mean"):
        start_from(tmp_path, build(CONFIG)[2], "names")
    with pytest.raises(UserError, match="holds no checkpoints"):
        start_from(tmp_path / "gone", build(CONFIG)[2], "names")


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

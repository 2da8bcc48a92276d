import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import CONFIG, LABELS, audio, build

from chns_jax.common.errors import UserError
from chns_jax.devices import processes
from chns_jax.runs import checkpoint
from chns_jax.runs.checkpoint import Progress
from chns_jax.runs.state import sha256
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.training.optimizer import make_optimizer
from chns_jax.training.step import train_step

TABLE = SpeakerClusters(np.array([1, 0, 1], np.int32), np.eye(2, dtype=np.float32))
UNDER_WAY = {"params": {"w": np.arange(3, dtype=np.float32)}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of six checkpoints, the second of which had the lowest EER; digests by step."""
    _, _, state, step = build()
    digests, tmp_path = {}, tmp_path_factory.mktemp("run")
    with checkpoint.open_manager(tmp_path / "checkpoints", keep=2) as manager:
        for i, eer in enumerate([0.3, 0.1, None, 0.2, 0.4, None]):
            state, _ = step(state, {"audio": audio(i), "labels": LABELS})
            digests[i + 1] = sha256(state.variables)
            table = None if i == 0 else TABLE
            checkpoint.save(
                manager, state, table, Progress(i, 2.5 * i, "names", "data"), "seed: 0", eer,
                refresh=UNDER_WAY if i == 5 else None,
            )  # fmt: skip
    return tmp_path, state, digests


def test_the_latest_checkpoint_comes_back_whole(run):
    folder, state, digests = run
    with checkpoint.open_manager(folder / "checkpoints", keep=2) as manager:
        back = checkpoint.restore(manager, build()[2])
    assert jax.tree.structure(back.state) == jax.tree.structure(state)
    for mine, theirs in zip(jax.tree.leaves(back.state), jax.tree.leaves(state), strict=True):
        assert mine.dtype == theirs.dtype and mine.sharding == theirs.sharding
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(back.table.cluster, TABLE.cluster)
    np.testing.assert_array_equal(back.table.centroids, TABLE.centroids)
    assert back.progress == Progress(5, 12.5, "names", "data")
    assert jax.tree.structure(back.refresh) == jax.tree.structure(UNDER_WAY)
    np.testing.assert_array_equal(back.refresh["params"]["w"], UNDER_WAY["params"]["w"])


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    folder, state, _ = run
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "6" / "variables")
    with (
        checkpoint.open_manager(tmp_path / "checkpoints", keep=2) as manager,
        pytest.raises(UserError, match="checkpoints/6 is damaged: remove it"),
    ):
        checkpoint.restore(manager, state)
    with pytest.raises(UserError, match="checkpoints/6 is damaged"):
        checkpoint.restore_variables(tmp_path, "last", state.step.sharding)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    assert checkpoint.restore_variables(tmp_path, "last", state.step.sharding).step == 5


def test_the_last_ones_and_the_best_are_kept(run):
    folder, state, digests = run
    kept = {int(path.name) for path in (folder / "checkpoints").iterdir()}
    assert kept == {2, 5, 6}
    for which, expected in [("last", 6), ("best", 2), ("5", 5)]:
        saved = checkpoint.restore_variables(folder, which, state.step.sharding)
        step, variables, speakers, _ = saved
        assert step == expected and sha256(variables) == digests[expected] and speakers == "names"
        for mine, theirs in zip(
            jax.tree.leaves(variables), jax.tree.leaves(state.variables), strict=True
        ):
            assert mine.dtype == theirs.dtype and mine.sharding == theirs.sharding


@pytest.mark.parametrize("which", ["4", "-1", "newest"])
def test_a_checkpoint_that_is_not_there(run, which):
    with pytest.raises(UserError, match=f"holds no checkpoint {which}: it has"):
        checkpoint.restore_variables(run[0], which, run[1].step.sharding)


def test_no_checkpoints(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        checkpoint.restore_variables(tmp_path, "last", build()[2].step.sharding)
    with checkpoint.open_manager(tmp_path / "checkpoints", keep=2) as manager:
        assert checkpoint.restore(manager, build()[2]) is None


def test_a_donated_state_does_not_change_what_is_saved(tmp_path):
    """Saving goes on in the background while the next step writes into the same memory."""
    _, encoder, first, _ = build()
    state = jax.tree.map(jnp.copy, first)  # what is donated is no one else's
    tx = make_optimizer(CONFIG.optimizer, CONFIG.training.steps)
    donating = jax.jit(
        partial(train_step, config=CONFIG, encoder=encoder, tx=tx, speakers=8), donate_argnums=0
    )
    with checkpoint.open_manager(tmp_path / "checkpoints", keep=9) as manager:
        digests = {}
        for i in range(3):
            state, _ = donating(state, {"audio": audio(i), "labels": LABELS})
            digests[i + 1] = sha256(state.variables)
            checkpoint.save(manager, state, None, Progress(0, 0.0, "", ""), "", None)
    sharding = build()[2].step.sharding
    for step_number, digest in digests.items():
        variables = checkpoint.restore_variables(tmp_path, str(step_number), sharding).variables
        assert sha256(variables) == digest


def test_variables_alone_come_back(tmp_path):
    """Those of an encoder that was trained elsewhere: there is no loss and no optimiser."""
    variables = {"params": {"encoder": {"kernel": np.arange(6.0, dtype=np.float32)}}}
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        checkpoint.save_variables(manager, variables, "seed: 0")
    sharding = build()[2].step.sharding
    step, back, speakers, _ = checkpoint.restore_variables(tmp_path, "last", sharding)
    assert step == 0 and jax.tree.structure(back) == jax.tree.structure(variables)
    np.testing.assert_array_equal(back["params"]["encoder"]["kernel"], np.arange(6))
    with pytest.raises(UserError, match="holds no checkpoint best"):
        checkpoint.restore_variables(tmp_path, "best", sharding)


def as_another_host(monkeypatch, latest):
    """Let this process be one of several, whose first has `latest` for its latest step."""
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes, "broadcast", lambda _: np.int32(latest))
    monkeypatch.setattr(processes, "SEEN_WITHIN", 0)


def test_hosts_restore_the_step_of_the_first(run, monkeypatch):
    """It may appear here only after this host looked."""
    folder, _, digests = run
    with checkpoint.open_manager(folder / "checkpoints", keep=2) as manager:
        monkeypatch.setattr(manager, "latest_step", lambda: 5)
        as_another_host(monkeypatch, 6)
        back = checkpoint.restore(manager, build()[2])
    assert int(back.state.step) == 6 and sha256(back.state.variables) == digests[6]


@pytest.mark.parametrize("latest, what", [(7, "does not see .*7"), (-1, "sees .*6, which host 0")])
def test_hosts_that_see_other_checkpoints(run, monkeypatch, latest, what):
    folder = run[0]
    with checkpoint.open_manager(folder / "checkpoints", keep=2) as manager:
        as_another_host(monkeypatch, latest)
        with pytest.raises(UserError, match=what):
            checkpoint.restore(manager, build()[2])


def test_hosts_without_checkpoints(tmp_path, monkeypatch):
    with checkpoint.open_manager(tmp_path / "checkpoints", keep=2) as manager:
        as_another_host(monkeypatch, -1)
        assert checkpoint.restore(manager, build()[2]) is None

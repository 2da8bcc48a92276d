import gc
import json
import os
import re
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
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

# pytest puts its hook in the place of runs/checkpoint.py's, which knows these errors.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)

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
        back = checkpoint.restore(manager, lambda: build()[2])
    assert jax.tree.structure(back.state) == jax.tree.structure(state)
    for mine, theirs in zip(jax.tree.leaves(back.state), jax.tree.leaves(state), strict=True):
        assert mine.dtype == theirs.dtype and mine.sharding == theirs.sharding
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(back.table.cluster, TABLE.cluster)
    np.testing.assert_array_equal(back.table.centroids, TABLE.centroids)
    assert back.progress == Progress(5, 12.5, "names", "data")
    assert jax.tree.structure(back.refresh) == jax.tree.structure(UNDER_WAY)
    np.testing.assert_array_equal(back.refresh["params"]["w"], UNDER_WAY["params"]["w"])


def test_the_mean_of_the_last_checkpoints(run, copied):
    """Parameters and statistics of the last two, or of all three that are kept."""
    sharding = run[1].step.sharding

    def of(which):
        return checkpoint.restore_variables(copied.parent, which, sharding)

    for which, steps in [("average:2", (5, 6)), ("average:3", (2, 5, 6)), ("average:1", (6,))]:
        mean, each = of(which), [of(str(step)).variables for step in steps]
        assert mean.step == 6 and mean.speakers == "names"
        expected = jax.tree.map(
            lambda *all: np.mean(np.stack(all), axis=0, dtype=np.float64), *each
        )
        for mine, theirs in zip(
            jax.tree.leaves(mean.variables), jax.tree.leaves(expected), strict=True
        ):
            assert mine.dtype == np.float32 and mine.sharding == sharding
            np.testing.assert_array_equal(mine, theirs.astype(np.float32))
    with pytest.raises(
        UserError, match="holds 3 checkpoints, fewer than average:4 names: .*keep 4"
    ):
        of("average:4")
    flip(weights(copied / "5"))
    with pytest.raises(UserError, match="checkpoints/5 is damaged.*: remove"):
        of("average:2")


def test_the_moving_average_is_kept_and_is_what_a_model_is(run, tmp_path):
    state = run[1].replace(average=jax.tree.map(lambda a: a + 1, run[1].variables))
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        checkpoint.save(manager, state, None, Progress(0, 0.0, "", ""), "seed: 0", None)
        manager.wait_until_finished()
        back = checkpoint.restore(manager, lambda: state).state
    assert sha256(back.variables) == sha256(state.variables) == run[2][6]
    assert sha256(back.average) == sha256(state.average) != run[2][6]
    saved = checkpoint.restore_variables(tmp_path, "last", state.step.sharding)
    assert sha256(saved.variables) == sha256(state.average)
    shutil.rmtree(tmp_path / "checkpoints" / "6" / "average")
    with pytest.raises(UserError, match=r"checkpoints/6 is damaged \(average\)"):
        checkpoint.restore_variables(tmp_path, "6", state.step.sharding)


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run's checkpoints 5 and 6, and 2, which is the best."""
    shutil.copytree(run[0] / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def flip(path, bit=None):
    content = bytearray(path.read_bytes())
    bit = 4 * len(content) if bit is None else bit  # of the middle
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def weights(folder, item="variables"):
    """The file that holds them."""
    return max((folder / item / "d").iterdir(), key=lambda path: path.stat().st_size)


def latest(folder):
    with checkpoint.open_manager(folder, keep=2) as manager:
        return checkpoint.restore(manager, lambda: build()[2])


def without(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def spoil(folder, what):
    if what == "gone":
        without(folder / "variables")
    elif what == "about":
        (folder / "about/metadata").write_text("{")
    elif what == "round":
        content = (folder / "about/metadata").read_text()
        (folder / "about/metadata").write_text(content.replace('"round": 5', '"round": 4'))
    else:
        flip(weights(folder, what))


LESS = [
    pytest.param(what, marks=pytest.mark.long) for what in ("gone", "about", "table", "refresh")
]


@pytest.mark.parametrize("what", ["variables", "optimizer", "round", *LESS])
def test_the_one_before_a_damaged_checkpoint_is_used(run, copied, capsys, what):
    digests, like = run[2], build()[2]
    spoil(copied / "6", what)
    with checkpoint.open_manager(copied, keep=2) as manager:
        back = checkpoint.restore(manager, lambda: like)
        assert int(back.state.step) == 5 and sha256(back.state.variables) == digests[5]
        said = capsys.readouterr().err
        assert "checkpoints/6 is damaged" in said and "checkpoints/damaged.6 can be removed" in said
        assert (copied / "damaged.6").is_dir()
        again = back.state.replace(step=np.int32(6))
        checkpoint.save(manager, again, TABLE, back.progress, "seed: 0", None)
    assert not capsys.readouterr().err and (copied / "6").is_dir()


def test_a_damaged_checkpoint_of_a_trained_run(run, copied, capsys):
    """The last one may be another; one that was asked for may not."""
    sharding = run[1].step.sharding
    for step in (2, 6):
        flip(weights(copied / str(step)))
    saved = checkpoint.restore_variables(copied.parent, "last", sharding)
    assert saved.step == 5 and sha256(saved.variables) == run[2][5]
    said = capsys.readouterr().err
    assert re.search(r"checkpoints/6 is damaged.*: that of step 5 is used", said)
    for which, step in [("best", 2), ("6", 6)]:
        with pytest.raises(UserError, match=f"checkpoints/{step} is damaged.*: remove"):
            checkpoint.restore_variables(copied.parent, which, sharding)
    for step in (2, 5):
        without(copied / str(step))
    for restore in (
        lambda: checkpoint.restore_variables(copied.parent, "last", sharding),
        lambda: latest(copied),
    ):
        with pytest.raises(UserError, match="checkpoints/6 is damaged.*: remove"):
            restore()


def test_a_checkpoint_without_digests_is_restored(run, copied):
    """Those of earlier versions."""
    path = copied / "6" / "about" / "metadata"
    about = json.loads(path.read_text())
    del about["sha256"]
    path.write_text(json.dumps(about))
    assert int(latest(copied).state.step) == 6


@pytest.mark.parametrize("error, what", [
    (MemoryError(), "there is too little memory"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."), "too little memory"),
    (PermissionError(13, "Permission denied"), "Permission denied"),
    (ValueError("PERMISSION_DENIED: Failed to open [os_error_code='13']"), "Permission denied"),
    (ValueError("Error reading [os_error_code='5']"), "Input/output error"),
    (RuntimeError("what may pass"), "does not fit its config, or was saved by another version"),
])  # fmt: skip
def test_what_is_no_damage_is_not_called_so(run, copied, monkeypatch, error, what):
    restore, left = ocp.CheckpointManager.restore, []

    def fail_first(*arguments, **options):
        if not left:
            left.append(None)
            raise error
        return restore(*arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail_first)
    sharding = run[1].step.sharding
    for read in (
        lambda: checkpoint.restore_variables(copied.parent, "last", sharding),
        lambda: latest(copied),
    ):
        left.clear()
        with pytest.raises(UserError, match=f"checkpoints/6 cannot be restored: .*{what}") as said:
            read()
        assert "damaged" not in str(said.value) and "remove" not in str(said.value)
    assert (copied / "6").is_dir()


def test_another_encoder_is_no_damage(copied):
    like = build()[2]
    params = {**like.variables["params"], "more": np.zeros(3)}
    like = like.replace(variables={**like.variables, "params": params})
    with (
        checkpoint.open_manager(copied, keep=2) as manager,
        pytest.raises(UserError, match="checkpoints/6 cannot be restored: it does not fit"),
    ):
        checkpoint.restore(manager, lambda: like)


def test_flipped_bits_are_never_believed(tmp_path, recwarn):
    """Anywhere in a checkpoint: its values are as they were, or it is refused, and no more said."""
    rng, sharding = np.random.default_rng(0), build()[2].step.sharding
    weight = rng.normal(size=(40, 30)).astype(np.float32)
    saved = {"params": {"kernel": weight, "bias": np.zeros(30, np.float32)}}
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        checkpoint.save_variables(manager, saved, "seed: 0")
    files = [path for path in (tmp_path / "checkpoints/0").rglob("*") if path.stat().st_size]
    files = [path for path in files if path.is_file() and "ocdbt.process_0" not in path.parts]
    kinds = tmp_path / "checkpoints/0/variables/_METADATA"
    last_kind = 8 * kinds.read_bytes().rindex(b"np.ndarray")  # after it, orbax has begun a read
    flips, refused = [(kinds, last_kind)], 0
    for i in range(24):
        path = weights(tmp_path / "checkpoints/0") if i % 2 else files[i // 2 % len(files)]
        flips.append((path, int(rng.integers(8 * path.stat().st_size))))
    for path, bit in flips:
        content = path.read_bytes()
        flip(path, bit)
        try:
            back = checkpoint.restore_variables(tmp_path, "last", sharding).variables
            assert jax.tree.all(jax.tree.map(np.array_equal, back, saved)), f"{path}, bit {bit}"
        except UserError as error:
            assert "checkpoints/0 is damaged" in str(error)
            refused += 1
        path.write_bytes(content)
    gc.collect()
    assert refused and not [str(warning.message) for warning in recwarn]


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
        assert checkpoint.restore(manager, lambda: build()[2]) is None


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
    monkeypatch.setattr(processes, "broadcast", lambda a: a if np.ndim(a) else np.int32(latest))
    monkeypatch.setattr(processes, "SEEN_WITHIN", 0)


def test_hosts_restore_the_step_of_the_first(run, monkeypatch):
    """It may appear here only after this host looked."""
    folder, _, digests = run
    with checkpoint.open_manager(folder / "checkpoints", keep=2) as manager:
        monkeypatch.setattr(manager, "latest_step", lambda: 5)
        as_another_host(monkeypatch, 6)
        back = checkpoint.restore(manager, lambda: build()[2])
    assert int(back.state.step) == 6 and sha256(back.state.variables) == digests[6]


@pytest.mark.parametrize("latest, what", [(7, "does not see .*7"), (-1, "sees .*6, which host 0")])
def test_hosts_that_see_other_checkpoints(run, monkeypatch, latest, what):
    folder = run[0]
    with checkpoint.open_manager(folder / "checkpoints", keep=2) as manager:
        as_another_host(monkeypatch, latest)
        with pytest.raises(UserError, match=what):
            checkpoint.restore(manager, lambda: build()[2])


def test_hosts_without_checkpoints(tmp_path, monkeypatch):
    with checkpoint.open_manager(tmp_path / "checkpoints", keep=2) as manager:
        as_another_host(monkeypatch, -1)
        assert checkpoint.restore(manager, lambda: build()[2]) is None


def test_a_pipe_in_place_of_a_file_is_not_opened(copied):
    path = copied / "6/about/metadata"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"^{path} is no regular file"):
        latest(copied)


def test_metadata_nested_without_end_is_damage(run, copied):
    (copied / "6/_CHECKPOINT_METADATA").write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.restore_variables(copied.parent, "6", build()[2].step.sharding)

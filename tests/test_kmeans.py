import numpy as np
import pytest

from chns_jax import cluster
from chns_jax.common.errors import UserError
from chns_jax.common.vectors import unit
from chns_jax.sampling import clusters as tables
from chns_jax.sampling import kmeans
from chns_jax.sampling.clusters import SpeakerClusters


def blobs(count=5, members=20, dimensions=8, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, dimensions))
    return np.repeat(centres, members, 0) + rng.normal(0, 0.01, (count * members, dimensions))


def test_voiceprints_average_before_they_normalise():
    embeddings = np.array([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 4.0]]])
    voiceprints = kmeans.voiceprints(embeddings)
    np.testing.assert_allclose(voiceprints, [[3 / 10**0.5, 1 / 10**0.5], [0, 1]], atol=1e-6)
    first = kmeans.voiceprints(embeddings, normalise_first=True)
    np.testing.assert_allclose(first, [[0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-6)


def test_similar_speakers_share_a_cluster():
    table = kmeans.cluster(blobs(), 5, seed=0)
    assert table.centroids.shape == (5, 8) and table.cluster.dtype == np.int32
    per_blob = table.cluster.reshape(5, 20)
    assert (per_blob == per_blob[:, :1]).all() and len(set(per_blob[:, 0])) == 5
    for c in range(5):
        np.testing.assert_allclose(
            table.centroids[c], blobs()[table.cluster == c].mean(0), atol=1e-5
        )


def test_clustering_is_a_function_of_seed_and_round():
    points = np.random.default_rng(0).normal(size=(60, 4))
    one, same = (kmeans.cluster(points, 6, seed=3, round=2) for _ in range(2))
    np.testing.assert_array_equal(one.cluster, same.cluster)
    np.testing.assert_array_equal(one.centroids, same.centroids)


def voices(count: int, dimensions: int, families: int, seed: int = 0) -> np.ndarray:
    """Voiceprints around the centres of families."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(families, dimensions)))
    own = rng.normal(size=(count, dimensions)) / dimensions**0.5
    return unit(centres[rng.integers(families, size=count)] + own).astype(np.float32)


def objective(points: np.ndarray, table: SpeakerClusters) -> float:
    """Sum of squared distances to the mean of the own cluster."""
    of_cluster = [points[table.speakers_of(c)] for c in np.flatnonzero(table.sizes)]
    return sum(float(np.square(own - own.mean(0)).sum()) for own in of_cluster)


@pytest.mark.parametrize("families", [60, 300])
def test_sampled_k_means_comes_near_the_full_one(families):
    points = voices(6000, 32, families)
    full, sampled, same = (
        kmeans.cluster(points, 20, seed=1, kmeans=kind) for kind in ("full", "sampled", "sampled")
    )
    assert objective(points, sampled) < 1.02 * objective(points, full)
    np.testing.assert_array_equal(sampled.cluster, same.cluster)
    np.testing.assert_array_equal(sampled.centroids, same.centroids)
    distance = np.square(points[:, None] - sampled.centroids).sum(-1)
    np.testing.assert_array_equal(distance.argmin(1), sampled.cluster)


def test_speakers_decide_which_k_means(monkeypatch):
    points = voices(300, 4, 10)
    full, sampled = (kmeans.cluster(points, 9, seed=0, kmeans=k) for k in ("full", "sampled"))
    assert (full.cluster != sampled.cluster).any()
    for below, expected in ((301, full), (300, sampled)):
        monkeypatch.setattr(kmeans, "FULL_BELOW", below)
        table = kmeans.cluster(points, 9, seed=0)
        np.testing.assert_array_equal(table.cluster, expected.cluster)


def test_more_clusters_than_speakers_warn():
    with pytest.warns(UserWarning, match="50 clusters were asked of 4 speakers: 4 are made"):
        table = kmeans.cluster(np.eye(4), 50, seed=0)
    assert sorted(table.cluster) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_identical_voiceprints_leave_clusters_empty(kind):
    table = kmeans.cluster(np.ones((6, 3)), 3, seed=0, kmeans=kind)
    assert table.sizes.sum() == 6 and (table.sizes == 0).any()


def test_the_members_of_a_table():
    table = SpeakerClusters(np.array([2, 0, 2, 1, 0], np.int32), np.eye(4, dtype=np.float32))
    assert [sorted(table.speakers_of(c)) for c in range(4)] == [[1, 4], [3], [0, 2], []]
    np.testing.assert_array_equal(table.sizes, [2, 1, 2, 0])


def test_a_table_comes_back_for_the_speakers_asked(tmp_path):
    table = SpeakerClusters(np.array([2, 0, 1], np.int32), np.eye(3, dtype=np.float32))
    tables.save(tmp_path / "t.npz", table, ["b", "a", "c"])
    back = tables.load(tmp_path / "t.npz", np.array(["a", "c"]))
    np.testing.assert_array_equal(back.cluster, [0, 1])
    np.testing.assert_array_equal(back.centroids, table.centroids)
    with pytest.raises(UserError, match="lacks 2 of the 3 training speakers, d first"):
        tables.load(tmp_path / "t.npz", np.array(["a", "d", "zz"]))


def test_the_tables_of_a_run_are_not_overwritten(tmp_path):
    (tmp_path / "run" / "tables").mkdir(parents=True)
    table = tmp_path / "run" / "tables" / "step_0000000.npz"
    table.write_bytes(b"kept")
    (tmp_path / "run" / "config.yaml").write_text("")
    with pytest.raises(UserError, match="step_0000000.npz is read or written for something else"):
        where = ["--model", tmp_path / "run", "--root", tmp_path, "--out", table]
        cluster.main([str(argument) for argument in where])
    assert table.read_bytes() == b"kept"


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(UserError, match="gone.npz does not exist"):
        tables.load(tmp_path / "gone.npz", np.array(["a"]))
    (tmp_path / "t.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="t.npz is not a table"):
        tables.load(tmp_path / "t.npz", np.array(["a"]))
    good = {"speakers": np.array(["a", "b"]), "cluster": np.array([0, 1]), "centroids": np.eye(2)}
    for wrong in (
        {"cluster": np.array([0])},
        {"cluster": np.array([0, 2])},
        {"cluster": np.array([0, -1])},
        {"speakers": np.array([], str), "cluster": np.array([], int)},
        {"centroids": np.zeros(2)},
        {"centroids": np.array([[0, np.nan], [0, 1]])},
        {"centroids": np.full((2, 2), 1e300)},
        {"centroids": np.array([["a"], ["b"]])},
        {"cluster": np.array([[0, 1]])},
        {"cluster": np.array(["0", "1"])},
        {"cluster": np.array([0, np.nan])},
        {"cluster": np.array([0, 1j])},
        {"speakers": np.array([["a", "b"]])},
        {"speakers": np.array([1, 2])},
        {"speakers": np.array(["a", "a"])},
    ):
        np.savez(tmp_path / "u.npz", **{**good, **wrong})
        with pytest.raises(UserError, match="u.npz is not a table"):
            tables.load(tmp_path / "u.npz", np.array(["a"]))
    np.savez(tmp_path / "u.npz", other=np.zeros(3))
    np.save(tmp_path / "v.npy", np.zeros(3))
    (tmp_path / "w.npz").write_bytes(b"")
    for name in ("u.npz", "v.npy", "w.npz"):
        with pytest.raises(UserError, match="is not a table"):
            tables.load(tmp_path / name, np.array(["a"]))


def test_clusters_by_chance_are_as_large_and_of_others():
    table = SpeakerClusters(np.repeat(np.arange(5), [3, 9, 20, 1, 7]), np.eye(5))
    drawn = tables.by_chance(table, seed=1, round=2)
    assert (drawn.sizes == table.sizes).all() and (drawn.centroids == table.centroids).all()
    assert (drawn.cluster == tables.by_chance(table, seed=1, round=2).cluster).all()
    assert (drawn.cluster != tables.by_chance(table, seed=1, round=3).cluster).any()
    # Two speakers of a cluster meet again as often as any two do: of 40, about one pair in four.
    together = [
        np.mean(tables.by_chance(table, seed=0, round=r).cluster[12:32] == 2) for r in range(200)
    ]
    assert np.mean(together) == pytest.approx(20 / 40, abs=0.02)

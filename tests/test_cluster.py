import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chns_jax.sampling import clusters
from chns_jax.sampling.clusters import within_groups


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 80))
def test_clusters_lie_within_groups(groups, count):
    table = within_groups(np.array(groups), count, seed=1)
    assert len(table.cluster) == len(groups) and (table.sizes > 0).all()
    for cluster in range(len(table.sizes)):
        assert len({groups[speaker] for speaker in table.speakers_of(cluster)}) == 1
    for group in set(groups):
        of_group = [cluster for cluster, g in zip(table.cluster, groups, strict=True) if g == group]
        sizes = np.unique(of_group, return_counts=True)[1]
        assert np.ptp(sizes) <= 1
        share = count * len(of_group) / len(groups)
        assert len(sizes) == min(max(1, round(share)), len(of_group))
    again, other = (within_groups(np.array(groups), count, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(again.cluster, table.cluster)
    np.testing.assert_array_equal(again.centroids, table.centroids)
    assert len(other.sizes) == len(table.sizes)


def test_who_shares_a_cluster_is_drawn():
    groups = np.repeat([0, 1], 50)
    tables = [within_groups(groups, 10, seed=seed).cluster for seed in range(200)]
    together = np.mean([(table[:50, None] == table[:50]).mean() for table in tables])
    of_two = np.mean([table[0] == table[1] for table in tables])
    assert together == 0.2 and 0.1 < of_two < 0.28  # 9 of 49 others


def test_the_command_makes_a_table_of_metadata(command, tones, tmp_path):
    """Speakers of whom nothing is said share clusters."""
    speakers = tmp_path / "speakers.csv"
    lines = [f"s{i:02d},{'ab'[i % 2]},{i // 6}" for i in range(10)]
    speakers.write_text("\n".join(["speaker,corpus,half", *lines]))
    where = ["--root", tones, "--out", tmp_path / "table.npz", "--cache", tmp_path]
    of = ["--metadata", speakers, "--same", "corpus", "--same", "half", "--clusters", 4]
    _, said = command("cluster", *where, *of)
    assert "12 speakers in 5 clusters of 2 to 3" in said and "2 of 12 speakers lack a" in said
    names, table = clusters.read(tmp_path / "table.npz")
    group = {line.split(",")[0]: line.split(",", 1)[1] for line in lines}
    for cluster in range(5):
        assert len({group.get(names[i], "") for i in table.speakers_of(cluster)}) == 1
    _, said = command("cluster", *where, *of[:3], "language", status=2)
    assert "names no column language" in said
    speakers.write_text("speaker,corpus\nanother,a\n")
    _, said = command("cluster", *where, *of[:3], "corpus", status=2)
    assert f"{speakers} has no corpus of any of the 12 speakers of {tones}: give values" in said

import csv
import io

import numpy as np
import pytest

from chns_jax.common.randomness import Purpose, generator
from chns_jax.scoring import metrics
from chns_jax.scoring.bootstrap import speaker_weights
from chns_jax.scoring.comparison import METRICS, compare, to_csv, to_markdown

SPEAKERS = 9


@pytest.fixture(scope="module")
def trials():
    owner = np.repeat(np.arange(SPEAKERS), 3)
    first, second = np.triu_indices(len(owner), k=1)
    return owner[first] == owner[second], owner[first], owner[second]


def scores_of(trials, seed, quality):
    labels, one, _ = trials
    rng = np.random.default_rng(seed)
    speaker = 0.3 * rng.normal(size=SPEAKERS)
    return (rng.normal(size=len(labels)) + (quality + speaker[one]) * labels).astype(np.float32)


@pytest.fixture(scope="module")
def scores(trials):
    return {
        "base": [scores_of(trials, seed, 1.0) for seed in range(3)],
        "good": [scores_of(trials, seed, 2.0) for seed in range(3, 5)],
    }


@pytest.fixture(scope="module")
def rows(trials, scores):
    return compare("list|1", *trials, scores, baseline="base", seed=1, count=50)


def test_rows_are_the_means_over_runs_and_their_intervals(trials, scores, rows):
    labels, one, other = trials
    functions = {
        "eer": metrics.eer,
        "min_dcf_0.01": lambda y, s, weights: metrics.min_dcf(y, s, 0.01, weights=weights),
        "min_dcf_0.05": lambda y, s, weights: metrics.min_dcf(y, s, 0.05, weights=weights),
    }
    assert [(row.system, row.metric) for row in rows] == [
        (system, metric) for system in ("base", "good") for metric in METRICS
    ]
    for row in rows:
        of_runs = lambda system, weights: [  # noqa: E731
            functions[row.metric](labels, run, weights=weights)  # noqa: B023
            for run in scores[system]
        ]
        here, base = of_runs(row.system, None), of_runs("base", None)
        assert row.value == pytest.approx(np.mean(here))
        assert (row.lowest, row.highest) == pytest.approx((min(here), max(here)))
        assert row.change == pytest.approx(np.mean(here) / np.mean(base) - 1)
        drawn, changes = [], []
        for replicate in range(50):
            weights = speaker_weights(labels, one, other, SPEAKERS, seed=1, replicate=replicate)
            drawn.append(np.mean(of_runs(row.system, weights)))
            changes.append(drawn[-1] / np.mean(of_runs("base", weights)) - 1)
        assert (row.low, row.high) == pytest.approx((sorted(drawn)[1], sorted(drawn)[48]))
        changes = sorted(changes)
        assert (row.change_low, row.change_high) == pytest.approx((changes[1], changes[48]))
        assert (row.targets, row.nontargets, row.speakers) == (27, 324, 9)
        assert row.runs == len(scores[row.system])


def test_the_baseline_does_not_change_and_needs_no_errors(trials, scores, rows):
    for row in rows[:3]:
        assert (row.change, row.change_low, row.change_high) == (0, 0, 0)
    perfect = trials[0].astype(float)
    made = compare(
        "x", *trials, {"perfect": [perfect], **scores}, baseline="perfect", seed=0, count=9
    )
    assert (made[0].value, made[0].change, made[0].change_high) == (0, 0, 0)
    assert made[3].change == made[3].change_high == np.inf


def test_a_paired_change_is_surer_than_its_parts(trials):
    """Two systems that nearly agree: each depends on who is drawn, their ratio does not."""
    base = scores_of(trials, 0, 1.0)
    nearly = base + 0.01 * scores_of(trials, 1, 1.0)
    made = compare("x", *trials, {"a": [base], "b": [nearly]}, baseline="a", seed=0, count=100)
    assert made[3].change_high - made[3].change_low < 0.3 * (
        (made[3].high - made[3].low) / made[3].value
    )


def test_without_a_baseline_there_is_no_change(trials, scores):
    made = compare("x", *trials, {"base": scores["base"][:1]}, baseline=None, seed=1, count=5)
    assert made[0].change is None and "change" not in to_markdown(made)
    assert "over runs" not in to_markdown(made)
    assert list(csv.DictReader(io.StringIO(to_csv(made))))[0]["change"] == ""


def test_a_list_of_few_speakers_has_no_intervals(trials):
    few = [column[trials[2] < 4] for column in trials]  # the later of two speakers is the second
    scores = {"a": [few[0] + 0.5 * few[1]], "b": [few[0] * 1.0, few[0] + 0.9 * few[2]]}
    made = compare("short", *few, scores, baseline="a", seed=0, count=30)
    assert {row.speakers for row in made} == {4}
    for row in made:
        assert (row.low, row.high, row.change_low, row.change_high) == (None,) * 4
    text = to_markdown(made)
    assert "[" not in text and "In brackets" not in text
    assert "Without intervals: short, of fewer than 5 speakers." in text
    assert list(csv.DictReader(io.StringIO(to_csv(made))))[0]["low"] == ""
    # Of one run there is no spread, beside a system of two.
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| short")]
    assert cells[0][4] == "" and " to " in cells[1][4]


def test_the_csv_holds_the_numbers(rows):
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert len(read) == len(rows)
    for line, row in zip(read, rows, strict=True):
        assert (line["trials"], line["system"], line["metric"]) == row_names(row)
        for name in ("value", "low", "high", "change", "change_low", "change_high", "highest"):
            assert float(line[name]) == getattr(row, name)


def row_names(row):
    return row.trials, row.system, row.metric


def test_the_markdown_is_one_table(rows):
    text = to_markdown(rows)
    table = [line for line in text.splitlines() if line.startswith("| ")]
    columns = [len(line.replace("\\|", "").split("|")) for line in table]
    assert len(table) == 4 and len(set(columns)) == 1
    eer = rows[3]
    cells = [cell.strip() for cell in table[3].replace("\\|", "!").split("|")[1:-1]]
    assert cells[:4] == [
        "list!1", "good", "2",
        f"{100 * eer.value:.2f} [{100 * eer.low:.2f}, {100 * eer.high:.2f}]",
    ]  # fmt: skip
    assert cells[5].startswith(f"{100 * eer.change:+.1f} [")
    assert "+0.0 [+0.0, +0.0]" in table[2]
    assert "27 target and 324 impostor trials of 9 speakers" in text


def test_paired_runs_are_resampled_with_the_speakers(trials):
    labels, one, other = trials
    scores = {
        "base": [scores_of(trials, seed, 1.0) for seed in range(3)],
        "good": [scores_of(trials, seed + 5, 1.0 + seed / 2) for seed in range(3)],
    }
    made = compare("x", *trials, scores, baseline="base", seed=1, count=50, paired=True)
    eers = {
        (system, run, replicate): metrics.eer(
            labels,
            scores[system][run],
            speaker_weights(labels, one, other, SPEAKERS, seed=1, replicate=replicate),
        )
        for system in scores
        for run in range(3)
        for replicate in range(50)
    }
    changes = []
    for replicate in range(50):
        runs = generator(1, Purpose.BOOTSTRAP_RUNS, replicate).integers(3, size=3)
        base, good = (
            np.mean([eers[system, run, replicate] for run in runs]) for system in ("base", "good")
        )
        changes.append(good / base - 1)
    changes.sort()
    row = made[3]
    assert (row.change_low, row.change_high) == pytest.approx((changes[1], changes[48]))
    alone = compare("x", *trials, scores, baseline="base", seed=1, count=50)[3]
    assert alone.better is None and row.value == alone.value
    eer_of = {system: [metrics.eer(labels, run) for run in runs] for system, runs in scores.items()}
    assert row.better == np.less(eer_of["good"], eer_of["base"]).sum() > 0
    assert f" {row.better} of 3 |" in to_markdown(made, paired=True)
    with pytest.raises(ValueError, match="as many runs"):
        compare("x", *trials, {"base": scores["base"], "good": scores["good"][:2]},
                baseline="base", seed=1, count=20, paired=True)  # fmt: skip


def test_folds_have_thresholds_of_their_own(trials):
    """Their metrics are means over them, their replicates draw from the speakers of all."""
    labels, one, other = trials
    scores = [scores_of(trials, 0, 1.0), scores_of(trials, 1, 2.0)]
    shifted = np.concatenate([scores[0], scores[1] + 100])
    both = [np.tile(labels, 2), *(np.append(side, side + SPEAKERS) for side in (one, other))]
    folds = np.repeat([4, 2], len(labels))
    options = {"baseline": None, "seed": 3, "count": 50}
    parts = [np.flatnonzero(folds == fold) for fold in (2, 4)]
    eer, *_ = compare("x", *both, {"a": [shifted]}, parts=parts, **options)
    assert eer.value == pytest.approx(np.mean([metrics.eer(labels, of) for of in scores]))
    assert eer.speakers == 2 * SPEAKERS and eer.targets == 2 * labels.sum()
    drawn = []
    for replicate in range(50):
        weights = speaker_weights(*both, 2 * SPEAKERS, seed=3, replicate=replicate, parts=parts)
        drawn.append(
            np.mean([metrics.eer(both[0][p], shifted[p], weights=weights[p]) for p in parts])
        )
    assert (eer.low, eer.high) == pytest.approx((sorted(drawn)[1], sorted(drawn)[48]))
    joined, *_ = compare("x", *both, {"a": [shifted]}, **options)
    assert joined.value > eer.value  # by one threshold for both

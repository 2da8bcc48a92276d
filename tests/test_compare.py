import csv
import json

import pytest
from support import pairs_of_tones, save_untrained

from chns_jax.common.errors import UserError
from chns_jax.compare import main, pair_lists, parse_systems
from chns_jax.embedding import model


def test_systems_of_the_command_line(tmp_path):
    assert parse_systems(["runs/a", "b=x/0,x/1", "c=y", "b=x/2"]) == {
        "a": ["runs/a"],
        "b": ["x/0", "x/1", "x/2"],
        "c": ["y"],
    }
    assert parse_systems(["./lr=0.1", "runs/lr=1/"]) == {
        "lr=0.1": ["./lr=0.1"],
        "lr=1": ["runs/lr=1/"],
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a", "b/a"], "two systems are named a"),
        (["a=x", "b/a"], "two systems are named a"),
        (["b/a", "a=x"], "two systems are named a"),
        (["a", "./a"], "run ./a is given twice"),
        (["s=a,b", "t=b"], "run b is given twice"),
        (["s=a,"], "neither RUN nor NAME=RUN"),
        (["=a"], "neither RUN nor NAME=RUN"),
    ],
)
def test_systems_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        parse_systems(arguments)


def test_lists_and_their_roots():
    assert pair_lists(["x/o.txt", "h.txt"], ["/r"]) == {
        "o": ("x/o.txt", "/r"),
        "h": ("h.txt", "/r"),
    }
    assert pair_lists(["o.txt", "o.txt"], ["/clean", "/noisy"]) == {
        "o.txt in /clean": ("o.txt", "/clean"),
        "o.txt in /noisy": ("o.txt", "/noisy"),
    }
    assert pair_lists(["o.txt"], ["gs://bucket/wav"]) == {"o": ("o.txt", "gs://bucket/wav")}
    with pytest.raises(UserError, match="3 lists of trials have 2 roots"):
        pair_lists(["a", "b", "c"], ["/r", "/s"])
    with pytest.raises(UserError, match="given twice"):
        pair_lists(["a", "a"], ["/r"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--trials", "x", "--root", "y"], r"required: \[NAME=\]RUN"),
        (["a", "--trials", "x"], "required: --root"),
        (["a", "b", "--trials", "x", "--root", "y", "--baseline", "c"], "c is not among .* a, b$"),
        (["a", "--trials", "{tmp}/gone", "--root", "y"], "gone is not there: give a trial list"),
        (["a", "--trials", "{tmp}/gone", "--root", "y", "--out", "{tmp}/f/o"], "is not a folder"),
        (["a", "--trials", "x", "--root", "y", "--out", "{tmp}/new/"], "new/ names a folder: add"),
        (
            ["{tmp}/d", "--trials", "x", "--root", "y", "--out", "{tmp}/d/tables/x"],
            "x.md is read or written for something else",
        ),
        (["a", "--trials", "x", "--root", "y", "--out", "{tmp}"], "names a folder: add how"),
        (
            ["a", "--trials", "x", "--root", "y", "--replicates", "19"],
            "--replicates 19 are too few",
        ),
        (["{tmp}/gone", "--trials", "{tmp}/list", "--root", "{tmp}"], "gone is not a run folder"),
    ],
)
def test_mistakes(tmp_path, arguments, message):
    (tmp_path / "list").write_text("1 a/0 a/1\n0 a/0 b/0\n")
    (tmp_path / "f").write_text("")
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match=message):
        main([argument.format(tmp=tmp_path) for argument in arguments])


def test_the_table_of_runs_is_what_evaluate_prints(command, tones, tmp_path):
    """One list under one name, half of it under another; one run, and two that are averaged."""
    cache = ["--cache", tmp_path / "cache"]
    for seed in range(3):
        save_untrained(tmp_path / f"run{seed}", seed)
    lines = pairs_of_tones(6)
    (tmp_path / "all.txt").write_text("".join(lines))
    (tmp_path / "half.txt").write_text("".join(lines[::2]))
    one, other = (model.load(tmp_path / f"run{seed}") for seed in (0, 1))
    assert one.embedder is other.embedder  # so that its programs are compiled once
    evaluated = {}
    for name, seed in [("all", 0), ("all", 1), ("all", 2), ("half", 0)]:
        one = ["--model", tmp_path / f"run{seed}", "--trials", tmp_path / f"{name}.txt"]
        options = ["--replicates", 0, *cache]
        output, _ = command("evaluate", *one, "--root", tones, *options)
        result = json.loads(output)
        costs = {f"min_dcf_{p}": cost for p, cost in result["min_dcf"].items()}
        evaluated[name, seed] = {"eer": result["eer"], **costs}

    two = f"two={tmp_path}/run1,{tmp_path}/run2"
    trials = ["--trials", tmp_path / "all.txt", "--trials", tmp_path / "half.txt"]
    options = ["--baseline", "run0", "--out", tmp_path / "out" / "table", "--replicates", 40]
    where = ["--root", tones, *cache]
    output, _ = command("compare", tmp_path / "run0", two, *trials, *where, *options)
    assert output == (tmp_path / "out" / "table.md").read_text()
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        rows = {(row["trials"], row["system"], row["metric"]): row for row in csv.DictReader(file)}
    assert len(rows) == 2 * 2 * 3
    for (trials, system, metric), row in rows.items():
        if system == "run0":
            expected = evaluated[trials, 0][metric]
            changes = [float(row[key]) for key in ("change", "change_low", "change_high")]
            assert changes == [0, 0, 0]
        elif trials == "all":
            expected = (evaluated[trials, 1][metric] + evaluated[trials, 2][metric]) / 2
            change = expected / evaluated[trials, 0][metric] - 1
            assert float(row["change"]) == pytest.approx(change, abs=1e-4)
        else:
            continue
        assert float(row["value"]) == pytest.approx(expected, rel=1e-5)
        assert float(row["low"]) <= float(row["high"])
        if metric == "eer":
            line = f"| {trials} | {system} | {row['runs']} | {100 * expected:.2f} ["
            assert line in output


def test_the_table_of_normalised_scores_is_what_evaluate_prints(command, tones, tmp_path):
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    for speaker in range(6, 12):
        (cohort / f"s{speaker:02d}").symlink_to(tones / f"s{speaker:02d}")
    save_untrained(tmp_path / "run", 0)
    trials = tmp_path / "all.txt"
    trials.write_text("".join(pairs_of_tones(6)))
    options = ["--trials", trials, "--root", tones, "--cache", tmp_path / "cache"]
    options += ["--norm", "as-norm", "--cohort", cohort, "--cohort_size", 3]
    output, _ = command("evaluate", "--model", tmp_path / "run", *options, "--replicates", 0)
    result = json.loads(output)
    out = ["--out", tmp_path / "table", "--replicates", 20]
    output, _ = command("compare", tmp_path / "run", *options, *out)
    with open(tmp_path / "table.csv", newline="") as file:
        rows = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    costs = {f"min_dcf_{p}": cost for p, cost in result["min_dcf"].items()}
    assert rows == pytest.approx({"eer": result["eer"], **costs}, rel=1e-5)
    assert f"AS-norm by the 3 nearest speakers of {cohort}, or all of fewer, with 5" in output

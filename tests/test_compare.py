import csv
import json

import pytest
from conftest import TINY
from test_train import finish

from chns_jax.compare import pair_lists, parse_systems
from chns_jax.errors import UserError


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
    with pytest.raises(UserError, match="3 lists of trials have 2 roots"):
        pair_lists(["a", "b", "c"], ["/r", "/s"])
    with pytest.raises(UserError, match="given twice"):
        pair_lists(["a", "a"], ["/r"])


@pytest.mark.slow
def test_the_table_of_runs_is_what_evaluate_prints(program, tones, tmp_path):
    cache = ["--cache", tmp_path / "cache"]
    where = ["--data.root", tones, "--data.cache", tmp_path / "cache", "--training.steps", 2]
    for seed in range(3):
        out = ["--training.seed", seed, "--out", tmp_path / f"run{seed}"]
        finish(program("train", *TINY, *where, *out))
    names = [f"s{s:02d}/r{u // 2}/u{u}.flac" for s in range(6) for u in range(4)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    lines = [f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in pairs]
    lists = {"all": lines, "half": lines[::2]}
    trials = []
    for name, chosen in lists.items():
        (tmp_path / f"{name}.txt").write_text("".join(chosen))
        trials += ["--trials", tmp_path / f"{name}.txt"]
    evaluated = {}
    for name in lists:
        for seed in range(3):
            one = ["--model", tmp_path / f"run{seed}", "--trials", tmp_path / f"{name}.txt"]
            output, _ = finish(program("evaluate", *one, "--root", tones, *cache))
            evaluated[name, seed] = json.loads(output)

    two = f"two={tmp_path}/run1,{tmp_path}/run2"
    arguments = [tmp_path / "run0", two, *trials, "--root", tones, *cache]
    options = ["--baseline", "run0", "--out", tmp_path / "out" / "table", "--replicates", 40]
    output, _ = finish(program("compare", *arguments, *options))
    assert output == (tmp_path / "out" / "table.md").read_text()
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    for row in rows:

        def of(seed, row=row):
            result = evaluated[row["trials"], seed]
            return result["eer"] if row["metric"] == "eer" else result["min_dcf"][row["metric"][8:]]

        expected = of(0) if row["system"] == "run0" else (of(1) + of(2)) / 2
        assert float(row["value"]) == pytest.approx(expected, abs=1e-9)
        assert float(row["low"]) <= float(row["high"])
        assert float(row["change"]) == pytest.approx(expected / of(0) - 1)
        if row["system"] == "run0":
            assert float(row["change_low"]) == float(row["change_high"]) == 0
        if row["metric"] == "eer":
            assert (
                f"| {row['trials']} | {row['system']} | {row['runs']} | {100 * expected:.2f} ["
                in output
            )
    again, _ = finish(program("compare", *arguments, *options))
    assert again == output

    def refused(*arguments):
        _, errors = finish(program("compare", *arguments), 2)
        assert errors.startswith("error: ") and len(errors.splitlines()) == 1
        return errors

    assert "baseline gone is not among" in refused(*arguments, "--baseline", "gone")
    assert "required" in refused(*trials, "--root", tones)
    assert "gone is not a run folder" in refused(tmp_path / "gone", *arguments[1:])
    wrong = f"1 {names[0]} {names[1]}\n0 {names[2]} {names[3]}\n"
    (tmp_path / "half.txt").write_text(wrong)
    assert "half.txt has s00/r1/u2.flac and s00/r1/u3.flac as two speakers" in refused(*arguments)

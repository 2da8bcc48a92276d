"""Studies: what their files may say, and two arms trained, compared, stopped and gone on with."""

import csv
import fcntl
import json
import re
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Thread

import pytest
from support import TINY, first_state, pairs_of_tones

from chns_jax import config as configs
from chns_jax.common.errors import UserError
from chns_jax.corpus.split import make_split
from chns_jax.runs import checkpoint
from chns_jax.runs.folder import RunFolder, claim
from chns_jax.studies import definition, table
from chns_jax.studies.folds import hold_out_in_turn
from chns_jax.studies.page import arms_of_ratios
from chns_jax.studies.trained import time_left

STUDIES = sorted((Path(__file__).parents[1] / "configs" / "lab").glob("*.study.yaml"))
STUDY = """
base: base.yaml
baseline: random
seeds: [3, 1]
arms:
  random: {sampler.kind: random}
  chns:
  whole: {sampler: {fill: whole}, sampler.hard_ratio: 1.0}
"""


@pytest.fixture
def written(tmp_path):
    """written("text"): a study file with a base beside it."""
    (tmp_path / "base.yaml").write_text("sampler: {clusters: 7, speakers: 9}\n")

    def write(text):
        path = tmp_path / "a.study.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_study_is_every_arm_with_every_seed(written):
    study = definition.read(written(STUDY))
    config = configs.replaced(configs.Config(out="here"), study.base)
    runs = definition.runs_of(study, [config])
    assert [one.name for one in runs] == [
        f"{arm}-{seed}" for seed in (3, 1) for arm in ("random", "chns", "whole")
    ]
    assert {one.config.sampler.clusters for one in runs} == {7}
    random, chns, whole = (one.config for one in runs[3:])
    assert random.out == "here/runs/random-1" and random.training.seed == 1
    assert configs.differences(random, chns) == ["sampler.kind"]
    assert set(configs.differences(chns, whole)) == {"sampler.fill", "sampler.hard_ratio"}
    assert time_left(runs) == ""  # nothing was trained by which to tell


def test_the_keys_of_a_list_are_in_any_order(written):
    for line in ("{trials: t.txt, root: r}", "{root: r, trials: t.txt}"):
        study = definition.read(written(f"{STUDY}lists: {{O: {line}}}\n"))
        assert study.lists == {"O": definition.TrialList(trials="t.txt", root="r")}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("baseline: random", "baseline: rand", "baseline rand in .*a.study.yaml is none of .*chns"),
        ("base: base.yaml", "base: gone.yaml", "gone.yaml is not there"),
        ("[3, 1]", "[3, 3]", "seeds in .* must be one or more different numbers"),
        ("[3, 1]", "[]", "seeds in .* must be one or more"),
        ("[3, 1]", "[-1]", "seeds .*-1.* must be a list"),
        ("seeds:", "sedes:", "sedes in .* is unknown: a study has base, baseline"),
        ("  chns:", "  chns: {sampler.kinds: chns}", "sampler.kinds of the arm chns in .* unknown"),
        ("  chns:", "  chns: {sampler.kind: x}", "sampler.kind x of the arm chns in .* must be"),
        ("  chns:", "  chns: {training.seed: 1}", "arm chns in .* sets training.seed, which"),
        ("  chns:", "  chns: 5", "arms.chns in .* must have names"),
        ("  chns:", "  a/b:", "the name a/b in .* must be letters"),
        ("  chns:", f"  {'x' * 65}:", "the name x{64}[.]{3} in .* _, . and -, 64 at most"),
        ("  chns:", "  chns: {training.micro_batch: 7}", "divide .* of the arm chns in .*a.study"),
        ("  chns:", "  chns: {sampler.kind: random}", "the arms random and chns in .* are one"),
    ],
)
def test_mistakes_of_a_study(written, old, new, message):
    with pytest.raises(UserError, match=message):
        definition.runs_of(definition.read(written(STUDY.replace(old, new))), [configs.Config()])


def test_a_part_of_a_study_is_in_its_order_and_from_another_baseline(written):
    study = definition.read(written(STUDY))
    assert definition.part_of(study, [], [], None) == study
    part = definition.part_of(study, ["whole", "random"], [5, 2], "whole")
    assert list(part.arms) == ["random", "whole"] and part.arms["whole"] == study.arms["whole"]
    assert (part.seeds, part.baseline, part.base) == ((5, 2), "whole", study.base)


@pytest.mark.parametrize(
    "arms, seeds, baseline, message",
    [
        (["random", "easy"], [], None, "--arms easy is none of the arms in .*: random, chns, who"),
        ([], [], "easy", "--baseline easy is none of the arms in .*a.study.yaml"),
        (["chns", "whole"], [], None, "--arms leaves out random, which .* another as --baseline"),
        (["random"], [], "chns", "--arms leaves out chns"),
        ([], [3, 3], None, "--seeds must be one or more different numbers"),
    ],
)
def test_mistakes_of_a_part(written, arms, seeds, baseline, message):
    with pytest.raises(UserError, match=message):
        definition.part_of(definition.read(written(STUDY)), arms, seeds, baseline)


def test_a_curve_over_ratios_has_one_arm_of_each(written):
    arms = "  h0: {sampler.hard_ratio: 0.0}\n  h100: {sampler.hard_ratio: 1.0}\n"
    study = definition.read(written(f"{STUDY}{arms}"))
    drawn = arms_of_ratios(definition.runs_of(study, [configs.Config()]))
    assert list(drawn) == ["chns", "h0", "h100"]  # h0 in place of random
    study = definition.part_of(study, ["random", "chns", "h100", "whole"], [], None)
    drawn = arms_of_ratios(definition.runs_of(study, [configs.Config()]))
    assert list(drawn) == ["random", "chns", "h100"]


@pytest.fixture
def study(tones, tmp_path):
    """Arguments of a study of two arms and two seeds; what it trains with is `trains`."""
    (tmp_path / "two.yaml").write_text(
        "baseline: random\nseeds: [0, 1]\n"
        "arms: {random: {sampler.kind: random}, chance: {sampler.cluster_by: chance}}\n"
    )
    lines = pairs_of_tones(6)
    (tmp_path / "all.txt").write_text("".join(lines))
    (tmp_path / "half.txt").write_text("".join(lines[::2]))
    arguments = [*TINY, "--training.steps", 2, "--data.held_out", 0, "--sampler.start_step", 1]
    arguments += ["--validation.every", 1, "--replicates", 20, "--data.cache", tmp_path / "cache"]
    arguments += ["--data.root", tones, "--data.trials", tmp_path / "all.txt"]
    return ["study", tmp_path / "two.yaml", *arguments, "--out", tmp_path / "out"]


first = lru_cache(first_state)


def untrained(config, opened):
    """In place of training: a run of the encoder as it begins."""
    run = RunFolder(Path(config.out))
    opened.enter_context(claim(run, config))
    with checkpoint.open_manager(run.checkpoints) as manager:
        state = first(replace(config, out="", sampler=configs.Sampler()))  # is that of all arms
        checkpoint.save(manager, state, None, checkpoint.Progress(0, 0.0, "", ""), "", None)
    lines = [{"step": s, "eer": 0.1 * s, "negative_cosine_mean": 0.2} for s in (1, 2)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seconds = 60.0 if config.sampler.cluster_by == "chance" else 240.0
    run.summary.write_text(json.dumps({"step": 2, "seconds": seconds}))


@pytest.fixture
def scored(monkeypatch):
    """In place of scores: how many runs were to be scored, and on which lists."""
    asked = []
    monkeypatch.setattr(
        table,
        "score_runs",
        lambda runs, lists, **_: asked.append((len(runs), list(lists[-1]))) or [],
    )
    return asked


def rows_of(folder):
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_runs_are_compared_and_gone_on_with(command, study, tmp_path, monkeypatch):
    monkeypatch.setattr("chns_jax.train.train", untrained)
    out = tmp_path / "out"
    _, said = command(*study)
    assert "run 2 of 4: chance-0; all take about 0 h 12 min more" in said  # 3 of 4 min
    assert "run 4 of 4: chance-1; all take about 0 h 1 min more" in said  # as its arm's other
    rows = rows_of(out)
    assert [(row["trials"], row["system"], row["metric"]) for row in rows][::3] == [
        ("all", "random", "eer"),
        ("all", "chance", "eer"),
    ]
    # The arms begin alike, and differ in nothing else here.
    assert rows[0]["value"] == rows[3]["value"] and rows[3]["better"] == "0"
    assert float(rows[0]["lowest"]) < float(rows[0]["highest"]) and rows[0]["runs"] == "2"
    page = (out / "study.html").read_text()
    assert "Change of the EER from random" in page and "Error rates: all" in page
    assert "EER over steps" in page and "against the hard ratio" not in page

    # A part of the study: the runs that are there, measured from another arm.
    _, said = command(*study, "--seeds", 1, "--arms", "random", "chance", "--baseline", "chance")
    assert "run " not in said and {row["runs"] for row in rows_of(out)} == {"1"}
    assert "2 arms, seeds 1; changes are from chance" in (out / "study.html").read_text()

    # One run lost its end: it alone is trained again.
    (out / "runs/chance-1/summary.json").unlink()
    before = (out / "runs/random-0/summary.json").stat().st_mtime_ns
    half = ["--trials", tmp_path / "half.txt", "--trials", tmp_path / "all.txt"]
    table, said = command(*study, *half)
    assert said.count("run ") == 1 and "run 4 of 4: chance-1; all take about 0 h 1 min" in said
    assert (out / "runs/random-0/summary.json").stat().st_mtime_ns == before
    assert rows_of(out)[6:] == rows and {row["trials"] for row in rows_of(out)[:6]} == {"half"}
    assert "| half | chance |" in table and "speakers of the trials and the seeds" in table

    # Scored again, by AS-norm with the speakers that the runs were trained on.
    cosines = rows_of(out)[6:]
    table, said = command(*study, "--norm", "as-norm", "--cohort_size", 4)
    normalised = "AS-norm by the 4 nearest training speakers of the run"
    assert "run " not in said and normalised in table
    assert normalised in (out / "study.html").read_text()
    assert [row["system"] for row in rows_of(out)] == [row["system"] for row in cosines]
    assert [row["value"] for row in rows_of(out)] != [row["value"] for row in cosines]


def test_processes_share_the_runs_of_a_study(command, study, scored, tmp_path, monkeypatch):
    begun = []

    def train(config, opened):
        begun.append(Path(config.out).name)
        untrained(config, opened)

    monkeypatch.setattr("chns_jax.train.train", train)
    other = RunFolder(tmp_path / "out/runs/chance-0")
    other.path.mkdir(parents=True)
    with open(other.lock, "w") as held:  # by another process
        fcntl.flock(held, fcntl.LOCK_EX)
        _, said = command(*study)
        assert begun == ["random-0", "random-1", "chance-1"]
        # Three runs of which one is timed at 4 minutes, of one that another process is at.
        assert "run 3 of 4: random-1; all take about 0 h 6 min more in 2 processes" in said
        assert "other processes are at the runs that are left" in said
        assert not (tmp_path / "out/table.md").exists()
        # It had not yet begun when this process looked.
        with monkeypatch.context() as patch:
            patch.setattr("chns_jax.studies.trained.is_at_work", lambda folder, config: False)
            assert "another process has begun chance-0" in command(*study)[1]
        # It trains something else.
        other.config.write_text(configs.to_yaml(configs.Config()))
        _, said = command(*study, status=2)
        assert f"{other.path} holds a run of another config, which differs in" in said
        other.config.unlink()
    # It was killed, and has left its run behind.
    command(*study)
    assert begun[4:] == ["chance-0"] and scored == [(4, ["all"])]


def test_a_table_of_fewer_seeds_takes_no_place_of_one_of_more(
    command, study, scored, tmp_path, monkeypatch
):
    monkeypatch.setattr("chns_jax.train.train", untrained)
    command(*study)
    out = tmp_path / "out"
    of_seed_1 = [out / f"runs/{arm}-1/summary.json" for arm in ("random", "chance")]
    summary = of_seed_1[0].read_text()
    for path in (*of_seed_1, out / "runs/chance-0/summary.json"):
        path.unlink()

    def train(config, opened):  # another process completes seed 1, and then lets the tables go
        untrained(config, opened)
        lock = open(out / "lock", "a")
        fcntl.flock(lock, fcntl.LOCK_EX)

        def end():
            time.sleep(0.3)
            for path in of_seed_1:
                path.write_text(summary)
            lock.close()

        Thread(target=end).start()

    monkeypatch.setattr("chns_jax.train.train", train)
    command(*study)
    assert [runs for runs, _ in scored] == [2, 4, 4]  # and not 2 again


def test_what_is_wrong_is_said_before_any_training(command, study, tones, tmp_path, monkeypatch):
    monkeypatch.setattr("chns_jax.train.train", lambda *_: pytest.fail("it trains"))
    path, gone = tmp_path / "two.yaml", tmp_path / "gone"
    text = path.read_text()
    for added, said in [
        (
            f"lists: {{all: {{trials: {tmp_path}/all.txt, root: {gone}}}}}",
            f"the folder {gone} does",
        ),
        (f"lists: {{all: {{trials: {gone}, root: {tmp_path}}}}}", f"{gone} is not there"),
    ]:
        path.write_text(f"{text}{added}\n")
        assert said in command(*study, status=2)[1]
    path.write_text(text.replace("cluster_by: chance", "cluster_by: chance, data.held_out: 2"))
    assert "sets data.held_out, which the study sets: drop it" in command(*study, status=2)[1]
    path.write_text(text.replace("cluster_by: chance", "cluster_by: chance, sampler.speakers: 64"))
    said = command(*study, status=2)[1]
    assert "the run chance-0 cannot be trained: a batch of 64 speakers" in said
    path.write_text(text)
    norm = ["--norm", "as-norm", "--cohort", tones]
    said = command(*study, *norm, status=2)[1]
    assert "--cohort holds 6 of the 6 speakers of the trials" in said
    for added, said in [
        (["--checkpoint", "foo"], "--checkpoint foo must be last, best or an integer from 0 on"),
        (["--checkpoint", 3], "--checkpoint 3 lies beyond the 2 steps of the run random-0"),
        (["--cohort_size", 5], "--cohort_size is for --norm as-norm: give both or neither"),
        (["--norm", "as-norm", "--cohort", gone], f"the folder {gone} does not exist"),
        (["--training.seed", 5], "training.seed 5 does nothing here, as the study sets the seeds"),
        (["--seeds", -1], "--seeds -1 must be an integer from 0 "),
        (["--arms", "chance"], "--arms leaves out random"),
        (
            ["--hosts.coordinator", "localhost:1", "--hosts.count", 2, "--hosts.index", 0],
            "hosts does nothing here, as each run of a study is trained on one",
        ),
    ]:
        assert said in command(*study, *added, status=2)[1]
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    _, said = command(*study, "--out", tmp_path / "file" / "out", status=2)
    assert f"{tmp_path}/file is no folder: give another --out" in said
    (tmp_path / "out" / "study.html").mkdir(parents=True)
    (tmp_path / "out" / "runs").mkdir()
    assert "holds a study.html that no study wrote" in command(*study, status=2)[1]


def test_a_base_may_have_a_seed(written, tmp_path):
    (tmp_path / "base.yaml").write_text("training: {seed: 4}\n")
    study = definition.read(written(STUDY))
    config = configs.replaced(configs.Config(), study.base)
    assert {one.seed for one in definition.runs_of(study, [config])} == {3, 1}


@pytest.mark.long
def test_trained_runs_are_compared(command, study, tmp_path):
    command(*study)
    rows = rows_of(tmp_path / "out")
    for arm in ("random", "chance"):
        for seed in (0, 1):
            run = tmp_path / f"out/runs/{arm}-{seed}"
            assert json.loads((run / "summary.json").read_text())["step"] == 2
            assert len(list((run / "tables").glob("*.npz"))) == (arm == "chance")
    assert {row["runs"] for row in rows} == {"2"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_study_is_one(path):
    study = definition.read(str(path))
    runs = definition.runs_of(study, [configs.replaced(configs.Config(), study.base)])
    assert len(runs) == len(study.seeds) * len(study.arms) >= 3
    assert f"python -m chns_jax.study configs/lab/{path.name}" in path.read_text()


def test_a_study_needs_trials_that_all_seeds_share(command, tmp_path):
    (tmp_path / "one.yaml").write_text("baseline: a\nseeds: [0]\narms: {a: }\n")
    _, said = command("study", tmp_path / "one.yaml", status=2)
    assert "has no lists: give --data.trials LIST" in said and "or --data.held_out N" in said


def test_speakers_are_held_out_once_for_all_seeds(command, study, scored, tmp_path, monkeypatch):
    monkeypatch.setattr("chns_jax.train.train", untrained)
    arguments = study[: study.index("--data.trials")]  # they end with the root
    arguments += ["--out", tmp_path / "out", "--sampler.speakers", 2, "--sampler.clusters", 2]
    command(*arguments, "--data.held_out", 2)
    trials = tmp_path / "out/trials/all.txt"
    held_out = {word.split("/")[0] for word in trials.read_text().split() if "/" in word}
    assert len(held_out) == 2
    for name in ("random-0", "chance-1"):
        config = configs.load(["--config", str(tmp_path / f"out/runs/{name}/config.yaml")])
        assert config.data.trials == (str(trials),) and config.data.held_out == 0
        assert not held_out & set(make_split(config).training.speakers)
    # `trials` draws the same.
    root = study[study.index("--data.root") + 1]
    command("trials", root, "--out", tmp_path / "same.txt", "--speakers", 2)
    assert (tmp_path / "same.txt").read_text() == trials.read_text()
    assert scored == [(2, ["all"]), (4, ["all"])]

    before = trials.read_text()
    assert "run " not in command(*arguments, "--data.held_out", 2)[1]
    _, said = command(*arguments, "--data.held_out", 3, status=2)
    assert f"{trials} has other trials than" in said and trials.read_text() == before


@pytest.mark.parametrize("listed", [False, True], ids=["all", "listed"])
def test_every_speaker_is_held_out_once(command, study, scored, tmp_path, monkeypatch, listed):
    """Of a folder; or of a list, which loses its trials between folds."""
    monkeypatch.setattr("chns_jax.train.train", untrained)
    arguments = [*study[: study.index("--data.trials")], "--out", tmp_path / "out", "--folds", 2]
    arguments += ["--sampler.speakers", 2, "--sampler.clusters", 2]
    lines, name = pairs_of_tones(12), "pairs" if listed else "all"
    (tmp_path / "pairs.txt").write_text("".join(lines))
    if listed:
        arguments += ["--data.trials", tmp_path / "pairs.txt"]
    assert "run 8 of 8: chance-1-fold2" in command(*arguments)[1]
    assert scored == [(4, [name]), (8, [name])]
    texts = [(tmp_path / f"out/trials/fold{k}/{name}.txt").read_text() for k in (1, 2)]
    held_out = [set(re.findall(r"s\d\d", text)) for text in texts]
    assert [*map(len, held_out)] == [6, 6] and not held_out[0] & held_out[1]
    if listed:
        of_folds = [
            [line for line in lines if {*re.findall(r"s\d\d", line)} <= of] for of in held_out
        ]
        assert texts == ["".join(of_fold) for of_fold in of_folds]
    for fold, speakers in enumerate(held_out, start=1):
        path = tmp_path / f"out/runs/chance-1-fold{fold}/config.yaml"
        training = make_split(configs.load(["--config", str(path)])).training
        assert set(training.speakers) == {f"s{s:02d}" for s in range(12)} - speakers


def test_the_table_of_folds_has_their_means(command, study, tones, tmp_path, monkeypatch):
    monkeypatch.setattr("chns_jax.train.train", untrained)
    arguments = [*study[: study.index("--data.trials")], "--out", tmp_path / "out", "--folds", 2]
    arguments += ["--sampler.speakers", 2, "--sampler.clusters", 2, "--seeds", 1]
    table, _ = command(*arguments, "--arms", "random")
    assert "of 12 speakers" in table and "Every speaker is held out once, in 2 folds" in table
    of_folds = []
    for fold in (1, 2):
        where = ["--trials", tmp_path / f"out/trials/fold{fold}/all.txt", "--root", tones]
        run = tmp_path / f"out/runs/random-1-fold{fold}"
        command("compare", run, *where, "--replicates", 20, "--out", tmp_path / f"fold{fold}")
        with open(tmp_path / f"fold{fold}.csv", newline="") as file:
            of_folds.append(float(next(csv.DictReader(file))["value"]))
    assert float(rows_of(tmp_path / "out")[0]["value"]) == pytest.approx(sum(of_folds) / 2)


def test_a_list_too_short_for_folds(command, study, tmp_path, monkeypatch):
    monkeypatch.setattr("chns_jax.train.train", lambda *_: pytest.fail("it trains"))
    few = "".join(line for line in pairs_of_tones(10) if line[0] == "1" or "s00/r0/u0" in line)
    (tmp_path / "few.txt").write_text(few)
    arguments = [*study, "--folds", 2, "--data.trials", tmp_path / "few.txt"]
    _, said = command(*arguments, status=2)
    assert "the list few has no targets or no impostors among the 5 speakers of a fold" in said
    assert not (tmp_path / "out").exists()


def test_folds_of_voices_have_the_same_lists(tmp_path):
    """Of these twelve, only one half has two of one family."""
    voices = configs.Voices(speakers=12, utterances=2, seconds=0.5, seed=10)
    data = configs.Data(cache=str(tmp_path), voices=voices)
    config = configs.Config(out=str(tmp_path / "out"), data=data)
    assert len(make_split(replace(config, data=replace(data, held_out=11))).trials) == 2
    folds = hold_out_in_turn(config, 2)
    names = [[Path(path).stem for path in fold.data.trial_lists] for fold in folds]
    assert names == [["all"], ["all"]]

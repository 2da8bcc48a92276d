"""The page of an evaluation: its numbers against plain loops, and in a browser."""

import json
import re
from statistics import NormalDist

import numpy as np
import pytest

from chns_jax import evaluate
from chns_jax.common.errors import UserError
from chns_jax.reports.evaluation_page import (
    by_group,
    det_curve,
    duration_groups,
    eer_threshold,
    trial_genders,
    write_report,
)
from chns_jax.scoring import metrics


def trials(count, seed=0, decimals=9):
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.3
    return labels, np.round(rng.normal(2.0 * labels, 1.0), decimals)


def distance_to_polyline(points, corners):
    start, step = corners[:-1], np.diff(corners, axis=0)
    along = ((points[:, None] - start) * step).sum(axis=-1) / (step**2).sum(axis=-1)
    nearest = start + np.clip(along, 0, 1)[..., None] * step
    return np.linalg.norm(points[:, None] - nearest, axis=-1).min(axis=1)


@pytest.mark.parametrize("count, decimals", [(30, 9), (3_000, 9), (20_000, 9), (20_000, 1)])
def test_a_thinned_det_curve_is_the_curve(count, decimals):
    labels, scores = trials(count, decimals=decimals)
    rates = metrics.error_rates(labels, scores)
    thinned = np.stack(det_curve(rates), axis=1)
    assert len(thinned) <= 2000
    probit = np.vectorize(NormalDist().inv_cdf)
    full = np.stack([probit(np.clip(rate, 1e-4, 1 - 1e-4)) for rate in rates], axis=1)
    sample = full[np.linspace(0, len(full) - 1, 300).astype(int)]
    assert distance_to_polyline(sample, thinned).max() < 0.008
    moved = np.abs(thinned[::9, None] - full[None, :]).sum(axis=-1).min(axis=1)
    assert moved.max() < 1e-9  # no point but those of the curve


def test_a_curve_of_normal_scores_is_straight():
    labels = np.arange(40_000) % 2 == 0
    quantiles = NormalDist().inv_cdf
    scores = np.array([quantiles((i // 2 + 0.5) / 20_000) for i in range(40_000)]) + 2 * labels
    x, y = det_curve(metrics.error_rates(labels, scores))
    inner = (np.abs(x) < 3) & (np.abs(y) < 3)
    np.testing.assert_allclose((x + y)[inner], -2, atol=0.03)  # d' is 2


@pytest.mark.parametrize("decimals", [9, 1])
def test_eer_threshold(decimals):
    labels, scores = trials(500, decimals=decimals)
    reached = [t for t in scores if np.mean(scores[~labels] >= t) >= np.mean(scores[labels] < t)]
    assert eer_threshold(labels, scores) == max(reached)


def test_groups_against_loops():
    labels, scores = trials(400)
    rng = np.random.default_rng(1)
    shortest = rng.gamma(4.0, 1.5, 400)
    groups = duration_groups(shortest)
    assert len(groups) == 5
    assert (np.sum(list(groups.values()), axis=0) == 1).all()  # each trial is in one
    for name, mask in groups.items():
        low, high = map(float, re.fullmatch(r"([\d.]+) to ([\d.]+) s", name).groups())
        assert low - 0.06 <= shortest[mask].min() and shortest[mask].max() <= high + 0.06
        assert 60 <= mask.sum() <= 100
    groups["impostors"] = ~labels
    for name, targets, impostors, eer, miss, alarm in by_group(labels, scores, 0.7, groups):
        mine = [i for i in range(400) if groups[name][i]]
        target = [scores[i] for i in mine if labels[i]]
        impostor = [scores[i] for i in mine if not labels[i]]
        assert (targets, impostors) == (len(target), len(impostor))
        assert alarm == pytest.approx(100 * sum(s >= 0.7 for s in impostor) / len(impostor))
        if name == "impostors":
            assert eer is None and miss is None
        else:
            assert miss == pytest.approx(100 * sum(s < 0.7 for s in target) / len(target))
            assert eer == pytest.approx(100 * metrics.eer(labels[mine], scores[mine]))
    assert list(duration_groups(np.full(7, 2.0))) == ["2.0 s"]


def test_genders_of_trials():
    speakers = np.array([["a", "b"], ["b", "a"], ["a", "a"], ["b", "c"], ["b", "d"]])
    known = {"a": "f", "b": "m", "c": "m"}
    assert trial_genders(speakers, known) == ["fm", "fm", "ff", "mm", None]


def test_figures_and_axes_of_the_page(tmp_path):
    pytest.importorskip("plotly")
    labels, scores = trials(600)
    threshold = 3.5  # misses most targets
    write_report(
        tmp_path / "report.html",
        title="page",
        labels=labels,
        scores=scores,
        enrolment=["a"] * 600,
        test=["b"] * 600,
        seconds=np.ones((600, 2)),
        metrics={"eer": 0.15891, "min_dcf": {"0.01": 1.0000000000000002}, "targets": 200},
        intervals={"eer": [0.1, 0.21119], "min_dcf": {"0.01": [0.9, 1.0000000000000002]}},
        score_is="log-likelihood ratio",
        threshold=threshold,
        threshold_is="a test",
    )
    page = (tmp_path / "report.html").read_text()
    rows = re.findall("<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", page)
    assert rows[:3] == [
        ("EER", "0.1589", "[0.1000, 0.2112]"),
        ("minDCF 0.01", "1.0000", "[0.9000, 1.0000]"),
        ("target trials", "200", "–"),
    ]
    miss = NormalDist().inv_cdf(np.mean(scores[labels] < threshold))
    det = re.search(r'"xaxis":{"title":{"text":"false-alarm rate.*?</script>', page, re.DOTALL)[0]
    low, high = map(float, re.search(r'"range":\[([-.\d]+),([-.\d]+)\]', det).groups())
    assert miss > NormalDist().inv_cdf(0.6) and low < miss < high
    assert '"width":' not in det  # as wide as the window
    assert '"text":"log-likelihood ratio"' in page


@pytest.mark.long
@pytest.mark.slow
def test_page(tmp_path, browser):
    labels, scores = trials(600)
    nasty = "</script><img src=x>é\udcff/"
    enrolment, test = ([f"{nasty}{side}{i}.wav" for i in range(600)] for side in "et")
    page = tmp_path / "report.html"
    write_report(
        page,
        title="<b>&",
        labels=labels,
        scores=scores,
        enrolment=enrolment,
        test=test,
        seconds=np.random.default_rng(0).uniform(1, 9, (600, 2)),
        metrics={"eer": 0.1589, "min_dcf": {"0.01": 0.8, "0.05": 0.5}, "note": "<i>"},
        intervals={"eer": [0.1, 0.2]},
        threshold=1.25,
        threshold_is="a false-alarm rate of 1 %",
        genders=["ff", "mm", "fm", None] * 150,
    )
    dom = browser(page)
    assert dom.count('class="plotly-graph-div') == 3
    assert "<img src=x>" not in dom and "<b>&" not in dom and "<i>" not in dom
    assert "a false-alarm rate of 1 %" in dom and "0.1589" in dom and "unknown" in dom

    tables = [re.findall(r'">(-?[\d.]+)</td><td>[^<]*e(\d+)\.wav', part)
              for part in dom.split("<table>")[1:]]  # fmt: skip
    hardest, worst = ([int(i) for _, i in table] for table in tables[-2:])
    by_score = sorted(range(600), key=lambda i: scores[i])
    assert hardest == [i for i in reversed(by_score) if not labels[i]][:50]
    assert worst == [i for i in by_score if labels[i]][:50]
    assert float(tables[-1][0][0]) == pytest.approx(scores[worst[0]], abs=1e-4)


def arguments(untrained, tones, tmp_path, *options):
    names = [f"s{s:02d}/r{u // 2}/u{u}.flac" for s in range(4) for u in range(4)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    lines = [f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in pairs]
    (tmp_path / "list.txt").write_text("".join(lines))
    given = ["--model", untrained, "--trials", tmp_path / "list.txt", "--root", tones]
    return [str(each) for each in [*given, "--cache", tmp_path / "cache", *options]]


@pytest.mark.slow
def test_evaluate_writes_it(untrained, tones, tmp_path, browser, capsys):
    (tmp_path / "meta.csv").write_text("speaker,gender\ns00,f\ns01,m\ns02,f\n")
    page = tmp_path / "deep" / "report.html"
    options = ["--report", page, "--metadata", tmp_path / "meta.csv"]
    evaluate.main(arguments(untrained, tones, tmp_path, *options))
    eer = json.loads(capsys.readouterr().out)["eer"]
    dom = browser(page)
    assert dom.count('class="plotly-graph-div') == 3 and f"EER {100 * eer:.2f} %" in dom
    assert "the equal error rate of these trials" in dom and "female and male" in dom


def test_mistakes_get_one_sentence(untrained, tones, tmp_path):
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        evaluate.main(arguments(untrained, tones, tmp_path, "--report", tmp_path))
    with pytest.raises(UserError, match="--metadata is only for a page: give --report"):
        evaluate.main(arguments(untrained, tones, tmp_path, "--metadata", "meta.csv"))

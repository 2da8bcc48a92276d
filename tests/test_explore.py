"""The command, run in this process, and its page in a browser."""

import base64
import io
import re
import shutil
import sys
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile

from chns_jax import explore
from chns_jax.common.errors import UserError
from chns_jax.sampling import clusters as tables
from chns_jax.sampling.clusters import SpeakerClusters

pytestmark = pytest.mark.usefixtures("loaded_once")


def run(untrained, root, out, *options):
    given = ["--model", untrained, "--root", root, "--out", out, "--utterances_per_speaker", 4]
    explore.main([str(each) for each in [*given, "--cache", out.parent / "cache", *options]])


@pytest.fixture
def run_with_tables(untrained, tmp_path):
    """The untrained run, with three tables that do not know the last two speakers of `tones`."""
    run = shutil.copytree(untrained, tmp_path / "run <b>")
    rng = np.random.default_rng(0)
    for step in (100, 200, 300):
        table = SpeakerClusters(
            rng.integers(0, 3, 10).astype(np.int32), np.eye(3, dtype=np.float32)
        )
        names = [f"s{i:02d}" for i in range(10)]
        tables.save(run / "tables" / f"step_{step:07d}.npz", table, names)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("named", ["tables", pytest.param("no tables", marks=pytest.mark.long)])
def test_page(untrained, run_with_tables, tones, tmp_path, browser, named):
    model = run_with_tables if named == "tables" else untrained
    out = tmp_path / "page.html"
    run(model, tones, out, "--clusters", "3")
    dom = browser(out)
    assert dom.count('class="plotly-graph-div') == (4 if named == "tables" else 2)
    assert ("The run has no tables" in dom) == (named == "no tables")
    assert "run <b>" not in dom
    sounds = re.findall('src="data:audio/flac;base64,([^"]+)"', dom)
    assert len(sounds) == 2 * explore.PAIRS_WITH_SOUND
    waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))
    assert rate == 16_000 and 0.59 < len(waveform) / rate < 0.91 and np.abs(waveform).max() > 0.01


def test_an_utterance_in_another_folder_is_listed(untrained, tones, tmp_path):
    root = shutil.copytree(tones, tmp_path / "tones & more")
    moved = root / "s00" / "r0" / "u0.flac"
    shutil.copy(root / "s11" / "r0" / "u0.flac", moved)
    run(untrained, root, tmp_path / "page.html", "--clusters", "3", "--audio", "none")
    page = (tmp_path / "page.html").read_text()
    assert "The colour is its k-means cluster" in page  # there are more colours than clusters
    assert "<audio " not in page and "tones &amp; more" in page
    row = re.search("<td>s00/r0/u0.flac</td><td>s00</td><td[^>]*>[^<]+</td><td>(s..)", page)
    assert row[1] in ("s10", "s11")  # an encoder that never learned hears these two alike


def test_links_lead_to_the_files(untrained, tones, tmp_path):
    root = shutil.copytree(tones, tmp_path / 'a "#é')
    out = tmp_path / "deep" / "page.html"
    run(untrained, root, out, "--clusters", "3", "--audio", "link")
    links = re.findall('<audio[^>]* src="([^"]+)"', out.read_text())
    assert len(links) == 100
    assert all((out.parent / unquote(link)).is_file() for link in links)


def test_mistakes_get_one_sentence(untrained, tones, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    (tmp_path / "empty").mkdir()
    shutil.copytree(tones / "s00", tmp_path / "one" / "s00")
    for model, root, where, options, message in [
        (tmp_path / "gone", tones, out, [], "gone is not a run folder"),
        (untrained, tmp_path / "gone", out, [], "gone does not exist"),
        (untrained, tmp_path / "empty", out, [], "empty holds no audio"),
        (untrained, tmp_path / "one", out, [], "one holds one speaker, s00: two are needed"),
        (untrained, tones, tmp_path / "empty", [], "empty is a folder"),
        (untrained, tones, out, ["--checkpoint", "7"], "no checkpoint 7"),
        (untrained, tones, out, ["--utterances_per_speaker", "1"], "give 2 or more"),
        (untrained, tones, out, ["--audio", "loud"], "audio"),
    ]:
        with pytest.raises(UserError, match=message):
            run(model, root, where, *options)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UserError, match=r'pip install "\.\[report\]"'):
        run(untrained, tones, out)
    assert not out.exists()

"""Pages: what is written is text, tables sort, nothing is fetched."""

import sys

import pytest

from chns_jax.common.errors import UserError
from chns_jax.reports import pages

NASTY = "</script><script>alert(1)</script>&\udcff"


def test_text_is_escaped():
    assert pages.escape(NASTY) == (
        "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;\\udcff"
    )
    assert pages.escape(pages.Html("<b>")) == "<b>"
    made = pages.table({"<a>": "", "b": ".2f"}, [(NASTY, 1.0), ("x", None)])
    assert "<script>" not in made and "<a>" not in made
    assert '<td class="number">1.00</td>' in made and '<td class="number">–</td>' in made


def test_no_plotly_gets_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UserError, match=r'pip install "\.\[report\]"'):
        pages.check_plotly()


def page(tmp_path, *sections):
    pages.write(tmp_path / "page.html", NASTY, "A sentence.", sections)
    return tmp_path / "page.html"


CLICK = """<script>addEventListener("load", () => {
  for (const column of [0, 0, 1, 1, 0]) {
    document.querySelectorAll("th")[column].click();
    const names = [...document.querySelectorAll("tbody tr")].map(row => row.cells[0].textContent);
    document.body.append(`${names.join("")};`);
  }
})</script>"""


@pytest.mark.slow
def test_a_click_sorts(tmp_path, browser):
    rows = [("c", 10.0), ("a", 2.0), ("d", None), ("b", -1.0)]
    table = pages.table({"name": "", "score": ".1f"}, rows)
    dom = browser(page(tmp_path, table, pages.Html(CLICK)))
    assert "abcd;dcba;cadb;bdac;abcd;" in dom


@pytest.mark.slow
def test_the_network_is_refused(tmp_path, browser):
    picture = pages.Html('<img src="https://example.com/picture.png">')
    with pytest.raises(AssertionError, match="example.com/picture.png.* violates"):
        browser(page(tmp_path, picture))

"""Pages: what is written is text, tables sort, nothing is fetched."""

import re
import sys

import pytest

from chns_jax import pages
from chns_jax.errors import UserError

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


def test_a_click_sorts(tmp_path, browser):
    click = "<script>addEventListener('load', () => { const head = document.querySelectorAll('th');"
    rows = [("c", 10.0), ("a", 2.0), ("d", None), ("b", -1.0)]
    table = pages.table({"name": "", "score": ".1f"}, rows)

    def order(*columns):
        clicks = "".join(f"head[{column}].click();" for column in columns)
        dom = browser(page(tmp_path, table, pages.Html(f"{click}{clicks}}})</script>")))
        return "".join(re.findall("<td>(.)</td>", dom))

    assert order() == "cadb"
    assert order(0, 1) == "cadb"
    assert order(1, 1) == "bdac"
    assert order(0) == "abcd" and order(0, 0) == "dcba"


def test_the_network_is_refused(tmp_path, browser):
    picture = pages.Html('<img src="https://example.com/picture.png">')
    with pytest.raises(AssertionError, match="example.com/picture.png.* violates"):
        browser(page(tmp_path, picture))

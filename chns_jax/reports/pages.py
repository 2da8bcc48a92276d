"""HTML pages that hold all they need: figures by plotly, tables that can be sorted, no network."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chns_jax.common.errors import UserError
from chns_jax.common.files import replacing

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# The browser itself refuses any request to the network.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: file:"
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; max-width: 1160px;
       padding: 0 20px 60px; }
h1 { font-size: 26px; margin: 28px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 44px 0 4px; border-top: 1px solid #ddd; padding-top: 20px; }
p { max-width: 860px; margin: 6px 0 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; margin: 8px 0 20px; }
th, td { padding: 4px 12px 4px 0; text-align: left; border-bottom: 1px solid #eee; }
td { overflow-wrap: break-word; min-width: 44px; max-width: 420px; }
th { cursor: pointer; border-bottom: 2px solid #bbb; vertical-align: bottom; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
th.sorted::after { content: " \\25BE"; } th.sorted.rising::after { content: " \\25B4"; }
audio { width: 230px; height: 32px; display: block; }
"""
# Clicking a column's head sorts the rows by it; again, the other way round.
SORT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const rising = head.classList.contains("sorted") && !head.classList.contains("rising");
    heads.forEach(other => other.classList.remove("sorted", "rising"));
    head.classList.add("sorted"); head.classList.toggle("rising", rising);
    const key = row => row.cells[column].textContent;
    const compare = head.classList.contains("number")
      ? (a, b) => (parseFloat(key(a)) || 0) - (parseFloat(key(b)) || 0)
      : (a, b) => key(b).localeCompare(key(a));
    body.append(...[...body.rows].sort((a, b) => (rising ? 1 : -1) * compare(a, b)));
  }));
}
"""


class Html(str):
    """Text that is HTML already; all other text is escaped."""


def check_plotly() -> None:
    """Raises UserError where plotly, which draws the figures, is not installed."""
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise UserError('the page is drawn by plotly: pip install ".[report]"') from None


def escape(text: object) -> Html:
    """`text` as HTML; bytes of a file name that are no UTF-8 are shown as \\udcXX."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(str(text).encode("utf-8", "backslashreplace").decode("utf-8")))


def section(heading: str, sentence: str, *parts: Html) -> Html:
    """A heading, a sentence that says what is shown and how it is defined, and that."""
    return Html(f"<h2>{escape(heading)}</h2><p>{escape(sentence)}</p>{''.join(parts)}")


def figure(drawn: Figure, name: str, height: int = 480) -> Html:
    """A plotly figure as wide as the page; `name` is its own on the page, `height` in pixels."""
    drawn.update_layout(
        template="plotly_white",
        height=height,
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 70, "r": 20, "t": 30, "b": 60},
    )
    return Html(
        drawn.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=name,
            # No button that uploads the figure.
            config={"displaylogo": False, "responsive": True, "showSendToCloud": False},
        )
    )


def table(
    columns: Mapping[str, str] | Sequence[tuple[str, str]], rows: Iterable[Sequence[object]]
) -> Html:
    """A table that a click on a column's head sorts.

    `columns` have names and formats: ".3f" or "d" of numbers, "s" of text that begins with one, ""
    of other text. None is shown as a dash.
    """
    pairs = list(columns.items() if isinstance(columns, Mapping) else columns)
    forms = [(form, ' class="number"' if form else "") for _, form in pairs]
    heads = "".join(
        f"<th{kind}>{escape(name)}</th>" for (name, _), (_, kind) in zip(pairs, forms, strict=True)
    )
    lines = "\n".join(
        "<tr>"
        + "".join(f"<td{k}>{_cell(c, form)}</td>" for c, (form, k) in zip(row, forms, strict=True))
        + "</tr>"
        for row in rows
    )
    return Html(
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


def write(path: Path | str, title: str, sentence: str, sections: Iterable[Html]) -> None:
    """Write a page of `sections` under a title and a sentence about it; complete or not at all."""
    from plotly.offline import get_plotlyjs

    with replacing(Path(path).expanduser()) as file:
        file.write(
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f"<title>{escape(title)}</title><style>{STYLE}</style>\n"
            f"<script>{get_plotlyjs()}</script></head>\n"
            f"<body><h1>{escape(title)}</h1><p>{escape(sentence)}</p>\n"
        )
        file.write("\n".join(sections))
        file.write(f"\n<script>{SORT}</script></body></html>\n")


def _cell(cell: object, form: str) -> Html:
    if cell is None:
        return Html("–")
    return escape(format(cell, form) if form else cell)

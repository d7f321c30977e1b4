"""``report/index.html`` and ``report/report.json``."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

from fenlei.durable import write_bytes
from fenlei.evaluation.report.data import ReportData
from fenlei.evaluation.report.figures import report_json
from fenlei.evaluation.report.rows import compact_confusion, compact_curves, compact_issues, compact_rows
from fenlei.tracking.record import plain

_PARTS = Path(__file__).with_name("page")
# Chart.js 4.6.1: MIT, kept since 2013 with releases this year, 0.2 MB, no inline styles or eval, so a strict policy
# can stand. plotly.js (basic bundle) is five times and ECharts five times that size; uPlot is smaller but draws lines
# only. Tables, matrix and ladder are HTML: they print, and screen readers read them.
_LIBRARY = "chart.umd.min.js"
_SCRIPTS = ("words.js", "words_zh.js", "view.js", "charts.js", "tables.js", "precision.js", "browser.js", "main.js")


def write_report(data: ReportData, folder: str | Path) -> Path:
    """Writes the page and the figures; each file is whole or as it was.

    Args:
        data: what the report shows.
        folder: where ``index.html`` and ``report.json`` go; made when missing.

    Returns:
        The page.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    figures = report_json(data)
    text = json.dumps(figures, ensure_ascii=False, indent=2) + "\n"
    write_bytes(target / "report.json", text.encode("utf-8", "backslashreplace"))
    page = target / "index.html"
    write_bytes(page, render_page(data, figures))
    return page


def render_page(data: ReportData, figures: dict[str, Any] | None = None) -> bytes:
    """The page as UTF-8.

    Nothing of the data is ever markup: it stands in a block that is no script, with every ``<`` escaped, and the page
    puts it into text nodes only. Beyond that a content security policy lets run what the page's own hashes name.

    Args:
        data: what the report shows.
        figures: of :func:`report_json`, when they are there already.
    """
    shown = report_json(data) if figures is None else figures
    metrics = dict(shown["metrics"]) if shown["metrics"] else None
    if metrics is not None:  # with many labels these are long
        metrics.pop("precision_recall", None)
        metrics["confusion"] = compact_confusion(metrics["confusion"])
    payload = {
        **shown,
        "metrics": metrics,
        "precision": plain(compact_curves(data.metrics)),
        "browser": plain(compact_rows(data.rows, data.labels)) if data.rows else None,
        "label_issues": None if data.label_issues is None else plain(compact_issues(data.label_issues)),
        "predictions": data.predictions,
    }
    style = _part("page.css")
    script = "\n".join(['"use strict";', *(_part(name) for name in _SCRIPTS)])
    library = _part(_LIBRARY)
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    values = {
        "{{policy}}": html.escape(policy, quote=True).replace("&#x27;", "'"),
        "{{title}}": html.escape(data.title),
        "{{style}}": style,
        "{{data}}": data_block(payload),
        "{{library}}": library,
        "{{script}}": script,
    }
    page = _part("page.html")
    pieces = []
    # one pass, so that nothing in a value is taken for a place
    while places := [(page.find(name), name) for name in values if name in page]:
        at, name = min(places)
        pieces += [page[:at], values[name]]
        page = page[at + len(name) :]
    return "".join([*pieces, page]).encode("utf-8", "backslashreplace")


def data_block(payload: dict[str, Any]) -> str:
    """JSON that can stand in a script element: no ``<``, so that neither ``</script>`` nor ``<!--`` can end it."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")

"""A report as one page that opens from disk, needs no network and runs no script."""

from __future__ import annotations

from pathlib import Path

from fenlei.data.checks.report import CheckReport

_TEMPLATE = Path(__file__).with_name("page.html")


def render_page(report: CheckReport) -> str:
    """The report as HTML; every text, label and file name is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(report=report)

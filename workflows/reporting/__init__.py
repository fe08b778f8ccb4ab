"""The report: a run as one self-contained HTML page, which loads nothing and runs no script."""

from __future__ import annotations

from pathlib import Path

import jinja2

from storage import files
from storage.run import RunDir
from workflows.reporting import contents, gallery, text
from workflows.reporting.source import read_source

TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(run: RunDir) -> str:
    """Write the page of a run in any state.

    Sections whose stage is not complete say so. The page depends on the run alone: written twice, it is the same.

    Returns:
        URI of the page, `report/index.html` in the run directory.

    Raises:
        UserError: there is no run.
    """
    source = read_source(run)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=text.count, duration=text.duration, percent=text.percent)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        source=source, contents=contents, cards=gallery.sample(source)
    )
    uri = run.uri("report", "index.html")
    files.write_bytes(uri, page.encode())
    return uri

"""The report: a run as one self-contained HTML page, which loads nothing and runs only the script of its map."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from storage import files
from storage.run import RunDir
from workflows.engine import text
from workflows.report import (
    ablate_features,
    ablate_tasks,
    adapt_captioner,
    catalogue_map,
    contents,
    gallery,
    recommendations,
    semantic_ids,
    update,
)
from workflows.report.source import read_source

FOLDER = Path(__file__).parent


def write_report(run: RunDir) -> str:
    """Writes the page of a run in any state.

    Sections whose stage is not complete say so. The page depends on the run alone: the same run gives the same page.

    Returns:
        URI of the page, `report/index.html` in the run directory.

    Raises:
        UserError: there is no run.
    """
    source = read_source(run)
    script = (FOLDER / "catalogue_map.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=text.count, duration=text.duration, percent=text.percent)
    page = environment.get_template("report.html.j2").render(
        source=source,
        contents=contents,
        semantic_ids=semantic_ids,
        ablate_features=ablate_features,
        recommendations=recommendations,
        ablate_tasks=ablate_tasks,
        adapt_captioner=adapt_captioner,
        update=update,
        cards=gallery.sample(source),
        map=catalogue_map.read_map(source),
        script=Markup(script),  # noqa: S704 - our own file
        # the page's content security policy allows this script only, not one injected by a title
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    uri = run.uri("report", "index.html")
    files.write_bytes(uri, page.encode())
    return uri

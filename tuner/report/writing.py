"""Reports, into folders: a page, the same as Markdown, tables as CSV, pictures as PNG and SVG."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from tuner.report.comparison import write_csv
from tuner.report.document import Report, Table
from tuner.report.outline import joint_report, report_of
from tuner.report.page import as_html, as_markdown, png, svg
from tuner.study.results import Search

PARTS = "report"
"""Folder of the tables and pictures, beside the page."""


def write_report(search: Search, folder: Path | None = None) -> tuple[Report, list[Path]]:
    """Writes the report of a search, into its own folder unless told; returns it, and what was written.

    The page comes last: where it is, the rest is.
    """
    folder, report = folder or search.folder, report_of(search)
    times = folder / "time_to_target.csv"
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(search, times)
    return report, [*_write(report, folder), times]


def write_joint_report(searches: Sequence[Search], folder: Path) -> tuple[Report, list[Path]]:
    """Writes the report over several searches; raises as :func:`joint_report` before it writes anything."""
    report = joint_report(searches)
    return report, _write(report, folder)


def _write(report: Report, folder: Path) -> list[Path]:
    parts = folder / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    for stale in [path for kind in ("csv", "png", "svg") for path in parts.glob(f"*.{kind}")]:
        stale.unlink()
    for section in report.sections:
        for table in section.tables:
            _write_table(table, parts / f"{table.name}.csv")
        for picture in section.pictures:
            (parts / f"{picture.name}.png").write_bytes(png(picture))
            (parts / f"{picture.name}.svg").write_bytes(svg(picture))
    page, text = folder / "report.html", folder / "report.md"
    text.write_text(as_markdown(report, PARTS), encoding="utf-8")
    page.write_text(as_html(report), encoding="utf-8")
    return [page, text, parts]


def _write_table(table: Table, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        writer.writerows(table.rows)

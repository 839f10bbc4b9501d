"""A report as one self-contained HTML file and as Markdown, and its files.

All text is escaped, whatever a variant's name or idea contains.  Only arXiv numbers, DOIs and GitHub repositories
become links, to their own sites.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup, escape

from tuner.report.comparison import write_csv
from tuner.report.document import Picture, Report, Table
from tuner.report.outline import joint_report, report_of
from tuner.study.results import Search

SITES = {"arxiv": "https://arxiv.org/abs/", "doi": "https://doi.org/", "github": "https://github.com/"}
SOURCE = re.compile(
    r"arXiv[: ](?P<arxiv>\d{4}\.\d{4,5})"
    r"|(?:doi[: ] ?|https://doi\.org/)(?P<doi>10\.\d{4,9}/[-.()/:\w]*\w)"
    r"|(?:https://)?\bgithub\.com/(?P<github>[\w.-]+/[\w.-]*\w)",
    re.IGNORECASE,
)
NUMBER = re.compile(r"[-+<>]?[\d.,]+(e[-+]?\d+)?[%×]?|–?")
"""The cells of a column that is set flush right."""


def as_html(report: Report) -> str:
    """The report as a page that contains its pictures and style, runs no script and loads nothing."""
    return _template().render(report=report)


def as_markdown(report: Report, pictures: str = "report") -> str:
    """The report as Markdown; its pictures are PNG files in the folder ``pictures`` beside the text."""
    parts = [f"# {_plain(report.title)}"]
    for section in report.sections:
        parts += [f"## {_plain(section.title)}", *map(_plain, section.sentences)]
        parts += [f"![{_plain(p.title)}]({pictures}/{p.name}.png)" for p in section.pictures]
        for table in section.tables:
            parts += [
                f"**{_plain(table.title)}**",
                _markdown_table(table),
                *([_plain(table.note)] if table.note else []),
            ]
    return "\n\n".join(parts) + "\n"


@lru_cache(maxsize=16)  # the file and the page need the same bytes
def svg(picture: Picture) -> bytes:
    """The picture as SVG, without date and random names: the same bytes for the same picture."""
    drawn = io.BytesIO()
    # Text becomes outlines, so that it looks the same on every machine.
    with matplotlib.rc_context({"svg.hashsalt": picture.name, "svg.fonttype": "path"}):
        picture.figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()


def png(picture: Picture) -> bytes:
    """The picture as PNG, the same bytes for the same picture."""
    drawn = io.BytesIO()
    picture.figure.savefig(drawn, format="png", dpi=160, metadata={"Software": None})
    return drawn.getvalue()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"linked": _linked, "address": _address, "flush_right": _flush_right}
    return environment.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))


def _address(picture: Picture) -> str:
    # An inline SVG would share its element ids with the others on the page.
    return f"data:image/svg+xml;base64,{base64.b64encode(svg(picture)).decode()}"


def _flush_right(table: Table) -> list[bool]:
    """For each column, whether all its cells are bare numbers."""
    return [all(NUMBER.fullmatch(cell) for cell in column) for column in zip(*table.rows, strict=True)]


def _pieces(text: str) -> Iterator[tuple[str, str | None]]:
    """The text in pieces, each with its URL if it names a source, else None."""
    end = 0
    for match in SOURCE.finditer(text):
        yield text[end : match.start()], None
        assert match.lastgroup is not None
        yield match[0], SITES[match.lastgroup] + match[match.lastgroup]
        end = match.end()
    yield text[end:], None


def _linked(text: str) -> Markup:
    link = Markup('<a href="{}">{}</a>')
    return Markup("").join(link.format(url, piece) if url else escape(piece) for piece, url in _pieces(text))


def _plain(text: str) -> str:
    """Markdown that shows the text unchanged, with links for its sources."""
    return "".join(f"[{_inert(piece)}]({url})" if url else _inert(piece) for piece, url in _pieces(text))


def _inert(text: str) -> str:
    # Brackets make a link only if a round one follows at once; those of intervals stay readable as plain text.
    text = html.escape(re.sub(r"\s+", " ", text), quote=False)
    return re.sub(r"[\\`*|~]|(?<=\])[(\[:]|(?<!\w)_|_(?!\w)|^[#+=-]", r"\\\g<0>", text)


def _markdown_table(table: Table) -> str:
    rules = ["---:" if right else "---" for right in _flush_right(table)] or ["---"] * len(table.columns)
    lines = [[_plain(cell) for cell in line] for line in (table.columns, *table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rules, *lines[1:]))


PARTS = "report"
"""Name of the folder of the tables and pictures, beside the page."""


def write_report(search: Search, folder: Path | None = None) -> tuple[Report, list[Path]]:
    """Writes the report of a search, by default into its own folder; returns the report and the written paths.

    The HTML page is written last, so an existing page means that the other parts exist.  Raises OSError.
    """
    folder, report = folder or search.folder, report_of(search)
    times = folder / "time_to_target.csv"
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(search, times)
    return report, [*_write(report, folder), times]


def write_joint_report(searches: Sequence[Search], folder: Path) -> tuple[Report, list[Path]]:
    """Writes the report over several searches; returns the report and the written paths.

    Raises :class:`InvalidInput` as :func:`joint_report` does, before it writes anything, and OSError.
    """
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

"""A report as a page and as Markdown: text stays text, nothing is loaded, and it fits a phone and a sheet of paper."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from tests.browser import CHROMIUM, as_printed, look
from tuner.report.document import Picture, Report, Section, Table
from tuner.report.page import as_html, as_markdown, png, svg

HOSTILE = (
    "<script>window.ran = 1</script>",
    '"><img src=x onerror="window.ran = 1">',
    "a | b | c, `code`, *stars*, _lines_, ~~struck~~, C:\\folder",
    "[here](http://evil.example) and ![there](http://evil.example/a.png)",
    "64 [48, 80] (97%), 0.6 [0.5, 0.8](95%), norm.p_max < 3 & more",
    "# no heading",
    "[1]: http://evil.example",
    "&lt;b&gt; {{ report.title }} {% raw %}",
)
SOURCES = {
    "Pasichnyk 2026, arXiv 2603.28921": "https://arxiv.org/abs/2603.28921",
    "arXiv:2502.01557v2": "https://arxiv.org/abs/2502.01557",
    "see doi:10.1007/s10107-018-1232-1.": "https://doi.org/10.1007/s10107-018-1232-1",
    "https://doi.org/10.1000/182": "https://doi.org/10.1000/182",
    "code: github.com/optuna/optuna.": "https://github.com/optuna/optuna",
    "https://github.com/a/b": "https://github.com/a/b",
    "https://evil.example/arXiv:2502.01557": "https://arxiv.org/abs/2502.01557",
}
NO_SOURCES = (
    "https://evil.example/a",
    "github.com.evil.example/a/b",
    "evilgithub.com/a/b",
    "javascript:alert(1)",
    "10.5",
)


in_a_browser = pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="chromium is not installed")


class Page(HTMLParser):
    """A page taken apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str, attribute: str) -> list[str | None]:
        return [attributes.get(attribute) for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "".join(self.texts)


def picture(name: str = "drawn") -> Picture:
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot([1, 2, 3], [1, 4, 9], marker="o", label="sgdm", clip_on=True)
    axes.fill_between([1, 2, 3], [0, 3, 8], [2, 5, 10], hatch="/")
    axes.legend()
    return Picture(name, f"A {name} parabola <i>", figure)


def report_of(*texts: str, columns: int = 3) -> Report:
    """A report that holds the texts everywhere."""
    rows = tuple((text, *(["0.6 [0.5, 0.8] (95%)"] * (columns - 2)), "64") for text in texts)
    table = Table("t", texts[0], (*(f"{texts[0]} {i}" for i in range(columns - 1)), "number"), rows, note=texts[-1])
    first = Section(texts[0], texts, (picture("one"), picture("two")), (table,))
    return Report(texts[-1], (first, Section("Second", texts), Section("Third", texts)))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_in_the_page(text: str) -> None:
    page = Page(as_html(report_of(text)))
    assert not page.all("script", "src")
    assert page.all("img", "alt") == ["A one parabola <i>", "A two parabola <i>"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    # Title twice, three headings' sentences, a heading and its row, caption, columns and note.
    assert page.text.count(text) >= 10


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_in_markdown(text: str) -> None:
    written = as_markdown(report_of(text))
    page = Page(MarkdownIt("gfm-like", {"linkify": False}).render(written))
    assert {name for name, _ in page.tags} <= {
        "h1", "h2", "p", "strong", "img", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert page.all("img", "src") == ["report/one.png", "report/two.png"]
    assert page.text.count(text) == 10
    assert len(page.all("td", "style")) == 3 and len(page.all("th", "style")) == 3


def test_an_interval_reads_well_in_markdown_itself() -> None:
    assert "critical needed 0.6 [0.5, 0.8] (95%) of sgdm's." in as_markdown(
        report_of("critical needed 0.6 [0.5, 0.8] (95%) of sgdm's.")
    )


@pytest.mark.parametrize(("text", "address"), SOURCES.items())
def test_sources_are_links(text: str, address: str) -> None:
    made = report_of(text)
    for page in (Page(as_html(made)), Page(MarkdownIt("gfm-like", {"linkify": False}).render(as_markdown(made)))):
        links = [link for link in page.all("a", "href") if link and not link.startswith("#")]
        assert set(links) == {address}
        assert text in page.text


@pytest.mark.parametrize("text", NO_SOURCES)
def test_nothing_else_is_a_link(text: str) -> None:
    page = Page(as_html(report_of(text)))
    assert {str(link)[0] for link in page.all("a", "href")} == {"#"}
    assert text in page.text


def test_the_page_loads_nothing() -> None:
    text = as_html(report_of(*HOSTILE))
    page = Page(text)
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in str(page.all("meta", "content"))


def test_each_table_and_heading_can_be_found_without_seeing() -> None:
    page = Page(as_html(report_of("adamw", "sgdm")))
    levels = [name for name, _ in page.tags if re.fullmatch("h[1-6]", name)]
    assert levels == ["h1", "h2", "h2", "h2"]
    assert page.all("html", "lang") == ["en"]
    assert page.all("th", "scope") == ["col", "col", "col", "row", "row"]
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert {f"#{name}" for name in names} >= set(page.all("a", "href"))


def test_bare_numbers_alone_stand_flush_right() -> None:
    page = Page(as_html(report_of("adamw", "sgdm")))
    assert page.all("td", "class") == [None, "right", None, "right"]
    assert "| --- | --- | ---: |" in as_markdown(report_of("adamw", "sgdm"))


def test_a_table_without_rows_is_a_table() -> None:
    made = Report("r", (Section("s", tables=(Table("t", "t", ("a", "b"), ()),)),))
    assert Page(as_html(made)).all("th", "scope") == ["col", "col"]
    assert "| a | b |\n| --- | --- |" in as_markdown(made)


def test_the_same_picture_has_the_same_bytes() -> None:
    assert svg(picture()) == svg(picture()) and png(picture()) == png(picture())
    assert as_html(report_of("a")) == as_html(report_of("a"))


def test_pictures_are_in_the_page_and_whole() -> None:
    sources = [str(source) for source in Page(as_html(report_of("a"))).all("img", "src")]
    drawn = [b64decode(source.removeprefix("data:image/svg+xml;base64,")) for source in sources]
    assert drawn == [svg(picture("one")), svg(picture("two"))]
    root = xml.etree.ElementTree.fromstring(drawn[0])
    assert root.tag.endswith("svg")
    assert not root.findall(".//{*}text"), "a font of the reader's would be needed"
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not name.endswith("href") or value.startswith("#")


def test_colours_can_be_read() -> None:
    text = as_html(report_of("a"))
    schemes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    ]
    assert len(schemes) == 3  # light, dark, paper
    for scheme in schemes:
        for ink in ("ink", "quiet", "link"):
            for ground in ("paper", "shade"):
                # WCAG 2.1, AA
                assert contrast(scheme[ink], {**schemes[0], **scheme}[ground]) >= 4.5, (ink, ground)


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(as_html(report_of("lpsgdm-" * 12, "w" * 200, *HOSTILE, columns=9)))
    return path


@in_a_browser
@pytest.mark.parametrize("width", [320, 360, 1300])
def test_nothing_sticks_out(page: Path, tmp_path: Path, width: int) -> None:
    seen = look(page, tmp_path, width=width)
    assert seen["needed"] <= seen["width"] <= width
    assert seen["pictures"] == [True, True]
    assert not seen["ran"] and seen["asked"] == []
    assert seen["clipped"] == 1, "its table is too wide for any of them, and scrolls"
    assert HOSTILE[0] in seen["text"]


@in_a_browser
@pytest.mark.parametrize("columns", [6, 24])
def test_no_table_is_cut_off_on_paper(tmp_path: Path, columns: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(as_html(report_of("lpsgdm-dual", "critical-matched", columns=columns)))
    # 182 mm between the margins of A4
    seen = look(as_printed(path, tmp_path / "paper.html"), tmp_path, width=688)
    assert seen["needed"] <= seen["width"] and seen["clipped"] == 0
    assert seen["navigation"] == 0


@in_a_browser
def test_what_sticks_out_is_seen(page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    elsewhere = "http://127.0.0.1:9/a.png"
    text = page.read_text().replace("<main>", f"<main><div style='width: 700px'>.</div><img src='{elsewhere}'>")
    policy = re.compile('<meta http-equiv="Content-Security-Policy"[^>]*>')
    broken.write_text(policy.sub("", text).replace("<main>", "<main><script>window.ran = 1</script>"))
    seen = look(broken, tmp_path, width=360)
    assert seen["needed"] > seen["width"] and seen["ran"]
    assert seen["pictures"] == [False, True, True] and seen["asked"] == [elsewhere]

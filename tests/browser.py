"""Pages as a browser shows them: headless Chromium, at a width of one's choice."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.waiting import HANG_SECONDS

CHROMIUM = shutil.which("chromium")

# The page stands in a frame: no window of Chromium is as narrow as a phone.
PROBE = """<!DOCTYPE html><iframe id="frame" style="width: {width}px; height: 800px; border: 0" src="{page}"></iframe>
<pre id="seen"></pre><script>
const frame = document.getElementById("frame");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const shown = (e) => getComputedStyle(e).display !== "none";
  document.getElementById("seen").textContent = JSON.stringify({{
    width: root.clientWidth,
    needed: root.scrollWidth,
    pictures: [...page.images].map((i) => i.complete && i.naturalWidth > 0 && i.getBoundingClientRect().width > 0),
    clipped: [...page.querySelectorAll(".wide")].filter((e) => e.scrollWidth > e.clientWidth + 1).length,
    asked: frame.contentWindow.performance.getEntriesByType("resource").map((r) => r.name)
      .filter((name) => !name.startsWith("data:")),
    text: page.body.innerText,
    ran: "ran" in frame.contentWindow,
    navigation: [...page.querySelectorAll("nav")].filter(shown).length,
  }});
}};
</script>"""


def look(page: Path, folder: Path, *, width: int) -> dict[str, Any]:
    """The page at this width, in CSS pixels: what width it needs, its pictures, its text, what it asks for."""
    assert CHROMIUM is not None
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(width=width, page=page.absolute().as_uri()))
    shown = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000",
            "--virtual-time-budget=20000", "--dump-dom", probe.absolute().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )  # fmt: skip
    seen = re.search(r'<pre id="seen">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert seen and seen[1], "the page did not load"
    found: dict[str, Any] = json.loads(html.unescape(seen[1]))
    return found


def as_printed(page: Path, copy: Path) -> Path:
    """A copy of the page that looks on the screen as on paper."""
    copy.write_text(page.read_text().replace("@media print", "@media all"))
    return copy

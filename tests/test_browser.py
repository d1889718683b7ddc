"""The pages in a browser: axe-core finds nothing serious, nothing is said on the console, nothing is loaded.

Needs chromium in PATH and LABELER_AXE, the path of axe-core's `axe.min.js` (`npm install axe-core`).
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run

from labeler.inspection import inspect
from labeler.report import report

AXE = os.environ.get("LABELER_AXE")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 1280, 1920)
RUN = """<script>{axe}</script><script>
document.querySelectorAll("details").forEach(one => one.open = true);
axe.run().then(found => parent.postMessage({{
  page: "{page}", width: innerWidth, wide: document.documentElement.scrollWidth,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  faults: found.violations.flatMap(one => one.nodes.map(node => [one.impact, one.id, node.html.slice(0, 200)])),
}}, "*"));
</script>"""
FRAMES = """<!doctype html><title>frames</title><script>
const found = [];
addEventListener("message", event => {{
  found.push(event.data);
  if (found.length == {count}) {{
    const text = document.createElement("pre");
    text.textContent = JSON.stringify(found);
    document.body.append(text);
  }}
}});
</script>{frames}"""


def browse(page: Path, work: Path, *, dark: bool = False) -> subprocess.CompletedProcess[str]:
    """Return what a headless Chromium makes of a page: its DOM on standard output, its console on standard error."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={work / 'profile'}"]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=120000"]
    command = [str(CHROMIUM), *options, "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)


def looked_at(pages: list[Path], work: Path, *, dark: bool) -> list[dict[str, Any]]:
    """Return what axe-core finds in each page at each width; the pages' copies lack the policy that keeps scripts out."""
    script, frames = Path(AXE or "").read_text(encoding="utf-8"), []
    for page in pages:
        text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
        copy = work / page.name
        copy.write_text(text.replace("</body>", RUN.format(axe=script, page=page.name) + "</body>"), encoding="utf-8")
        frames += [f'<iframe src="{page.name}" width="{width}" height="900"></iframe>' for width in WIDTHS]
    (work / "frames.html").write_text(FRAMES.format(count=len(frames), frames="".join(frames)), encoding="utf-8")
    shown = browse(work / "frames.html", work, dark=dark).stdout
    found = re.search(r"<pre>(\[.*\])</pre>", shown, flags=re.DOTALL)
    assert found, shown[-500:]
    return json.loads(html.unescape(found[1]))


def said(page: Path, work: Path) -> list[str]:
    """Return the lines on the page's console: what its policy, which allows no request at all, has refused stands there too."""
    return [line for line in browse(page, work).stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, evaluated, store) -> list[Path]:
    """Return the pages of a report on two real runs and on a simulated one of several labels."""
    if not CHROMIUM or not AXE:
        pytest.skip("no chromium in PATH" if AXE else "LABELER_AXE is not set: the path of axe-core's axe.min.js")
    folder = tmp_path_factory.mktemp("pages")
    inspect(store)
    report([evaluated("visualbert-coattn"), evaluated("resnet-gru")], folder / "report")
    report([write_run(folder / "tags", task="multi")], folder / "several")
    found = [folder / "report/index.html", folder / "report/data.html", folder / "several/several.html"]
    (folder / "several/index.html").rename(found[2])
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault_and_no_page_is_wider_than_its_window(pages, tmp_path, dark):
    found = looked_at(pages, tmp_path, dark=dark)
    assert len(found) == len(pages) * len(WIDTHS)
    for one in found:
        assert [fault for fault in one["faults"] if fault[0] in ("serious", "critical")] == [], one["page"]
        assert one["dark"] is dark
        assert one["wide"] <= one["width"], f"{one['page']} is wider than {one['width']} pixels"


def test_no_page_asks_for_anything_or_says_anything_on_the_console(pages, tmp_path):
    assert [said(page, tmp_path) for page in pages] == [[]] * len(pages)


def test_the_checks_themselves_find_what_is_wrong(pages, tmp_path):
    bad = tmp_path / "bad.html"
    text = pages[0].read_text(encoding="utf-8")
    added = '<img src="gone.png"><div style="width:3000px">wide</div></main>'
    bad.write_text(text.replace("</main>", added), encoding="utf-8")
    assert any("gone.png" in line for line in said(bad, tmp_path)), "the policy refuses it"
    work = tmp_path / "work"
    work.mkdir()
    for one in looked_at([bad], work, dark=False):
        assert any(fault[1] == "image-alt" for fault in one["faults"])
        assert one["wide"] > one["width"]

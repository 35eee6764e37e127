"""The page in a real browser: nothing asked of the network, nothing on the console, every chart drawn and readable.

The report stands in a frame of its own size inside a test page that looks into it; the report itself is not changed.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pages import page, part

from dcclctl.report.html import render

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
PROBE = """
<!doctype html><title>probe</title>
<iframe id="frame" style="border:0;width:WIDTHpx;height:900px" srcdoc="REPORT"></iframe><pre id="found"></pre>
<script>
addEventListener('load', () => {
  const inner = document.getElementById('frame').contentWindow, doc = inner.document;
  const root = doc.documentElement;
  doc.querySelectorAll('details').forEach(each => { each.open = true; });
  const colour = (node, name) => inner.getComputedStyle(node)[name];
  const charts = [...doc.querySelectorAll('figure svg')].filter(svg => svg.getBoundingClientRect().width > 0);
  document.getElementById('found').textContent = JSON.stringify({
    title: doc.title,
    overflow: root.scrollWidth - root.clientWidth,
    resources: inner.performance.getEntriesByType('resource').map(entry => entry.name),
    dark: inner.matchMedia('(prefers-color-scheme: dark)').matches,
    background: colour(doc.querySelector('section'), 'backgroundColor'),
    charts: charts.map(svg => ({
      label: svg.getAttribute('aria-label'),
      width: svg.getBoundingClientRect().width,
      marks: [...svg.querySelectorAll('path')].filter(
        path => path.getBoundingClientRect().width > 3 && colour(path, 'stroke').startsWith('rgb')
          || colour(path, 'fill') !== 'none' && path.getBoundingClientRect().height > 3).length,
      text: colour(svg.querySelector('text'), 'fill'),
      smallest: Math.min(...[...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect().height)),
      lines: [...svg.querySelectorAll('path')].map(path => colour(path, 'stroke')).filter(value => value.startsWith('rgb')),
    })),
    focusable: [...doc.querySelectorAll('[tabindex="0"], a[href], summary')].length,
    scripts: doc.scripts.length,
    cut: [...doc.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth).length,
    cued: [...doc.querySelectorAll('.scroll')].every(
      each => colour(each, 'backgroundImage').split('linear-gradient').length === 5
        && colour(each, 'backgroundAttachment') === 'local, local, scroll, scroll'),
  });
});
</script>
"""


@pytest.fixture(scope="module")
def report() -> str:
    return render(page(part()))


def look(report: str, folder: Path, width: int, dark: bool = False) -> tuple[dict[str, Any], list[str]]:
    """What the browser made of the report, and what it wrote to the console."""
    probe = PROBE.replace("WIDTH", str(width)).replace("REPORT", html.escape(report))
    (folder / "probe.html").write_text(probe, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    run = subprocess.run(
        [
            str(BROWSER),
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            scheme,
            f"--window-size={width + 100},1000",
            "--dump-dom",
            (folder / "probe.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', run.stdout, re.S)
    assert found and found[1], run.stderr[-2000:]
    return json.loads(html.unescape(found[1])), [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def luminance(colour: str) -> float:
    parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (400, False)])
def test_the_report_in_a_browser(report: str, tmp_path: Path, width: int, dark: bool) -> None:
    seen, console = look(report, tmp_path, width, dark)
    assert console == []
    assert seen["resources"] == [] and seen["scripts"] == 0
    assert seen["title"].startswith("Did it help") and seen["dark"] is dark
    assert seen["overflow"] <= 0  # only the frames of tables scroll sideways
    # lift and activity in one of two widths, two histograms, rounds, reliability, a learning curve
    assert len(seen["charts"]) == 7
    for chart in seen["charts"]:
        assert chart["label"] and chart["marks"] >= 2, chart
        assert 150 < chart["width"] <= width
        assert chart["smallest"] >= 10, chart  # pixels: letters that can be read
        assert contrast(chart["text"], seen["background"]) >= 4.5
        assert all(contrast(line, seen["background"]) >= 3 for line in chart["lines"] if "rgba" not in line), chart
    assert seen["focusable"] > 10
    # what goes on beyond the edge of a small screen is marked by a shadow that ends with the table
    assert seen["cued"] and (seen["cut"] > 0 or width > 400)


def test_the_probe_sees_what_a_bad_page_does(tmp_path: Path) -> None:
    """The test above can fail: a page with a script, a request and a wide table is noticed."""
    bad = "<!doctype html><title>bad</title><section>x</section><script>console.error('boo')</script><img src='http://127.0.0.1:9/x.png'><div style='width:3000px'>wide</div>"
    seen, console = look(bad, tmp_path, 400)
    assert any("boo" in line for line in console)
    assert seen["resources"] == ["http://127.0.0.1:9/x.png"]
    assert seen["scripts"] == 1 and seen["overflow"] > 2000 and seen["charts"] == []

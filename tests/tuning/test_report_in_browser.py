"""The report in a browser: every figure is drawn, no text runs, and nothing is loaded from anywhere."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.html_reader import read_html
from tests.support.tuning_records import HOSTILE, write_search
from trainbox.tuning.report.write_report import write_report

pytestmark = pytest.mark.process


def open_page(page: Path, directory: Path) -> tuple[str, str]:
    """The document as the browser has it after its scripts have run, and what the page's console has."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    done = subprocess.run(
        [
            *(
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--enable-unsafe-swiftshader",
            ),
            *("--enable-logging=stderr", "--disable-background-networking", "--virtual-time-budget=20000"),
            *(f"--user-data-dir={directory / 'profile'}", "--dump-dom", page.as_uri()),
        ],
        env={**os.environ, "HOME": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "WebGL" not in line]
    return done.stdout, "\n".join(console)


@pytest.mark.parametrize("suffix", [HOSTILE, pytest.param("", marks=pytest.mark.long)])
def test_a_browser_draws_every_figure_and_runs_no_text(tmp_path: Path, suffix: str) -> None:
    record = write_search(tmp_path, 20, suffix=suffix)
    document, console = open_page(write_report(record, tmp_path), tmp_path)
    assert console == ""
    for name in ("objective", "curves", "parallel-coordinates", "importance"):
        assert re.search(rf'id="{name}" class="[^"]*js-plotly-plot', document), name
    assert len(re.findall(r'<g class="trace scatter', document)) >= 20
    assert len(re.findall(r'<g class="axis parcoords|class="y-axis"', document)) >= 5
    assert "<title>flights" in document
    for tag, attributes in read_html(document).tags:
        assert tag != "img"
        assert not [name for name in attributes if name.startswith("on")]
        assert not str(attributes.get("href", "")).startswith("javascript:")
    assert "WebGL is not supported" not in " ".join(read_html(document).texts)
    # One of Plotly's buttons would upload the figure.
    assert 'data-title="Download plot as a PNG"' in document
    assert "Share chart" not in re.sub(r"<script.*?</script>", "", document, flags=re.DOTALL)


@pytest.mark.long
def test_a_click_on_a_head_of_the_table_sorts_it(tmp_path: Path) -> None:
    page = write_report(write_search(tmp_path, 6), tmp_path)
    click = "<script>document.querySelectorAll('th')[2].click()</script></body>"
    page.write_text(page.read_text().replace("</body>", click))
    document, console = open_page(page, tmp_path)
    assert console == ""
    rows = re.findall(r'<td data-value="([0-9]+)"><a', document)
    values = re.findall(r'</td><td class="word [a-z-]+">[A-Za-z ]+</td><td data-value="([0-9.]*)"', document)
    assert sorted(map(int, rows)) == [1, 2, 3, 4, 5, 6]
    assert rows[-1] == "4"  # it has failed, and has no objective
    assert values[:-1] == sorted(values[:-1], key=float)

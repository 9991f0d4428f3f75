"""The page in a real browser, without scripts and offline: it renders, fits, and its links open what they lead to."""

import shutil
from pathlib import Path

import pytest

from reports import html
from suites.meta.test_html import ENVIRONMENT, RECORDS, RUN

driver = pytest.importorskip("playwright.sync_api", reason="no browser is driven: pip install playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: the system's, or the one that playwright installed."""
    with driver.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if Path(own).exists() else next(filter(None, map(shutil.which, NAMES)), None)
        if not found:
            pytest.skip("no Chromium: apt-get install chromium, or python -m playwright install chromium")
        launched = playwright.chromium.launch(executable_path=found)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open the page in a window: `opened(width, scheme)`; what it said and asked for is kept."""
    file = tmp_path / "report.html"
    file.write_text(html.page(RECORDS, RUN, ENVIRONMENT), encoding="utf-8")

    def open_page(width, scheme):
        window = {"width": width, "height": 900}
        context = browser.new_context(viewport=window, color_scheme=scheme, java_script_enabled=False, offline=True)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(file.as_uri())
        return page

    return open_page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_renders_and_fits(opened, width, scheme):
    page = opened(width, scheme)
    everything = "document.querySelectorAll('details').forEach(d => d.open = true)"

    page.evaluate(everything)

    assert page.locator("h1").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.documentElement.clientWidth") == width
    assert page.said == []
    assert {url.split(":")[0] for url in page.asked} <= {"file", "data"}
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


@pytest.mark.parametrize("width", [1280, 400])
def test_a_cell_of_a_map_leads_to_its_check(opened, width):
    page = opened(width, "light")
    row = page.locator("#line-9")
    assert not row.is_visible()

    page.locator(".map a").first.click()

    assert page.locator(":target").is_visible()
    assert "pytest" in page.locator(":target").inner_text()

"""A headless Chromium, and a service with a few dozen images for it to look at."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    # A camera that shows a test pattern and asks nobody for permission.
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]


@pytest.fixture(scope="module")  # Playwright's event loop runs until the end, and other tests want their own
def browser() -> Iterator[Browser]:
    """The system's Chromium; the tests are skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def stocked(running, picture):
    """Thirty images with labels and metadata."""
    with running.client() as client:
        for seed in range(30):
            client.upsert(
                picture(seed), f"n/{seed}", label=["ant", "bee", "cat"][seed % 3], metadata={"seed": seed}
            )
    return running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page; errors in its console, blocked loads and requests to other hosts fail the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 850})
    page = context.new_page()
    wrong: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None
    )
    page.on("request", lambda request: asked.append(request.url))
    yield page
    context.close()
    assert not wrong
    assert all(url.startswith(("http://127.0.0.1:", "blob:", "data:")) for url in asked), asked

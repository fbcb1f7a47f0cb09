"""The page behind nginx, as docs/serving.md sets it up: below a path, under another name."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

DOCUMENT = Path(__file__).parents[3] / "docs/serving.md"


@pytest.fixture
def proxy(stocked, tmp_path: Path) -> Iterator[str]:
    """The address below which nginx shows the service."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        pytest.skip("no nginx on this machine: apt-get install nginx-light")
    (location,) = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    location = location.replace("http://127.0.0.1:8000", stocked.address)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port};\n{location}}} }}\n"
    )
    nginx = subprocess.Popen([binary, "-p", tmp_path, "-c", tmp_path / "nginx.conf"])
    address = f"http://127.0.0.1:{port}/kindred/"
    try:
        for _ in range(200):
            try:
                httpx.get(address)
                break
            except httpx.TransportError:
                assert nginx.poll() is None
                time.sleep(0.05)
        yield address
    finally:
        nginx.terminate()
        nginx.wait()


def test_the_page_works_below_a_path(proxy, page, picture):
    page.goto(proxy)
    expect(page.locator("#results .card")).to_have_count(30)
    query = {"name": "x.png", "mimeType": "image/png", "buffer": picture(4)}
    page.set_input_files('[data-picker="query"] input', query)
    expect(page.locator("#results .name").first).to_have_attribute("title", "bee (n/4)")
    thumbnail = page.locator("#results img").first
    expect(thumbnail).to_have_js_property("complete", True)
    assert thumbnail.evaluate("image => image.naturalWidth") > 0
    page.goto(f"{proxy}docs")
    expect(page.get_by_text("/v1/search/batch").first).to_be_visible()


def test_a_browsers_post_is_let_through(proxy, picture):
    origin = proxy.removesuffix("/kindred/")
    answer = httpx.post(f"{proxy}v1/search", files={"image": picture()}, headers={"origin": origin})
    assert answer.status_code == 200
    foreign = {"origin": "http://evil.example"}
    assert httpx.post(f"{proxy}v1/search", files={"image": picture()}, headers=foreign).status_code == 403


def test_the_document_names_the_path(stocked, start):
    document = httpx.get(f"{start(root_path='/kindred').address}/v1/openapi.json").json()
    assert document["servers"] == [{"url": "/kindred"}]

"""The report in a headless browser: complete, without a request that leaves the page, on any width."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation import Evaluation
from app.evaluation.evaluation_set import EvaluationSet
from app.evaluation.measure import Options, measure
from app.evaluation.results import as_json
from app.reports import write_report
from app.reports.charts import Axis, Series, histogram_chart, line_chart
from app.reports.findings import class_recalls, confusions, near_duplicates, slices, suspects

CLASSES, EACH = 9, 12


def evaluation(*, hard: bool = True) -> Evaluation:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), EACH)
    centres = rng.normal(size=(CLASSES, 8))
    centres[1] = centres[0] + 0.05  # two classes that cannot be told apart
    vectors = (centres[labels] + (0.3 if hard else 0.0) * rng.normal(size=(len(labels), 8))).astype(
        np.float32
    )
    vectors[-1] = centres[3]  # looks like a class that it is not labelled as
    vectors[20] = vectors[21]  # an image twice
    names = [f"<class> & {n}" for n in range(CLASSES)]
    columns = {
        "shade": labels % 3,
        "size": rng.normal(size=len(labels)),
        "id": np.arange(len(labels)).astype(str),
    }
    items = EvaluationSet(labels, names, columns=columns)
    models = [
        EvaluatedModel("network", vectors=vectors),
        EvaluatedModel("noise", baseline=True, vectors=rng.normal(size=(len(labels), 4))),
    ]
    for model in models:
        measure(model, items, Options(), calibrated=not model.baseline)
    return Evaluation(models, items, Options(), ["broken.png: no image"], ["A note with <tags>."])


def test_findings_name_what_was_planted() -> None:
    found = evaluation()
    model, items = found.models[0], found.items
    worst = confusions(model, items)[0]
    assert (worst.first, worst.second) == (0, 1)
    assert (CLASSES * EACH - 1, 3) in [(item.row, item.neighbours) for item in suspects(model, items)]
    count, pairs = near_duplicates([model], items)
    assert count == 1
    assert (20, 21) in [(pair.first, pair.second) for pair in pairs]
    labels, recalls, counts = class_recalls(model, items)
    assert {0, 1} <= set(labels[:4].tolist())
    assert recalls[0] < recalls[-1] == 1
    assert counts.sum() == CLASSES * EACH
    parts = slices(model, items)
    assert [part.value for part in parts if part.column == "shade"] == ["0", "1", "2"]
    assert len([part for part in parts if part.column == "size"]) == 4
    assert not [part for part in parts if part.column == "id"]


def test_charts_escape_their_texts() -> None:
    axis = Axis("<x>", 0, 1, [0, 1])
    text = line_chart("<t>", [Series("<s>", [0, 1], [0, 1])], axis, axis) + histogram_chart(
        "h", [0, 0.5, 1], [("<a>", [0, 3])], "x"
    )
    assert "<t>" not in text
    assert "<s>" not in text
    assert "<a>" not in text


def test_perfect_models_have_a_report_too(tmp_path: Path) -> None:
    found = evaluation(hard=False)
    write_report(tmp_path / "report.html", found, as_json(found, "kindred evaluate"))
    assert "Successes" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=flags)
        yield running
        running.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_report_stays_on_its_page(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    path = tmp_path / "report.html"
    found = evaluation()
    write_report(path, found, as_json(found, "kindred evaluate"))
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = context.new_page()
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure svg").count() >= 7
    assert "<class> & 3" in page.inner_text("body")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(n) for n in background.strip("rgb()").split(",")) < 200) == (scheme == "dark")
    context.close()

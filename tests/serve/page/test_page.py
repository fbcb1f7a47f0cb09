"""The page as a person uses it, in a real browser."""

import base64

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from serve.schemas import NewItem

pytestmark = pytest.mark.browser

expect.set_options(timeout=30_000)  # a machine under load is slow, and waits only where something is wrong
QUERY = '[data-picker="query"] input'


def choose(page, selector, content, name="x.png"):
    page.set_input_files(selector, {"name": name, "mimeType": "image/png", "buffer": content})


def hand_over(page, kind, content, selector="body"):
    """Paste or drop an image."""
    page.evaluate(
        """([kind, data, selector]) => {
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "x.png", { type: "image/png" }));
          const event = kind === "paste"
            ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
            : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
          document.querySelector(selector).dispatchEvent(event);
        }""",
        [kind, base64.b64encode(content).decode(), selector],
    )


def until(page, expression):
    """Wait for a JavaScript expression; Playwright's own way is an eval, which the page's policy forbids."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {expression}")


def first_name(page):
    return page.locator("#results .name").first


def test_browsing_shows_what_there_is(page, stocked):
    page.goto(stocked.address)
    expect(page.locator("#results .card")).to_have_count(30)
    expect(page.locator("#facts")).to_have_text("30 images · 3 labels")
    until(page, "[...document.querySelectorAll('#results img')].some((image) => image.naturalWidth > 0)")


@pytest.mark.parametrize("way", ["choose", "paste", "drop", "drop on the square"])
def test_search_by_image(page, stocked, picture, way):
    page.goto(stocked.address)
    if way == "choose":
        choose(page, QUERY, picture(4))
    elif way == "drop on the square":
        hand_over(page, "drop", picture(4), '[data-picker="query"] .drop')
    else:
        hand_over(page, way, picture(4))
    expect(page.locator("#heading")).to_have_text("24 nearest")
    expect(first_name(page)).to_have_attribute("title", "bee (n/4)")
    expect(page.locator("#results .number").first).to_have_text("1.000")
    expect(page.locator("#how")).to_contain_text("decode")
    expect(page.locator("#how")).to_contain_text("Compared with all 30 images")
    expect(page.locator("#say")).to_contain_text("24 results")


def test_a_result_searches_on_and_back_returns(page, stocked):
    page.goto(stocked.address)
    page.locator("#results .card").nth(5).click()
    expect(page.locator("#heading")).to_have_text("24 nearest")
    expect(page.locator('#results .name[title="cat (n/5)"]')).to_have_count(0)
    page.go_back()
    expect(page.locator("#heading")).to_have_text("Have a look around")
    page.go_forward()
    expect(page.locator("#heading")).to_have_text("24 nearest")


def test_filters_apply_at_once(page, stocked, picture):
    page.goto(stocked.address)
    choose(page, QUERY, picture(4))
    expect(page.locator("#results .card")).to_have_count(24)
    page.fill("#label", "cat")
    page.press("#label", "Enter")
    page.locator("#label").blur()
    expect(page.locator("#results .card")).to_have_count(10)
    assert set(page.locator("#results .name").all_inner_texts()) == {"cat"}
    page.fill("#label", "")
    page.check("#group")
    expect(page.locator("#results .card")).to_have_count(3)
    page.uncheck("#group")
    page.select_option("#k", "12")
    expect(page.locator("#results .card")).to_have_count(12)
    page.fill("#floor", "0.9999")
    page.locator("#floor").blur()
    expect(page.locator("#results .card")).to_have_count(1)


def test_metadata_is_shown_and_filters(page, stocked):
    page.goto(stocked.address)
    cards = page.locator("#results .card")
    expect(cards).to_have_count(30)
    expect(page.locator("#results .extra").first).to_have_text("0")
    page.fill("#filter", "seed >= 10, seed < 16, label = bee")
    page.locator("#filter").blur()
    expect(cards).to_have_count(2)
    cards.first.click()
    expect(page.locator("#heading")).to_have_text("1 nearest")
    expect(page.locator("#how")).to_contain_text("that pass the filter")
    page.fill("#filter", "seed about 3")
    page.locator("#filter").blur()
    expect(page.locator("#trouble")).to_contain_text("no condition")
    page.fill("#filter", "seed = 99")
    page.locator("#filter").blur()
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#heading")).to_have_text("Nothing near enough")


def test_the_camera_takes_the_query(page, stocked):
    page.goto(stocked.address)
    expect(page.locator("#results .card")).to_have_count(30)
    page.click('[data-picker="query"] .shoot')
    until(page, "document.getElementById('viewfinder').videoWidth > 0")
    page.click("#camera [value=shoot]")
    expect(page.locator("#heading")).to_have_text("24 nearest")
    expect(page.locator('[data-picker="query"] .clear')).to_be_visible()


def test_collections_can_be_chosen_where_there_are_several(page, start, picture):
    running = start()
    page.goto(running.address)
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#collection-field")).to_be_hidden()
    with running.client() as client:
        client.create_collection("other")
        client.upsert(picture(1), "there", label="owl", collection="other")
    page.reload()
    page.select_option("#collection", "other")
    expect(first_name(page)).to_have_text("owl")
    until(page, "document.querySelector('#results img').naturalWidth > 0")
    choose(page, QUERY, picture(1))
    expect(page.locator("#heading")).to_have_text("1 nearest")
    page.select_option("#collection", "default")
    expect(page.locator("#heading")).to_have_text("Nothing near enough")


def test_the_keyboard_reaches_everything(page, stocked):
    page.goto(stocked.address)
    cards = page.locator("#results .card")
    expect(cards).to_have_count(30)
    cards.first.focus()
    page.keyboard.press("ArrowRight")
    expect(cards.nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    expect(cards.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#heading")).to_have_text("24 nearest")
    page.focus("#tab-search")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#panel-compare")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#panel-add")).to_be_visible()


def test_compare_decides(page, stocked, picture):
    page.goto(stocked.address)
    page.click("#tab-compare")
    choose(page, '[data-picker="first"] input', picture(1))
    hand_over(page, "paste", picture(1))  # fills the free side
    expect(page.locator(".decision")).to_have_text("The same")
    expect(page.locator("#verdict")).to_contain_text("threshold is 0.900")
    page.select_option("#rate", "0.01")
    expect(page.locator("#verdict")).to_contain_text("threshold is 0.500")


def test_what_is_no_image_is_explained(page, stocked):
    page.goto(stocked.address)
    choose(page, QUERY, b"dear diary")
    expect(page.locator("#trouble")).to_contain_text("not an image")


def test_add_find_and_delete_with_the_write_key(page, start, picture):
    running = start(write_key="sesame")
    page.goto(running.address)
    expect(page.locator("#empty")).to_be_visible()
    page.click("#tab-add")
    choose(page, '[data-picker="new"] input', picture(50))
    page.fill("#add-label", "owl")
    page.fill("#add-id", "o/1")
    page.fill("#add-metadata", "year: 1900\nplace: Ulm: the minster")
    page.click("#add [type=submit]")
    expect(page.locator("#keys")).to_be_visible()  # no key yet
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    page.click("#add [type=submit]")
    expect(page.locator("#added")).to_contain_text('Added as "o/1"')
    page.click("#tab-search")
    choose(page, QUERY, picture(50))
    expect(first_name(page)).to_have_text("owl")
    page.hover("#results li")
    page.click("#results .about")
    expect(page.locator("#details-facts")).to_contain_text("Ulm: the minster")
    expect(page.locator("#details-facts")).to_contain_text("1900")
    page.click("#delete")
    page.click("#delete")
    expect(page.locator("#results .card")).to_have_count(0)
    with running.client() as client:
        assert client.get("o/1") is None


def about(page, name):
    """Open what is known of the card with this title."""
    card = page.locator("#results li", has=page.locator(f'.name[title="{name}"]'))
    card.hover()
    card.locator(".about").click()


def test_ids_of_64_bits_keep_their_last_digits(page, start, picture):
    """JavaScript's own numbers would round them: to another item's."""
    running = start()
    first, second, text = 1770000000000000001, 1770000000000000000, "1770000000000000001"
    with running.client() as client:
        client.upsert(
            picture(1),
            first,
            label="first",
            metadata={"code": 2**63 - 1, "deep": [{"n": 10**17 + 1}], "a.b": 3},
        )
        client.upsert(picture(2), second, label="second")
        client.upsert(picture(3), text, label="text")
        client.upsert(picture(4), 7, label="short")
    page.goto(running.address)
    expect(page.locator("#results .card")).to_have_count(4)
    until(page, "[...document.querySelectorAll('#results img')].every((image) => image.naturalWidth > 0)")
    about(page, f"first ({first})")
    expect(page.locator("#details-facts")).to_contain_text(str(2**63 - 1))
    expect(page.locator("#details-facts")).to_contain_text('[{"n":100000000000000001}]')
    page.click("#details [value=similar]")
    expect(page.locator("#heading")).to_have_text("3 nearest")
    expect(page.locator("#results")).not_to_contain_text("first")
    assert page.url.endswith(f"#{first}")
    page.reload()
    expect(page.locator("#heading")).to_have_text("3 nearest")
    expect(page.locator("#results")).not_to_contain_text("first")
    about(page, f"text ({text})")
    expect(page.locator("#details-facts")).to_contain_text(f'"{text}"')
    page.click("#details [value=similar]")
    expect(page.locator("#results")).not_to_contain_text("text")
    page.click(".brand")
    expect(page.locator("#heading")).to_have_text("Have a look around")
    page.fill("#filter", f'id = {first}, "a.b" = 3')
    page.locator("#filter").blur()
    expect(page.locator("#results .card")).to_have_count(1)
    about(page, f"first ({first})")
    page.click("#details [value=compare]")
    expect(page.locator('[data-picker="first"] .clear')).to_be_visible()
    choose(page, '[data-picker="second"] input', picture(1, form="JPEG"))
    expect(page.locator(".decision")).to_be_visible()
    page.click("#tab-add")
    choose(page, '[data-picker="new"] input', picture(5))
    page.fill("#add-id", str(first + 2))
    page.fill("#add-metadata", f"code: {2**60 + 1}")
    page.click("#add [type=submit]")
    expect(page.locator("#added")).to_contain_text(f"Added as {first + 2}")
    with running.client() as client:
        assert client.get(first + 2).metadata == {"code": 2**60 + 1}
    page.click("#tab-search")
    page.fill("#filter", "")
    page.locator("#filter").blur()
    for item_id, label in ((first, "first"), (text, "text"), (7, "short")):
        about(page, f"{label} ({item_id})")
        page.click("#delete")
        page.click("#delete")
        expect(page.locator(f'#results .name[title="{label} ({item_id})"]')).to_have_count(0)
    with running.client() as client:
        assert {item.id for item in client.scan()} == {second, first + 2}


def test_looking_around_shows_a_mixture(page, start, bundle):
    """Images are mostly stored class by class; the first ones would all be of one class."""
    running = start()
    vectors = np.random.default_rng(0).standard_normal((600, bundle.dim))
    with running.client() as client:
        client.upsert_vectors(
            NewItem(id=n, vector=vector.tolist(), label=f"label {n // 60}")
            for n, vector in enumerate(vectors)
        )
    page.goto(running.address)
    cards = page.locator("#results .card")
    expect(cards).to_have_count(48)
    assert len(set(page.locator("#results .name").all_inner_texts()[:10])) == 10
    page.click("#more")
    until(page, "document.querySelectorAll('#results .card').length > 70")
    titles = [one.get_attribute("title") for one in page.locator("#results .name").all()]
    assert len(titles) == len(set(titles))
    page.fill("#label", "label 3")
    page.locator("#label").blur()
    expect(cards).to_have_count(48)
    assert set(page.locator("#results .name").all_inner_texts()) == {"label 3"}
    page.click("#more")
    expect(cards).to_have_count(60)
    expect(page.locator("#more")).to_be_hidden()


def test_a_late_answer_does_not_disturb_a_newer_one(page, stocked):
    """The first look around may be answered when a filter is already set."""
    late, asked = [], []
    page.route("**/v1/items?*sample=true*", lambda route: late.append(route))
    page.route("**/v1/items?*filter=*", lambda route: asked.append(route))
    page.goto(stocked.address)
    while not late:
        page.wait_for_timeout(20)
    page.fill("#filter", "seed = 7")
    page.locator("#filter").blur()
    while not asked:
        page.wait_for_timeout(20)
    late[0].continue_()
    page.wait_for_timeout(300)
    asked[0].continue_()
    expect(page.locator('#results .name[title="bee (n/7)"]')).to_have_count(1)
    expect(page.locator("#results .card")).to_have_count(1)
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


def test_the_theme_is_remembered(page, stocked):
    page.goto(stocked.address)
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") == "dark"
    page.reload()
    assert page.get_attribute("html", "data-theme") == "dark"


def test_the_reference_lists_every_endpoint(page, stocked):
    paths = httpx.get(f"{stocked.address}/v1/openapi.json").json()["paths"]
    page.goto(f"{stocked.address}/docs")
    expect(page.locator(".endpoint")).to_have_count(sum(len(methods) for methods in paths.values()))
    page.locator(".endpoint summary").first.click()
    assert violations(page) == []


def violations(page):
    return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in Axe().run(page).response["violations"]]


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_axe_finds_nothing(page, stocked, picture, scheme, width):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 850})
    page.goto(stocked.address)
    expect(page.locator("#results .card")).to_have_count(30)
    assert violations(page) == []
    choose(page, QUERY, picture(4))
    expect(page.locator("#heading")).to_have_text("24 nearest")
    assert violations(page) == []
    page.hover("#results li")
    page.locator("#results .about").first.click()
    expect(page.locator("#details")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.click("#tab-compare")
    choose(page, '[data-picker="first"] input', picture(1))
    choose(page, '[data-picker="second"] input', picture(2))
    expect(page.locator(".decision")).to_be_visible()
    assert violations(page) == []
    page.click("#tab-add")
    assert violations(page) == []
    page.click("#key-open")
    assert violations(page) == []


def test_nothing_overflows_sideways_on_a_phone(page, stocked, picture):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(stocked.address)
    choose(page, QUERY, picture(4))
    expect(page.locator("#heading")).to_have_text("24 nearest")
    for tab in ("#tab-search", "#tab-compare", "#tab-add"):
        page.click(tab)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab

"""The playground's page in Chromium; `pip install --group browser` brings what drives it."""

import math
import shutil
import threading

import jax
import pytest

from experiments.fewshot.playground import models, program

sync_api = pytest.importorskip("playwright.sync_api")
server = pytest.importorskip("experiments.fewshot.playground.server")
uvicorn = pytest.importorskip("uvicorn")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium isn't installed"),
]


@pytest.fixture(scope="module")
def address():
    """A server of untrained models: what these see is enough for drawings as unlike as below."""
    made = {name: models.model_of(name, jax.random.key(0)) for name in models.TITLES}
    trained = {
        name: models.Trained(each.learner, each.params, [{"mean": 0.0}])
        for name, each in made.items()
    }
    description = {
        "image": {"side": 21, "width": 2.9},
        "models": [{"name": name, "title": title} for name, title in models.TITLES.items()],
        "facts": "They are not trained.",
    }
    app = server.app_of(program.compiled(trained), description)
    with server.listen("127.0.0.1", 0) as listening:
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield "http://{}:{}".format(*listening.getsockname()[:2])
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # Without Chromium's own sandbox, which containers don't allow.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 1600}, has_touch=True)
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture
def page(context, address):
    page = context.new_page()
    page.goto(address)
    answered(page)
    page.click("[data-start=empty]")
    return page


def line(*points):
    return lambda jitter: [(x + jitter, y - jitter) for x, y in points]


def ring(jitter):
    turns = [2 * math.pi * i / 20 for i in range(21)]
    return [(0.5 + (0.3 + jitter) * math.cos(t), 0.5 + 0.3 * math.sin(t)) for t in turns]


SHAPES = [
    line((0.5, 0.1), (0.5, 0.5), (0.5, 0.9)),
    ring,
    line((0.1, 0.2), (0.9, 0.2), (0.1, 0.8), (0.9, 0.8)),
]


def draw(page, pad, points):
    """One stroke with the mouse, the points from 0 to 1 across the pad."""
    box = page.locator(f"[data-pad={pad}] svg").bounding_box()
    place = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.move(*place(*points[0]))
    page.mouse.down()
    for x, y in points[1:]:
        page.mouse.move(*place(x, y), steps=3)
    page.mouse.up()


def draw_classes(page):
    for index, shape in enumerate(SHAPES):
        draw(page, f"class-{index}", shape(0))


def answered(page):
    """Both models' classes, once they are there."""
    page.wait_for_selector("[data-model=prototypical]")
    return {
        name: page.get_attribute(f"[data-model={name}]", "data-answer") for name in models.TITLES
    }


def strokes(page, pad):
    return page.locator(f"[data-pad={pad}] path").count()


def test_what_is_drawn_is_recognised(page):
    draw_classes(page)
    assert "Draw something to recognise" in page.inner_text("#status")
    for index, shape in enumerate(SHAPES):
        page.click("[data-key=query-clear]") if index else None
        page.wait_for_function("!document.querySelector('.card')")
        draw(page, "query", shape(0.02))
        assert answered(page) == dict.fromkeys(models.TITLES, "ABC"[index])
    rows = page.locator("[data-model=maml] tbody tr")
    assert rows.count() == 3
    heads = page.locator("[data-model=maml] thead th").all_inner_texts()
    assert heads == ["before", *(f"step {i + 1}" for i in range(models.INNER_STEPS))]
    percents = [
        [int(cell.strip(" %")) for cell in row.locator("td").all_inner_texts()]
        for row in rows.all()
    ]
    assert all(abs(sum(column) - 100) <= 2 for column in zip(*percents, strict=True))


def test_undo_clear_remove_add_and_samples(page):
    draw(page, "class-0", SHAPES[0](0))
    draw(page, "class-0", SHAPES[2](0))
    page.click("[data-key=class-0-undo]")
    assert strokes(page, "class-0") == 1
    page.click("[data-key=class-0-clear]")
    assert strokes(page, "class-0") == 0
    assert page.is_disabled("[data-key=class-0-undo]")
    page.click("[data-key=add]")
    page.click("[data-key=add]")
    assert page.locator("[data-key=add]").count() == 0  # five are the most
    for _ in range(3):
        page.click("[data-key=class-1-remove]")
    assert page.is_disabled("[data-key=class-1-remove]")  # two are the fewest
    box = page.locator("[data-pad=class-0] svg").bounding_box()
    page.touchscreen.tap(box["x"] + 20, box["y"] + 20)  # a finger
    assert strokes(page, "class-0") == 1
    page.focus("[data-key=class-1-sample]")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.key") == "class-1-sample"
    page.click("[data-key=query-sample]")
    assert page.locator("[data-model=maml] tbody tr").count() == 2 or answered(page)


def test_what_is_wrong_is_shown_and_the_page_goes_on(page):
    assert "Draw examples of the classes A, B, and C." in page.inner_text("#status")
    draw_classes(page)
    spoil = lambda route: route.continue_(post_data='{"examples": [], "query": []}')
    page.route("**/api/answer", spoil)
    draw(page, "query", ring(0))
    page.wait_for_selector("#problem:visible")
    assert "2 to 5 classes, with one example each; got 0." in page.inner_text("#problem")
    page.unroute("**/api/answer")
    page.route("**/api/answer", lambda route: route.abort())
    draw(page, "query", ring(0.01))
    page.get_by_text("Start it again").wait_for()
    page.unroute("**/api/answer")
    draw(page, "query", ring(0.02))
    answered(page)
    assert page.is_hidden("#problem")


def test_a_reload_keeps_the_drawings_and_tabs_dont_share_them(page, context, address):
    draw_classes(page)
    draw(page, "query", ring(0.02))
    answered(page)
    other = context.new_page()
    other.goto(address)
    answered(other)
    other.click("[data-start=letters]")
    other.wait_for_function("document.querySelectorAll('[data-model=maml] tbody tr').length === 5")
    page.reload()
    assert answered(page)["prototypical"] == "B"
    assert [strokes(page, pad) for pad in ("class-0", "class-2", "query")] == [1, 1, 1]
    other.reload()
    answered(other)
    assert other.locator("[data-model=maml] tbody tr").count() == 5
    page.evaluate("sessionStorage.setItem('metajax playground', '{\"classes\": [[[7]]]}')")
    page.reload()  # what is damaged is left out
    answered(page)


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_it_fits_and_can_be_read(browser, address, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    answered(page)
    page.click("[data-start=letters]")
    page.click("summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back, ink = page.evaluate(
        "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    )
    bright = lambda colour: sum(map(int, colour.strip("rgb()").split(","))) > 380
    assert bright(back) == (scheme == "light") != bright(ink)
    unnamed = page.locator("button:not([aria-label])").all_inner_texts()
    assert unnamed == ["Shapes", "Letters", "Empty pads"]  # what each does is its text
    context.close()

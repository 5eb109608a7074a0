"""The tab for objects in headless Chromium, as seen by a visitor. Skipped without Chromium or playwright."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from demo_server import SERVER
from object_models import save_object_model
from PIL import Image

from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter

gradio = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

from hf_vit_seg.demo import launch  # noqa: E402

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 60_000  # milliseconds, on machines with other load
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def write_photo(path: Path, seed: int) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((320, 240)).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run with two images among its samples, whose model finds two classes of objects and one of stuff."""
    run = tmp_path_factory.mktemp("objects") / "run"
    save_object_model(run / "best", stuff=[2])
    (run / "samples/images").mkdir(parents=True)
    for number in range(2):
        write_photo(run / f"samples/images/{number}.png", number)
    return run


@pytest.fixture(scope="module")
def address(folder):
    _, address, _ = launch("nuclei", str(folder / "best"), **SERVER)
    yield address
    gradio.close_all()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[("desktop", "light"), ("desktop", "dark"), ("phone", "light"), ("phone", "dark")])
def page(request, browser, address):
    """The tab with the result of the first example; fails at the end if the console has errors."""
    device, scheme = request.param
    phone = {"has_touch": True, "is_mobile": True} if device == "phone" else {}
    viewport = dict(zip(("width", "height"), SIZES[device], strict=True))
    context = browser.new_context(viewport=viewport, color_scheme=scheme, **phone)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.locator(".legend button").first.wait_for()
    page.get_by_role("tab", name="Objects").click()
    page.locator("canvas.picture:visible").wait_for()
    page.device = device
    yield page
    context.close()
    assert not complaints


def point(page, row: float, column: float) -> None:
    """Point at a pixel of the image, or tap it."""
    canvas = page.locator("canvas.picture:visible")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    place = column * box["width"] / 320, row * box["height"] / 240
    if page.device == "phone":
        canvas.tap(position=dict(zip("xy", place, strict=True)))
    else:
        page.mouse.move(box["x"] + place[0], box["y"] + place[1])


def test_objects_are_shown(page, folder, tmp_path):
    expected = InstanceSegmenter.from_pretrained(str(folder / "best"), "cpu")(folder / "samples/images/0.png")
    things = [found for found in expected.objects if found.label not in expected.stuff]
    counts = expected.counts()
    heading = page.locator(".heading:visible").inner_text()
    assert heading == ("1 object" if len(things) == 1 else f"{len(things)} objects")
    legend = page.locator(".legend:visible button")
    assert set(legend.locator("span").all_inner_texts()) == set(counts)
    numbers = expected.instance_map()
    assert len(things) >= 3
    for found in sorted(things, key=lambda found: -found.area)[:2]:
        number = expected.objects.index(found) + 1
        rows, columns = np.nonzero(numbers == number)
        middle = len(rows) // 2
        point(page, rows[middle] + 0.5, columns[middle] + 0.5)
        assert page.locator(".tip:visible b").inner_text() == expected.names[found.label]
        text = page.locator(".tip:visible span").inner_text()
        assert text == f"score {found.score:.2f}, {found.area:,} pixels"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    assert [each for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with page.expect_download() as saved:
        page.get_by_text("Objects (CSV)").click()
    table = list(csv.DictReader(Path(saved.value.path()).read_text().splitlines()))
    assert [int(row["area"]) for row in table] == [found.area for found in expected.objects]
    with page.expect_download() as saved:
        page.get_by_text("Instance map (PNG)").click()
    assert np.array_equal(np.asarray(Image.open(saved.value.path())), numbers)
    change_colors(page)


def change_colors(page) -> None:
    """The colors are those of objects or of classes, and hidden classes have none."""

    def drawn() -> str:
        page.get_by_text("Save picture").locator("visible=true").focus()
        return page.locator("canvas.picture:visible").evaluate("canvas => canvas.toDataURL()")

    page.mouse.move(1, 1)
    objects = drawn()
    page.get_by_label("One color per object").locator("visible=true").uncheck()
    classes = drawn()
    page.get_by_role("button", name="Hide all").locator("visible=true").click()
    assert len({objects, classes, drawn()}) == 3


def test_errors_are_shown_in_place_of_the_result(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    page.get_by_label("Remove Image").locator("visible=true").click()
    page.locator(".empty:visible").wait_for()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.locator("input[type=file]").set_input_files(tmp_path / "broken.png")
    failure = panel.locator(".failure")
    failure.wait_for()
    assert re.search(r"broken\.png: not a supported image file; convert", failure.inner_text())
    assert page.get_by_role("button", name="Objects (CSV)").is_disabled()

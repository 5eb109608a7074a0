"""The demo in headless Chromium, as seen by a visitor. Skipped without Chromium or playwright."""

import base64
import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_server import SERVER
from paths import REPOSITORY
from PIL import Image
from transformers import AutoModelForImageClassification, AutoModelForPoseEstimation, AutoModelForSemanticSegmentation

from hf_vit_seg import architectures
from hf_vit_seg.drawing.overlays import percent
from hf_vit_seg.inference import Segmenter

gradio = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

from hf_vit_seg.demo import launch  # noqa: E402
from hf_vit_seg.demo.uploads import MAX_FILES  # noqa: E402

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHOTO = REPOSITORY / "examples/nuclei/data/test/images/0c2550a23b8a0f29.webp"
PATIENCE = 200_000  # milliseconds, on machines with other load


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A demo with the built-in model, an untrained one, one with truncated weights, and two of other tasks."""
    folder = tmp_path_factory.mktemp("models") / "untrained"
    segformer = architectures()["segformer"]
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(segformer.variant_config("nano", num_labels=150))
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=3)  # many classes in an image
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    segformer.image_processor["torchvision"](size={"height": 64, "width": 64}).save_pretrained(folder)
    cut = shutil.copytree(folder, folder.with_name("cut"))
    (cut / "model.safetensors").write_bytes(b"cut")
    vit = architectures()["vit"]
    others = {"classifier": AutoModelForImageClassification, "pose": AutoModelForPoseEstimation}
    for name, auto_class in others.items():
        auto_class.from_config(vit.variant_config("tiny", num_labels=17)).save_pretrained(folder.with_name(name))
        vit.image_processor["torchvision"](size={"height": 64, "width": 48}).save_pretrained(folder.with_name(name))
    models = ["nuclei", *(str(folder.with_name(name)) for name in ("untrained", "cut", *others))]
    _, address, _ = launch(*models, **SERVER)
    yield address
    gradio.close_all()


@pytest.fixture(scope="module")
def page(address):
    """The page in a browser; fails at the end if the console has errors."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(PATIENCE)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        yield page
        browser.close()
    assert not complaints


def choose(page, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)


def legend(page) -> list[str]:
    return page.locator(".legend button span").all_inner_texts()


def pixels(page) -> np.ndarray:
    """The rendered pixels, (H, W, 3)."""
    address = page.locator("canvas.picture").evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def wait_for_result(page, name: str) -> None:
    """Wait for the result of an image."""
    expression = "name => document.querySelector('canvas.picture').getAttribute('aria-label').includes(name)"
    page.wait_for_function(expression, arg=name)


def test_page_opens_with_the_result_of_an_example(page):
    page.locator(".legend button").first.wait_for()
    assert set(legend(page)) <= {"background", "nucleus"}
    assert page.get_by_role("button", name="Report (JSON)").is_enabled()
    assert "SegFormerForSemanticSegmentation, 2 classes" in page.locator(".about").inner_text()


def test_card_of_the_model_can_be_read(page):
    page.locator(".legend button").first.wait_for()  # the result is not dimmed any more
    results = page.get_by_role("heading", name="Results on the test split")
    assert not results.is_visible()
    page.get_by_role("button", name="Model card").click()
    results.wait_for()
    large = page.viewport_size
    for size in (large, {"width": 390, "height": 844}):
        page.set_viewport_size(size)
        assert findings(page) == []
    page.set_viewport_size(large)
    page.get_by_role("button", name="Model card").click()


def test_visitor_sees_the_segmentation(page):
    choose(page, PHOTO)
    wait_for_result(page, PHOTO.stem)
    expected = Segmenter.from_pretrained(str(REPOSITORY / "examples/nuclei/model"))(PHOTO)
    assert legend(page) == [count.name for count in expected.counts()]
    assert page.locator(".legend button em").all_inner_texts() == [percent(c.share) for c in expected.counts()]
    titles = [button.get_attribute("title") for button in page.locator(".legend button").all()]
    assert titles == [f"{count.name}: {count.pixels:,} pixels" for count in expected.counts()]
    drawn, photo = pixels(page), np.asarray(Image.open(PHOTO).convert("RGB"))
    factor = drawn.shape[0] // photo.shape[0]
    changed = np.abs(drawn[::factor, ::factor].astype(int) - photo).max(axis=2) > 40
    nuclei = expected.label_map == 1
    assert changed[nuclei].mean() > 0.9 and changed[~nuclei].mean() < 0.1
    canvas = page.locator("canvas.picture").bounding_box()
    for label in (0, 1):
        rows, columns = np.nonzero(expected.label_map == label)
        row, column = rows[len(rows) // 2] + 0.5, columns[len(rows) // 2] + 0.5
        scale = canvas["width"] / photo.shape[1]
        page.mouse.move(canvas["x"] + column * scale, canvas["y"] + row * scale)
        assert page.locator(".tip b").inner_text() == expected.names[label]


def test_opacity_and_legend_change_the_view(page):
    def strength() -> float:
        page.locator("h1").hover()  # outside the legend
        return float(np.abs(pixels(page).astype(int) - bare).mean())

    page.locator(".split").fill("100")
    bare = pixels(page).astype(int)
    page.locator(".split").fill("0")
    half = strength()
    page.locator(".split").fill("50")
    assert 0 < strength() < half
    page.locator(".split").fill("0")
    page.locator(".opacity").fill("100")
    assert strength() > 1.5 * half
    page.locator(".legend button", has_text="nucleus").click()
    assert strength() == 0
    page.locator(".legend button", has_text="nucleus").click()
    assert strength() > half
    page.get_by_role("button", name="Hide all").click()
    assert strength() == 0
    assert pressed(page) == {"false"}
    page.get_by_role("button", name="Show all").click()
    assert pressed(page) == {"true"} and strength() > half


def pressed(page) -> set[str | None]:
    return {button.get_attribute("aria-pressed") for button in page.locator(".legend button").all()}


def test_keyboard_reaches_every_control(page):
    page.locator(".opacity").focus()
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className || document.activeElement.textContent"))
    assert reached[:4] == ["split", "save", "all", "none"]
    assert [page.evaluate("document.activeElement.tagName")] != ["BODY"]
    page.locator(".legend button").first.focus()
    before = pressed(page)
    page.keyboard.press("Space")
    assert pressed(page) != before or len(legend(page)) > 1
    page.keyboard.press("Space")
    assert pressed(page) == before


def findings(page) -> list[tuple[str, list[str]]]:
    """Serious findings of axe-core."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious]


def test_page_is_accessible(page):
    page.locator("h1").hover()
    assert findings(page) == []


def test_images_and_label_maps_can_be_downloaded(page):
    with page.expect_download() as saved:
        page.locator(".save").click()
    assert saved.value.suggested_filename == f"{PHOTO.stem}.overlay.png"
    assert Image.open(saved.value.path()).size == pixels(page).shape[1::-1]
    with page.expect_download() as saved:
        page.get_by_text("Label map (PNG)").click()
    assert Image.open(saved.value.path()).size == Image.open(PHOTO).size


def choose_model(page, name: str) -> None:
    page.get_by_label("Model").first.click()
    page.get_by_role("option", name=name).click()


def test_another_model_shows_its_classes(page):
    choose_model(page, "untrained")
    page.wait_for_function("document.querySelector('.caption').innerText.includes('untrained')")
    assert "nucleus" not in legend(page) and legend(page)


def test_long_legends_are_searched(page, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    page.get_by_label("Remove Image").click()
    page.locator(".empty").wait_for()
    choose(page, tmp_path / "noise.png")
    wait_for_result(page, "noise")
    names = legend(page)
    assert len(names) >= 12
    page.locator(".search").fill(names[5])
    visible = [name for name in names if page.locator(".legend button", has_text=name).first.is_visible()]
    assert names[5] in visible and len(visible) < len(names)
    page.locator(".search").fill("")


def test_broken_model_clears_previous_results(page):
    choose_model(page, "cut")
    page.get_by_text("cannot be loaded as a segmentation model").wait_for()
    page.locator(".failure").wait_for()
    assert not page.locator("canvas.picture").is_visible() and not page.locator(".empty").is_visible()
    assert page.get_by_role("button", name="Report (JSON)").is_disabled()
    assert findings(page) == []
    choose_model(page, "untrained")
    page.locator("canvas.picture").wait_for()


def test_all_examples_are_within_their_gallery(page):
    gallery, items = page.locator(".examples"), page.locator(".examples .thumbnail-item")
    items.first.wait_for()
    outer = gallery.bounding_box()
    for box in (item.bounding_box() for item in items.all()):
        assert outer["x"] <= box["x"] and box["x"] + box["width"] <= outer["x"] + outer["width"]
        assert outer["y"] <= box["y"] and box["y"] + box["height"] <= outer["y"] + outer["height"]


def test_example_selects_its_model(page):
    page.locator(".thumbnail-item").first.click()
    page.wait_for_function("document.querySelector('.caption').innerText.startsWith('nuclei: ')")
    assert page.get_by_label("Model").first.input_value() == "nuclei"
    assert set(legend(page)) <= {"background", "nucleus"}


def test_broken_image_is_reported(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    page.get_by_label("Remove Image").click()
    page.locator(".empty").wait_for()
    choose(page, tmp_path / "broken.png")
    page.locator(".failure", has_text=re.compile(r"broken\.png: not a supported image file; convert")).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(page, address, scheme):
    """The result comes into view, and a tap names the class."""
    options = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme, "has_touch": True, "is_mobile": True}
    context = page.context.browser.new_context(**options)
    phone = context.new_page()
    phone.set_default_timeout(PATIENCE)
    phone.goto(address)
    phone.locator(".legend button").first.wait_for()
    assert phone.evaluate("scrollY") == 0
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    choose(phone, PHOTO)
    wait_for_result(phone, PHOTO.stem)
    phone.wait_for_function("document.querySelector('.frame').getBoundingClientRect().top < innerHeight / 2")
    phone.locator("canvas.picture").tap()
    assert phone.locator(".tip b").inner_text() in ("background", "nucleus")
    assert "Tap" in phone.locator(".hint").inner_text()
    assert not phone.locator(".api-hint").first.is_visible()  # gradio hides the link itself
    assert findings(phone) == []
    context.close()


RESULTS = {"Classification": "[data-testid='label-output-value']", "Pose": "text=LABEL_0"}


@pytest.mark.parametrize(("tab", "result"), RESULTS.items())
def test_errors_of_other_tasks_are_shown_until_the_next_result(page, tmp_path, tab, result):
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    page.get_by_role("tab", name=tab).click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    assert findings(page) == []
    panel.locator("input[accept='image/*']").set_input_files(tmp_path / "broken.png")
    error = panel.get_by_label("Error")
    error.wait_for()
    assert "roken.png: not a supported image file" in error.input_value()
    assert findings(page) == []
    panel.get_by_label("Remove Image").click()
    error.wait_for(state="hidden")
    panel.locator("input[accept='image/*']").set_input_files(PHOTO)
    panel.locator(result).first.wait_for()
    assert not error.is_visible()


def test_batch_can_be_canceled(page, slow_segmenter):
    page.get_by_role("tab", name="Many files").click()
    assert findings(page) == []
    page.locator("input[type=file][multiple]").set_input_files(sorted(PHOTO.parent.glob("*.webp"))[:MAX_FILES])
    page.get_by_role("button", name="Segment all").click()
    page.locator(".thumbnail-item:visible").first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator(".thumbnail-item:visible").first.wait_for()
    reached = len(slow_segmenter)
    page.wait_for_timeout(2000)
    assert len(slow_segmenter) <= reached + 1 < MAX_FILES

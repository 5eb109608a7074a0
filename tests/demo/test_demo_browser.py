"""The demo in headless Chromium, as seen by a visitor. Skipped without Chromium or playwright."""

import base64
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPOSITORY
from PIL import Image
from transformers import AutoModelForSemanticSegmentation

from hf_vit_seg import architectures
from hf_vit_seg.drawing.overlays import percent
from hf_vit_seg.inference import Segmenter

gradio = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

from hf_vit_seg.demo import launch  # noqa: E402
from hf_vit_seg.demo.uploads import MOST_FILES  # noqa: E402

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHOTO = REPOSITORY / "examples/nuclei/data/test/images/0c2550a23b8a0f29.webp"
PATIENCE = 60_000  # milliseconds, on machines with other load


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A demo with the built-in model, an untrained one with other classes, and one with truncated weights."""
    folder = tmp_path_factory.mktemp("models") / "untrained"
    segformer = architectures()["segformer"]
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(segformer.variant_config("nano", num_labels=30))
    model.save_pretrained(folder)
    segformer.image_processor["torchvision"](size={"height": 64, "width": 64}).save_pretrained(folder)
    cut = shutil.copytree(folder, folder.with_name("cut"))
    (cut / "model.safetensors").write_bytes(b"cut")
    _, address, _ = launch("nuclei", str(folder), str(cut), prevent_thread_lock=True, quiet=True)
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


def test_visitor_sees_the_segmentation(page):
    choose(page, PHOTO)
    page.locator(".legend button").first.wait_for()
    expected = Segmenter.from_pretrained(str(REPOSITORY / "examples/nuclei/model"))(PHOTO)
    assert legend(page) == [count.name for count in expected.counts()]
    assert page.locator(".legend button em").all_inner_texts() == [percent(c.share) for c in expected.counts()]
    for count in expected.counts():
        page.wait_for_function("pixels => document.body.innerText.includes(pixels)", arg=str(count.pixels))
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

    page.locator(".compare").dispatch_event("pointerdown")
    bare = pixels(page).astype(int)
    page.locator(".compare").dispatch_event("pointerup")
    half = strength()
    page.locator(".opacity").fill("100")
    assert strength() > 1.5 * half
    page.locator(".legend button", has_text="nucleus").click()
    assert strength() == 0
    page.locator(".legend button", has_text="nucleus").click()
    assert strength() > half


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


def test_broken_model_clears_previous_results(page):
    choose_model(page, "cut")
    page.get_by_text("cannot be loaded as a segmentation model").wait_for()
    page.locator(".empty").wait_for()
    assert not page.locator("canvas.picture").is_visible()
    assert not page.get_by_text("Report (JSON)").locator("xpath=ancestor-or-self::a").count()
    choose_model(page, "untrained")
    page.locator("canvas.picture").wait_for()


def test_example_selects_its_model(page):
    page.locator("button.gallery-item").first.click()
    page.wait_for_function("document.querySelector('.caption').innerText.startsWith('nuclei: ')")
    assert page.get_by_label("Model").first.input_value() == "nuclei"
    assert set(legend(page)) <= {"background", "nucleus"}


def test_broken_image_is_reported(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    page.get_by_label("Remove Image").click()
    page.locator(".empty").wait_for()
    choose(page, tmp_path / "broken.png")
    page.get_by_text("broken.png: not a supported image file").wait_for()


def test_batch_can_be_canceled(page, slow_segmenter):
    page.get_by_role("tab", name="Many files").click()
    page.locator("input[type=file][multiple]").set_input_files(sorted(PHOTO.parent.glob("*.webp"))[:MOST_FILES])
    page.get_by_role("button", name="Segment all").click()
    page.locator(".thumbnail-item").first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator(".thumbnail-item").first.wait_for()
    reached = len(slow_segmenter)
    page.wait_for_timeout(2000)
    assert len(slow_segmenter) <= reached + 1 < MOST_FILES

"""Videos of objects: overlays with stable colors, counts and instance maps."""

import json
from pathlib import Path

import numpy as np
import pytest
from object_models import spot_segmenter
from PIL import Image

from hf_vit_seg.data.images.files import ImageFile
from hf_vit_seg.inference.files.prediction import Job, PredictOptions
from hf_vit_seg.inference.found_segments import FoundSegments
from hf_vit_seg.inference.video.object_colors import ObjectColors
from hf_vit_seg.inference.video.video_prediction import predict_video

NAMES, PALETTE = ("cell", "sky"), np.array([[9, 9, 9], [1, 2, 3]], np.uint8)
SIZE = (64, 96)


def frame(numbers: np.ndarray, classes: list[int], stuff: frozenset[int] = frozenset()) -> FoundSegments:
    return FoundSegments.from_map(numbers, classes, [0.9] * len(classes), names=NAMES, palette=PALETTE, stuff=stuff)


def boxes(*places: tuple[int, int]) -> np.ndarray:
    numbers = np.zeros(SIZE, np.int32)
    for number, (top, left) in enumerate(places, 1):
        numbers[top : top + 12, left : left + 12] = number
    return numbers


def test_moving_objects_keep_their_colors():
    colors = ObjectColors()
    first = colors.assign(frame(boxes((4, 4), (40, 40)), [0, 0]))
    assert len({tuple(color) for color in first.tolist()}) == 2
    swapped = colors.assign(frame(boxes((42, 43), (5, 8)), [0, 0]))  # in another order
    assert swapped.tolist() == first[::-1].tolist()
    again = colors.assign(frame(boxes((42, 44), (5, 10), (20, 70)), [0, 0, 0]))
    assert again[:2].tolist() == swapped.tolist() and again[2].tolist() not in first.tolist()


def test_other_classes_and_places_get_new_colors():
    colors = ObjectColors()
    first = colors.assign(frame(boxes((4, 4)), [0]))
    assert colors.assign(frame(boxes((4, 4)), [1])).tolist() != first.tolist()
    assert colors.assign(frame(boxes((4, 60)), [1])).tolist() not in first.tolist()
    assert colors.assign(frame(boxes(), [])).shape == (0, 3)
    assert colors.assign(frame(boxes((4, 4)), [0])).shape == (1, 3)


def test_split_object_gives_its_color_to_the_larger_part():
    colors, whole = ObjectColors(), boxes((4, 4))
    first = colors.assign(frame(whole, [0]))
    parts = whole.copy()
    parts[4:16, 12:16] = 2
    found = colors.assign(frame(parts, [0, 0]))
    assert found[0].tolist() == first[0].tolist() and found[1].tolist() != first[0].tolist()


def test_stuff_has_the_color_of_its_class():
    found = frame(np.where(boxes((4, 4)) > 0, 1, 2), [0, 1], frozenset([1]))
    assert ObjectColors().assign(found)[1].tolist() == PALETTE[1].tolist()


def test_objects_of_a_video(tmp_path):
    pytest.importorskip("av")
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(4):
        image = np.zeros(SIZE, np.uint8)
        image[10:22, 5 + 4 * number : 17 + 4 * number] = 230
        if number < 2:
            image[40:52, 60:72] = 150
        Image.fromarray(image).save(folder / f"{number}.png")
    job = Job(ImageFile(folder, Path("clip")), tmp_path / "out/clip")
    segmenter = spot_segmenter()
    *_, last = predict_video(segmenter, job, PredictOptions(frames=True, frame_rate=10))
    assert last.done == 4 and (tmp_path / "out/clip.overlay.mp4").stat().st_size > 0
    report = json.loads((tmp_path / "out/clip.json").read_text())
    assert (report["height"], report["width"], report["frames"]) == (*SIZE, 4)
    assert {row["name"]: (row["objects_per_frame"], row["most_objects"]) for row in report["classes"]} == {
        "bright": (1.0, 1),
        "dark": (0.5, 1),
    }
    shares = {row["name"]: row["share"] for row in report["classes"]}
    assert shares["bright"] == pytest.approx(144 / (64 * 96), abs=1e-6) and shares["dark"] == shares["bright"] / 2
    for number in range(4):
        written = np.asarray(Image.open(tmp_path / f"out/clip.frames/{number:06d}.png"))
        assert written.max() == (2 if number < 2 else 1)
        assert written[15, 10 + 4 * number] == 1

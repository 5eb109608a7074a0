import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_vit_seg.drawing.skeletons import COCO_BONES, LEFT, MIDDLE, RIGHT, Skeleton, draw_skeletons
from hf_vit_seg.keypoint_names import COCO_KEYPOINTS
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix
from hf_vit_seg.training.figures.layout import add_caption, grid, legend_below, truncate_text
from hf_vit_seg.training.figures.poses import persons, pose_figure
from hf_vit_seg.training.figures.sample_figures import (
    IGNORED,
    MAX_SIDE,
    MISSED,
    THUMBNAIL,
    WRONG,
    ClassifiedImage,
    class_rows,
    classification_figure,
    error_panel,
    error_rows,
    panel_size,
    segmentation_figure,
    write_figures,
)

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], dtype=np.uint8)
NAMES = ("ground", "house", "tree")
WHITE = (255, 255, 255)


def near(color, other, reach=60):
    return np.abs(np.asarray(color, dtype=int) - other).max() <= reach


@given(bands=st.sampled_from([1, 3, 5]), floats=st.booleans(), height=st.integers(1, 700), width=st.integers(1, 700))
@settings(max_examples=10)
def test_every_image_has_four_panels_and_a_legend(bands, floats, height, width):
    image = torch.randint(0, 255, (bands, height, width), dtype=torch.uint8)
    labels = torch.randint(0, 3, (height, width))
    picture = segmentation_figure(image / 100 if floats else image, labels, labels, NAMES, PALETTE)
    across, down = panel_size((width, height))
    assert picture.mode == "RGB" and picture.width >= 4 * across and picture.height > down


@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_panels_have_a_readable_size(width, height):
    size = panel_size((width, height))
    assert MAX_SIDE / 2 < max(size) <= MAX_SIDE and min(size) >= 1
    if max(width, height) <= MAX_SIDE:
        assert size[0] % width == 0 and size[0] // width == size[1] // height


def test_labels_and_image_can_differ_in_size():
    labels = np.zeros((40, 60), dtype=int)
    small = segmentation_figure(Image.new("RGB", (30, 20)), labels, labels, NAMES, PALETTE)
    large = segmentation_figure(Image.new("L", (600, 400)), labels, labels, NAMES, PALETTE)
    assert small.size == large.size


def test_errors_are_red_and_ignored_pixels_gray():
    photo = Image.new("RGB", (3, 1), (200, 120, 10))
    panel = np.asarray(error_panel(photo, np.array([[1, 2, 3]]), np.array([[1, 1, 0]]), 3))[0]
    assert len(set(panel[0])) == 1 and panel[0, 0] > 150  # right: the photo in pale gray
    assert near(panel[1], WRONG)
    assert near(panel[2], IGNORED)


def test_false_negatives_of_two_classes_are_blue():
    photo = Image.new("RGB", (4, 1), WHITE)
    panel = np.asarray(error_panel(photo, np.array([[0, 0, 1, 1]]), np.array([[0, 1, 0, 1]]), 2))[0]
    assert near(panel[1], WRONG) and near(panel[2], MISSED)
    assert (panel[[0, 3]] == 255).all()


def test_legend_lists_classes_with_iou_by_area():
    matrix = ConfusionMatrix(4)
    truth = torch.tensor([0, 1, 1, 1, 255])
    matrix.update(torch.tensor([0, 1, 1, 2, 0]), truth)
    palette = np.concatenate([PALETTE, PALETTE[:1]])
    iou, labeled = matrix.scores()["per_category_iou"], matrix.counts.sum(dim=1).numpy()
    rows = class_rows(iou, labeled, (*NAMES, "absent"), palette)
    assert [(name, color) for name, color, _ in rows] == [
        ("house", (255, 0, 0)), ("ground", (0, 0, 0)), ("tree", (0, 255, 0))
    ]  # fmt: skip
    assert [iou for _, _, iou in rows] == [pytest.approx(2 / 3), 1.0, 0.0]
    assert error_rows(matrix, truth.numpy() != 255, NAMES) == [
        ("wrong class", WRONG, pytest.approx(0.2)),
        ("ignored", IGNORED, pytest.approx(0.2)),
    ]


def test_legend_of_two_classes_has_both_error_rates():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 0]))
    assert error_rows(matrix, np.ones((2, 2), dtype=bool), ("ground", "nucleus")) == [
        ("missed nucleus", MISSED, 0.5),
        ("false nucleus", WRONG, 0.25),
    ]


def test_fully_ignored_image_is_drawn():
    labels = np.full((8, 8), 255)
    segmentation_figure(torch.zeros(3, 8, 8, dtype=torch.uint8), labels, np.zeros((8, 8), int), NAMES, PALETTE)


def test_wrong_classes_are_red():
    image = torch.full((1, 8, 8), 255, dtype=torch.uint8)
    for found, color in ((1, (213, 40, 40)), (0, (0, 128, 96))):
        sheet = np.asarray(classification_figure([ClassifiedImage(image, "W" * 90, "WM"[found] * 90, not found)]))
        saturation = sheet.max(axis=2).astype(int) - sheet.min(axis=2)
        strongest = sheet[np.unravel_index(saturation.argmax(), saturation.shape)]
        assert near(strongest, color, 30)
        assert sheet.shape[1] < THUMBNAIL * 1.2  # long names are truncated


def test_classified_images_of_any_shape_form_a_grid():
    images = [torch.zeros(1, height, 5, dtype=torch.uint8) for height in (1, 5, 900)]
    sheet = classification_figure([ClassifiedImage(image, "zero", "zero", True) for image in images], columns=2)
    single = classification_figure([ClassifiedImage(images[0], "zero", "zero", True)], columns=2)
    assert sheet.width > 1.9 * single.width and sheet.height > 1.9 * single.height


def test_file_names_are_safe_and_unique(tmp_path):
    names = ["a/b.jpg", "a b.png", "../../etc/passwd", "", "scan.v2.tif", "é.png", "A_B.tif", "x" * 400]
    paths = write_figures(tmp_path / "samples", {name: Image.new("RGB", (2, 2)) for name in names})
    assert len(set(paths)) == len(names)
    assert sorted(paths) == sorted((tmp_path / "samples").iterdir())
    assert len({path.name.casefold() for path in paths}) == len(names)
    assert paths[0].name == "a_b.png" and paths[1].name == "a_b_2.png" and paths[4].name == "scan.v2.png"


def test_keypoints_are_drawn_at_their_position():
    keypoints = np.zeros((17, 3))
    keypoints[5], keypoints[6] = (10, 20, 2), (50, 30, 1)  # left and right shoulder
    photo = Image.new("RGB", (100, 80), WHITE)
    drawn = np.asarray(
        draw_skeletons(photo, keypoints[None], keypoints[None, :, 2] > 0, (1.0, 1.0), Skeleton.of(COCO_KEYPOINTS))
    )
    assert tuple(drawn[20, 10]) == LEFT and tuple(drawn[30, 50]) == RIGHT
    assert not near(drawn[25, 30], WHITE)  # the bone between them
    assert (drawn[:8, :8] == 255).all()  # keypoints without a label are at (0, 0)
    assert (np.asarray(photo) == 255).all()


def test_skeletons_of_other_keypoints_are_not_cocos():
    names = [f"point {number}" for number in range(17)]
    assert Skeleton.of(names) == Skeleton()
    fish = Skeleton.of(["snout", "L-fin", "R-fin"], bones=[(0, 1), (0, 2)])
    assert fish.pairs == ((1, 2),)
    assert [fish.color(k) for k in range(3)] == [MIDDLE, LEFT, RIGHT]
    assert (fish.color(0, 1), fish.color(1, 1)) == (MIDDLE, LEFT)
    assert Skeleton.of(names, pairs=[[4, 2]]).color(4) == LEFT
    assert Skeleton.of(COCO_KEYPOINTS).bones == COCO_BONES


def test_scaling_maps_pixel_centers():
    keypoints = np.array([[[10.0, 20.0, 1.0]]])
    drawn = draw_skeletons(Image.new("RGB", (300, 300)), keypoints, keypoints[..., 2] > 0, (3.0, 3.0), Skeleton())
    found = np.argwhere(np.asarray(drawn)[..., 1] > 0)
    np.testing.assert_allclose(found.mean(axis=0), [61, 31], atol=0.5)  # (20 + 0.5) * 3 - 0.5


def test_poses_are_side_by_side():
    keypoints = torch.rand(2, 17, 3) * 50
    picture = pose_figure(torch.zeros(3, 60, 40, dtype=torch.uint8), keypoints, keypoints[0], note="OKS 0.5")
    assert picture.width > 2 * 40
    pose_figure(Image.new("L", (60, 40)), np.zeros((4, 3)), np.ones((4, 3)), Skeleton(((0, 3),)))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 2\), expected \(P, K, 3\)"):
        persons(np.zeros((4, 2)))


def test_bones_connect_all_coco_keypoints():
    assert {end for bone in COCO_BONES for end in bone} == set(range(17))


def test_captions_fit_and_keep_the_image():
    picture = Image.new("RGB", (50, 20), (10, 20, 30))
    sheet = add_caption(picture, "a caption that is far too long", "short")
    assert sheet.width == 50 and sheet.crop((0, sheet.height - 20, 50, sheet.height)).tobytes() == picture.tobytes()


def test_empty_grid_and_legend():
    with pytest.raises(ValueError, match="found no images"):
        grid([], 3)
    picture = Image.new("RGB", (50, 20))
    assert legend_below(picture, []) is picture


def test_text_is_truncated_to_its_width():
    from PIL import ImageFont

    font = ImageFont.load_default(16)
    assert truncate_text("abc", 1000, font) == "abc"
    cut = truncate_text("a very long text", 60, font)
    assert cut.endswith("…") and font.getlength(cut) <= 60

"""Person crops with UDP geometry, compared with ViTPose's processor, and keypoints mapped in both directions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vit_seg.data.samples import Person
from hf_vit_seg.data.transforms.person_crops import PersonAffine, PersonCrop, crop_person
from hf_vit_seg.data.transforms.pipeline import TransformContext, read_pipeline
from hf_vit_seg.models.heatmaps import heatmaps_from_keypoints, keypoints_from_heatmaps
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor

SIZE = (64, 48)
PAIRS = ((0, 1), (2, 3))
boxes = st.tuples(st.floats(-20, 60), st.floats(-20, 60), st.floats(2, 90), st.floats(2, 90))


def smooth(height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(1, 3, -(-height // 8), -(-width // 8)) * 255
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 255)


@pytest.mark.parametrize("box", [(20.0, 30.0, 40.0, 60.0), (5.5, 8.25, 80.0, 33.0), (-10.0, 60.0, 50.0, 70.0)])
@pytest.mark.parametrize("rotation", [0, 25])
def test_crops_match_vitpose(box, rotation):
    pytest.importorskip("scipy")
    from transformers.models.vitpose.image_processing_vitpose import VitPoseImageProcessor, box_to_center_and_scale

    image = smooth(120, 100)
    processor = VitPoseImageProcessor(size={"height": SIZE[0], "width": SIZE[1]})
    center, scale = box_to_center_and_scale(box, SIZE[1], SIZE[0])
    expected = processor.affine_transform(image, center, scale, rotation, processor.size)
    ours = PersonCrop.from_box(box, SIZE, rotation=rotation).extract(image)
    assert (ours - expected).abs().median() < 1e-3
    # OpenCV, and therefore mmpose, interpolates half a pixel beyond the image border, scipy does not.
    assert ((ours - expected).abs() < 0.05).float().mean() > 0.97


def test_keypoints_map_back_as_in_vitpose():
    pytest.importorskip("scipy")
    from transformers.models.vitpose.image_processing_vitpose import box_to_center_and_scale, transform_preds

    box, points = (12.0, 7.0, 30.0, 55.0), torch.rand(9, 2) * 40
    center, scale = box_to_center_and_scale(box, SIZE[1], SIZE[0])
    expected = transform_preds(points.double().numpy(), center, scale, SIZE)
    assert torch.allclose(
        PersonCrop.from_box(box, SIZE).to_image(points.double()), torch.from_numpy(expected), atol=1e-4
    )


@given(boxes, st.floats(0.5, 2), st.floats(-180, 180), st.booleans(), st.integers(0, 2**31))
def test_points_round_trip(box, scale, rotation, mirrored, seed):
    crop = PersonCrop.from_box(box, SIZE, scale, rotation, mirrored)
    points = torch.rand(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 100
    assert torch.allclose(crop.to_image(crop.to_crop(points)), points, atol=1e-8)
    middle = torch.tensor([box[0] + box[2] / 2, box[1] + box[3] / 2], dtype=torch.float64)
    assert torch.allclose(crop.to_crop(middle), torch.tensor([23.5, 31.5], dtype=torch.float64), atol=1e-8)


@given(boxes, st.floats(-180, 180), st.booleans())
@settings(max_examples=40)
def test_crop_content_moves_with_its_points(box, rotation, mirrored):
    """An image whose channels are its columns and rows, sampled in the crop at the mapped points."""
    rows, columns = torch.meshgrid(torch.arange(100.0), torch.arange(90.0), indexing="ij")
    crop = PersonCrop.from_box(box, SIZE, rotation=rotation, mirrored=mirrored)
    places = crop.extract(torch.stack([columns, rows, torch.ones_like(rows)]))
    whole = places[2] > 1 - 1e-4
    ys, xs = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    back = crop.to_image(torch.stack([xs, ys], dim=-1))
    assert torch.allclose(back[whole], places[:2].permute(1, 2, 0)[whole], atol=2e-2)
    inside = ((back >= 0) & (back <= torch.tensor([89.0, 99.0]))).all(dim=-1)
    assert (places[2][inside] > 0.99).all()
    assert (places[2][((back < -1.01) | (back > torch.tensor([90.01, 100.01]))).any(dim=-1)] == 0).all()


@pytest.mark.parametrize("byte", [True, False])
def test_crop_of_the_whole_image_is_the_image(byte):
    image = torch.randint(0, 256, (4, 64, 48)).to(torch.uint8 if byte else torch.float32)
    crop = PersonCrop.from_box((0.0, 0.0, 47.0, 63.0), SIZE, scale=47 / 47.25)  # 63 is the critical side: 47.25 wide
    exact = PersonCrop(torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64), SIZE)
    assert torch.allclose(exact.extract(image).float(), image.float(), atol=1e-2)
    assert exact.extract(image).dtype == image.dtype and torch.allclose(crop.matrix, exact.matrix, atol=0.4)


@given(boxes, st.floats(-90, 90))
@settings(max_examples=30)
def test_flipped_crop_equals_crop_then_flip(box, rotation):
    image = smooth(90, 80)
    plain, mirrored = (PersonCrop.from_box(box, SIZE, rotation=rotation, mirrored=m) for m in (False, True))
    assert torch.allclose(mirrored.extract(image), plain.extract(image).flip(-1), atol=1e-2)
    points = torch.rand(5, 2)
    assert torch.allclose(mirrored.to_crop(points)[:, 0], 47 - plain.to_crop(points)[:, 0], atol=1e-4)


def pose_context() -> TransformContext:
    processor = SemanticSegmentationImageProcessor(size={"height": SIZE[0], "width": SIZE[1]})
    return TransformContext.from_processor(processor, "pose", keypoint_flip_pairs=PAIRS)


def person() -> Person:
    points = torch.tensor([[30.0, 30, 2], [50, 31, 1], [28, 60, 2], [52, 61, 0], [40, 45, 2]])
    return Person((25.0, 25.0, 30.0, 40.0), points, 1200.0, 7, 8)


def gaussian_image(points: torch.Tensor) -> torch.Tensor:
    """An image with one channel per keypoint, each with a Gaussian."""
    return heatmaps_from_keypoints(points[None, :, :2], torch.ones(1, 5), (90, 80), (90, 80), sigma=3.0)[0][0] * 200


def test_random_crops_transform_keypoints_and_swap_sides():
    pipeline = read_pipeline([{"person_affine": {"scale": 0.2, "rotation": 15}}], pose_context())
    left_first = {True: 0, False: 0}
    for _ in range(30):
        image, keypoints = pipeline(gaussian_image(person().keypoints), person())
        mirrored = bool(keypoints[0, 2] == 1)
        left_first[mirrored] += 1
        assert keypoints[:, 2].tolist() == ([1, 2, 0, 2, 2] if mirrored else [2, 1, 2, 0, 2])
        channels = image[[1, 0, 3, 2, 4]] if mirrored else image
        inside = ((keypoints[:, :2] > 4) & (keypoints[:, :2] < torch.tensor([43.0, 59.0]))).all(dim=1)
        found, _ = keypoints_from_heatmaps(channels[None] / 200, SIZE)
        assert torch.allclose(found[0][inside], keypoints[inside, :2], atol=0.5)
    assert min(left_first.values()) > 3


def test_training_without_randomness_equals_evaluation():
    still = {"scale": 0, "rotation": 0, "flip": 0}
    image = smooth(90, 80).to(torch.uint8)
    pixels, keypoints = read_pipeline([{"person_affine": still}], pose_context())(image, person())
    measured, crop = crop_person(image, person(), SIZE)
    assert torch.equal(pixels, measured)
    assert torch.allclose(crop.to_image(keypoints[:, :2]), person().keypoints[:, :2], atol=1e-4)


def test_invalid_boxes_and_pairs_raise():
    with pytest.raises(ValueError, match="must have a positive size"):
        PersonCrop.from_box((3, 4, 0, 0), SIZE)
    transform = PersonAffine(flip=1).build(
        TransformContext("pose", lambda h, w: (h, w), SIZE, (0,), (1,), keypoint_flip_pairs=((4, 9),))
    )
    with pytest.raises(ValueError, match="5 keypoints"):
        transform(torch.zeros(3, 90, 80), person())

"""torch's TorchScript exporter to ONNX (`dynamo=False`) writes graphs for any batch and size."""

import io
import warnings

import pytest
import torch
import transformers
from random_weights import randomize_weights
from torch import nn

from hf_vit_seg import architectures

SEGMENTATION = "AutoModelForSemanticSegmentation"
MODELS = [
    ("segformer", SEGMENTATION, {}),
    ("segformer", SEGMENTATION, {"decode_head_flavor": "mmseg"}),
    ("segformer", "AutoModelForImageClassification", {}),
    ("cvt", SEGMENTATION, {}),
    ("cvt", "AutoModelForImageClassification", {}),
    ("vit", SEGMENTATION, {}),
    ("vit", SEGMENTATION, {"decode_head": "feature_pyramid"}),
    ("vit", SEGMENTATION, {"decode_head": "mask_transformer"}),
    ("vit", SEGMENTATION, {"stem": "resnetv2", "stem_depths": [1, 1], "patch_size": 1}),
    ("vit", "AutoModelForImageClassification", {}),
    ("vit", "AutoModelForPoseEstimation", {}),
    ("backbone", SEGMENTATION, {}),
]
EXAMPLE = (2, 3, 64, 96)
SHAPES = [EXAMPLE, (1, 3, 64, 96), (3, 3, 96, 64), (1, 3, 101, 139)]


class MainOutput(nn.Module):
    """A model as a function of one tensor to one tensor."""

    def __init__(self, model: transformers.PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values)[0]


@pytest.mark.parametrize(("name", "auto", "settings"), MODELS)
def test_graph_takes_any_batch_and_size(name, auto, settings):
    runtime = pytest.importorskip("onnxruntime")
    config = architectures()[name].variant_config("tiny", num_labels=5, **settings)
    model = MainOutput(randomize_weights(getattr(transformers, auto).from_config(config))).eval()
    file, axes = io.BytesIO(), {"pixel_values": {0: "batch", 2: "height", 3: "width"}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["pixel_values"], "output_names": ["output"]}
        example = (torch.randn(EXAMPLE),)
        torch.onnx.export(model, example, file, dynamo=False, opset_version=20, dynamic_axes=axes, **names)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for shape in SHAPES:
        pixel_values = torch.randn(shape)
        (found,) = session.run(None, {"pixel_values": pixel_values.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(pixel_values), rtol=1e-3, atol=1e-3)

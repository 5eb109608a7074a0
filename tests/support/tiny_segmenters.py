"""A tiny SegFormer as a Segmenter, in memory and in a directory."""

from pathlib import Path

import torch

from hf_vit_seg.data.images.files import ImageFile
from hf_vit_seg.inference import Protocol, Segmenter
from hf_vit_seg.inference.files.prediction import Job
from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.models.modeling_segformer import SegFormerForSemanticSegmentation

STATS = {3: {}, 5: {"image_mean": [0.5] * 5, "image_std": [0.25] * 5}}


def segmenter(protocol: Protocol | None = None, bands: int = 3, labels: int = 4, seed: int = 1) -> Segmenter:
    torch.manual_seed(seed)
    config = SegFormerConfig(
        num_channels=bands,
        hidden_sizes=(8, 16, 16, 16),
        num_attention_heads=(1, 2, 2, 2),
        depths=(1, 1, 1, 1),
        decode_head_hidden_size=16,
        id2label={i: f"thing {i}" for i in range(labels)},
    )
    model = SegFormerForSemanticSegmentation(config)
    with torch.no_grad():
        model.get_parameter("decode_head.classifier.weight").mul_(30)
    processor = SemanticSegmentationImageProcessor(size={"height": 64, "width": 64}, **STATS[bands])
    return Segmenter(model, processor, "cpu", protocol)


def job(path: Path, out: Path) -> Job:
    return Job(ImageFile(path, Path(path.name)), out / path.stem)


def save_segmenter(folder: Path, seed: int = 1) -> Path:
    model = segmenter(seed=seed)
    model.model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder

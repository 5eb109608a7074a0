"""Average precision of masks, as an `evaluate` module."""

from typing import Any

from hf_vit_seg.metrics import segment_results
from hf_vit_seg.metrics.mask_ap import MAX_DETECTIONS, MaskAveragePrecision

_INPUTS = f"""
Args of evaluate.load:
    num_labels (`int`): number of classes.
    max_detections (`int`, optional, defaults to 100): number of predictions of a class with the highest scores that are
        evaluated in each image; None evaluates all.
Args:{segment_results.INPUTS}Returns:
    mask_ap, mask_ap_50, mask_ap_75, mask_ap_small, mask_ap_medium, mask_ap_large, mask_ar (`float`, 0 .. 1) as
    pycocotools computes them for masks, and per_category_mask_ap, per_category_mask_ap_50 (arrays of num_labels).
Across processes:
    gather the rows (accelerate.utils.gather_object(metric.metric.rows)), as average precision is not a sum.
"""


class SegmAp(segment_results.SegmentMetric):
    """Average precision as in COCO's segmentation challenge."""

    DESCRIPTION = "Average precision and recall of masks at IoU 0.50 to 0.95."
    INPUTS = _INPUTS
    CITATION = (
        "@inproceedings{lin2014microsoft, title={Microsoft COCO: Common Objects in Context}, author={Lin, Tsung-Yi and "
        "Maire, Michael and Belongie, Serge and others}, booktitle={ECCV}, year={2014}}"
    )

    def __init__(self, *args: Any, num_labels: int = 1, max_detections: int | None = MAX_DETECTIONS, **kwargs: Any):
        self.classes, self.max_detections = num_labels, max_detections
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Remove all images."""
        self.metric = MaskAveragePrecision(self.classes, self.max_detections)

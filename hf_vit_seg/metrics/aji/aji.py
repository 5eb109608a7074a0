"""Scores of objects, such as cells, as an `evaluate` module."""

from hf_vit_seg.metrics import segment_results
from hf_vit_seg.metrics.object_scores import ObjectScores

_INPUTS = f"""
Args:{segment_results.INPUTS}Returns:
    aji, the aggregated Jaccard index; f1_50, F1 at an IoU of 0.5 (`float`, 0 .. 1); count_error, the mean of
    |found - true| / true; objects, objects_found, and count_difference, the sum of |found - true| (`int`).
Across processes:
    metric.counts = accelerator.reduce(metric.counts, "sum"), then compute.
"""


class Aji(segment_results.SegmentMetric):
    """Aggregated Jaccard index, F1 at IoU 0.5, and count error."""

    DESCRIPTION = "Aggregated Jaccard index, F1 at IoU 0.5, and the error of the number of objects."
    INPUTS = _INPUTS
    CITATION = (
        "@article{kumar2017dataset, title={A Dataset and a Technique for Generalized Nuclear Segmentation for "
        "Computational Pathology}, author={Kumar, Neeraj and others}, journal={IEEE TMI}, year={2017}}"
    )

    def reset(self) -> None:
        """Remove all images."""
        self.metric = ObjectScores()

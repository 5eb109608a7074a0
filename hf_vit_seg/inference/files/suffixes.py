"""Suffixes of the files that prediction writes for an image."""

LABELS, OVERLAY, SCORES, REPORT = ".png", ".overlay.png", ".scores.png", ".json"
ENTROPY, TOP = ".entropy.png", ".top.npz"
OBJECTS = ".objects.csv"
VIDEO, FRAMES = ".overlay.mp4", ".frames"
GEOJSON, COCO = ".geojson", ".coco.json"
LABELS_TIFF, SCORES_TIFF, ENTROPY_TIFF = ".labels.tif", ".scores.tif", ".entropy.tif"
TIFFS = {"labels": LABELS_TIFF, "scores": SCORES_TIFF, "entropy": ENTROPY_TIFF}
SUFFIXES = (REPORT, LABELS, OVERLAY, OBJECTS, SCORES, ENTROPY, TOP, GEOJSON, COCO, *TIFFS.values(), VIDEO, FRAMES)

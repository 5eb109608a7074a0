"""From folders, lists, Hub datasets and COCO files to batches that a model trains on."""

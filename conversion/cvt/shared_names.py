"""Target names of both CvT sources."""

WEIGHTS = "{p:weight|bias}"
BATCH_NORM = "{p:weight|bias|running_mean|running_var|num_batches_tracked}"
STAGE = "stages.{stage}."
LAYER = STAGE + "layers.{layer}."

"""The run log, the metrics report, trackers and progress."""

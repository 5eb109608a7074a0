"""Settings of a converted model: config, variant, labels and preprocessing."""

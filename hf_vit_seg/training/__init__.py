"""Fine-tuning on accelerate: a recipe in, a trained and measured model out."""

"""Reading and writing Hugging Face checkpoints; the only place that knows foreign tensor names."""

"""Reading and writing Hugging Face checkpoints; the only unit that knows their tensor names."""

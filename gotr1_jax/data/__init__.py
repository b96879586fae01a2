"""Training data: files of captions and records, Grain pipelines, caches; no jax, no parameters."""

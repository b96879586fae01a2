"""Where training data comes from: sources, Grain pipelines, caches; no parameters, no jax."""

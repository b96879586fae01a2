"""Networks as Flax NNX modules, no files and no losses: `decoder` (Llama, Qwen2), `janus` (the
policy), `vq` (image tokens), `siglip`, `clip`, `qwen2_5_vl`; their sizes are in `config`."""

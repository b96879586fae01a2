"""Networks as Flax NNX modules: `decoder` (Llama, Qwen2), `janus` (the policy), `vq` (image
tokenizer), `siglip`, `clip`, `qwen_vl`; their sizes are in `config`."""

"""Tokenizers of Janus, Qwen2.5-VL and CLIP, with their chat formats; no arrays but numpy's."""

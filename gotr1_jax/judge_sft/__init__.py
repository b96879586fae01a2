"""Supervised training of a judge: Qwen2.5-VL on images, questions and answers."""

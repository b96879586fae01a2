"""CLIP in torch under open_clip's names: an oracle beside `transformers`, and its files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gotr1_jax.models.config import ClipConfig, ClipTowerConfig


class TorchBlock(nn.Module):
    """One of open_clip's residual blocks, under its names."""

    def __init__(self, sizes: ClipTowerConfig) -> None:
        super().__init__()
        D, F_ = sizes.width, sizes.mlp_size
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn = nn.MultiheadAttention(D, sizes.num_heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(D, F_), "c_proj": nn.Linear(F_, D)})

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class TorchTower(nn.Module):
    def __init__(self, sizes: ClipTowerConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TorchBlock(sizes) for _ in range(sizes.num_layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class TorchVisual(nn.Module):
    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__()
        D, tokens = cfg.vision.width, (cfg.image_size // cfg.patch_size) ** 2 + 1
        self.conv1 = nn.Conv2d(3, D, cfg.patch_size, cfg.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(D))
        self.positional_embedding = nn.Parameter(torch.randn(tokens, D))
        self.ln_pre, self.ln_post = nn.LayerNorm(D), nn.LayerNorm(D)
        self.transformer = TorchTower(cfg.vision)
        self.proj = nn.Parameter(torch.randn(D, cfg.embedding_size))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


class TorchClip(nn.Module):
    """CLIP under open_clip's names, from torch's own attention: an oracle beside transformers."""

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__()
        D = cfg.text.width
        self.visual = TorchVisual(cfg)
        self.transformer = TorchTower(cfg.text)
        self.token_embedding = nn.Embedding(cfg.vocab_size, D)
        self.positional_embedding = nn.Parameter(torch.randn(cfg.context_length, D))
        self.ln_final = nn.LayerNorm(D)
        self.text_projection = nn.Parameter(torch.randn(D, cfg.embedding_size))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        S = ids.shape[1]
        mask = torch.full((S, S), -torch.inf).triu(1)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding, mask)
        return self.ln_final(x)[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


def shake(model: nn.Module, seed: int = 0) -> Any:
    """Every parameter random, so that none is at a value which hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = (p.shape[-1] if p.ndim > 1 else 10) ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
            if name.endswith("weight") and p.ndim == 1:
                p.add_(1)
    return model.eval()


def torch_pixels(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def unit(x: torch.Tensor) -> np.ndarray:
    return F.normalize(x, dim=-1).numpy()


def hps_file(path: Path, model: nn.Module) -> Path:
    torch.save({"state_dict": model.state_dict()}, path)
    return path

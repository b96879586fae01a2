"""The image tokenizer against the reference's numbers and against `transformers`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gotr1_jax.models.config import VQConfig
from gotr1_jax.models.vq import VQModel

LEAF = {"scale": "weight", "kernel": "weight", "bias": "bias", "embedding": "embedding.weight"}


def fill(cfg: VQConfig, tensor_of) -> VQModel:
    """A tokenizer whose every weight is `tensor_of(released name)`, which must have its shape."""
    abstract = nnx.eval_shape(lambda: VQModel(cfg, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    filled = {}
    for path, param in nnx.to_flat_state(state):
        name = ".".join([*map(str, path[:-1]), LEAF[str(path[-1])]])
        value = np.asarray(tensor_of(name))
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        assert value.shape == param.shape, name
        filled[path] = param.replace(jnp.asarray(value))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


@pytest.fixture(scope="module")
def golden(shared: Path):
    folder = shared / "goldens"
    spec = importlib.util.spec_from_file_location("make_checkpoint", folder / "make_checkpoint.py")
    assert spec and spec.loader
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    listing = json.loads((folder / "janus_a.json").read_text())
    wanted = {
        name.removeprefix("gen_vision_model."): shape
        for name, (shape, kind) in listing["tensors"].items()
        if name.startswith("gen_vision_model.") and kind == "param"
    }
    used = set()

    def tensor_of(name: str) -> np.ndarray:
        used.add(name)
        return rule.tensor(listing["seed"], "gen_vision_model." + name, wanted[name])

    model = fill(VQConfig(), tensor_of)
    assert used == set(wanted)
    return model, np.load(folder / "janus_a.npz")


def test_encoding_and_ids_equal_the_reference(golden):
    model, arrays = golden
    graphdef, state = nnx.split(model)

    @jax.jit
    def encode(state, pixels):
        model = nnx.merge(graphdef, state)
        prequant = model.encode(pixels)
        return prequant, model.quantize(prequant).ids_Bhw, model.encode_ids(pixels)

    prequant, ids, flat_ids = encode(state, arrays["vq.pixels"].transpose(0, 2, 3, 1))
    expected = arrays["vq.prequant"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(prequant, expected, atol=2e-4)
    np.testing.assert_array_equal(ids, arrays["vq.encoded_ids"])
    np.testing.assert_array_equal(flat_ids, arrays["vq.encoded_ids"].reshape(1, -1))


def test_decoded_pixels_equal_the_reference(golden):
    model, arrays = golden
    graphdef, state = nnx.split(model)
    decode = jax.jit(lambda state, ids: nnx.merge(graphdef, state).decode_ids(ids, 8))
    pixels = decode(state, jnp.asarray(arrays["vq.decode_ids"], jnp.int32))
    expected = arrays["vq.decoded"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels, expected, atol=1e-3)


def _released_name(name: str, levels: int) -> str:
    """Name of a tensor of `transformers`' JanusVQVAE under the released names."""
    parts = name.split(".")
    if parts[1] == "mid":
        parts[2] = {"block_1": "0", "attn_1": "1", "block_2": "2"}[parts[2]]
    if parts[1] in ("down", "up"):
        parts[1] = "conv_blocks"
        if parts[3] == "block":
            parts[3] = "res"
    return ".".join(parts)


def test_decoder_equals_transformers_at_other_sizes():
    """Three levels, uneven multipliers, other group widths. Only decoding: the encode method of
    that class compares vectors that are not normalised."""
    torch = pytest.importorskip("torch")
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    torch.manual_seed(0)
    theirs = JanusVQVAE(
        JanusVQVAEConfig(
            embed_dim=4,
            num_embeddings=32,
            latent_channels=16,
            base_channels=32,
            channel_multiplier=[1, 2, 3],
            num_res_blocks=1,
            num_patches=4,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    tensors = {_released_name(n, 3): t.detach().numpy() for n, t in theirs.named_parameters()}
    cfg = VQConfig(32, 4, 32, 16, (1, 2, 3), (1, 2, 3), 1, 32)
    ours = fill(cfg, tensors.__getitem__)
    ids = np.random.default_rng(0).integers(0, 32, (2, 16))
    with torch.no_grad():
        expected = theirs.decode(torch.from_numpy(ids)).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours.decode_ids(jnp.asarray(ids), 4), expected, atol=2e-5)

    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        hidden = theirs.encoder(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
        expected = theirs.quant_conv(hidden).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours.encode(jnp.asarray(pixels)), expected, atol=2e-5)

"""Checkpoints in and out: released names and sizes, goldens, the port of transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny import assert_equal_trees
from tiny_checkpoints import TINY, tiny_states, write_tiny

from gotr1_jax.convert.checkpoint import load_checkpoint, save_checkpoint
from gotr1_jax.convert.config_json import config_to_json, parse_config
from gotr1_jax.convert.names import NAMING, UNUSED
from gotr1_jax.convert.open_checkpoint import PARTS, abstract_part
from gotr1_jax.convert.tree import checkpoint_tensors
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.models.config import JANUS_PRO_1B, JANUS_PRO_7B, JanusConfig

# Names and sizes of the released models -----------------------------------------------------


@pytest.mark.parametrize(("size", "config"), [("1b", JANUS_PRO_1B), ("7b", JANUS_PRO_7B)])
def test_released_names_and_shapes_without_a_gap(
    shared: Path, size: str, config: JanusConfig
) -> None:
    released = json.loads((shared / "goldens" / f"janus_pro_{size}_tensors.json").read_text())
    data = {
        "model_type": "multi_modality",
        "language_config": {"model_type": "llama", **released["language_config"]},
        "gen_vision_config": {"params": {"image_token_size": 16384, "n_embed": 8}},
        "vision_config": {"params": {"model_name": "siglip_large_patch16_384", "image_size": 384}},
    }
    assert parse_config(data, "config.json") == (config, "original")
    states = {part: nnx.split(abstract_part(part, config))[1] for part in PARTS}
    ours = {t.name: t.shape for t in checkpoint_tensors(states, NAMING["original"])}
    theirs = {
        name: tuple(entry[0] if isinstance(entry[0], list) else entry)
        for name, entry in released["tensors"].items()
        if not UNUSED.match(name)
    }
    assert ours == theirs
    assert len(released["tensors"]) - len(theirs) == 14


@pytest.mark.parametrize("config", [JANUS_PRO_1B, JANUS_PRO_7B, TINY])
def test_config_json_round_trip(config: JanusConfig) -> None:
    text = json.dumps(config_to_json(config, "bfloat16"))
    assert parse_config(json.loads(text), "config.json") == (config, "original")


def test_config_of_a_released_size_has_only_released_keys() -> None:
    data = config_to_json(JANUS_PRO_7B, "bfloat16")
    assert data["gen_vision_config"]["params"] == {"image_token_size": 16384, "n_embed": 8}
    assert set(data["vision_config"]["params"]) == {
        "image_size",
        "model_name",
        "select_feature",
        "select_layer",
    }


# The reference's numbers --------------------------------------------------------------------


def test_golden_numbers_of_every_part(janus_a: Path, shared: Path) -> None:
    golden = np.load(shared / "goldens" / "janus_a.npz")
    checkpoint = load_checkpoint(janus_a)
    assert len(checkpoint.skipped) == 14
    policy, vq = checkpoint.policy_module(), checkpoint.vq_module()
    text = policy.embed_text(jnp.asarray(golden["lm.input_ids"]))
    image = policy.embed_image(jnp.asarray(golden["lm.image_ids"]))
    np.testing.assert_allclose(image, golden["lm.image_embeds"], atol=2e-4)
    x = jnp.concatenate([text, image], axis=1)
    hidden = policy.hidden(x, jnp.arange(x.shape[1])[None])
    n = text.shape[1]
    np.testing.assert_allclose(
        policy.text_logits(hidden[:, :n]), golden["lm.text_logits"], atol=2e-4
    )
    # Position n - 1, the last of the text, predicts the first image token.
    np.testing.assert_allclose(
        policy.image_logits(hidden[:, n - 1 : -1]), golden["lm.image_logits"], atol=2e-4
    )
    pixels = vq.decode_ids(jnp.asarray(golden["vq.decode_ids"]), 8)
    np.testing.assert_allclose(
        np.asarray(pixels).transpose(0, 3, 1, 2), golden["vq.decoded"], atol=1e-3
    )
    ids = vq.encode_ids(jnp.asarray(golden["vq.pixels"]).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(np.asarray(ids).ravel(), golden["vq.encoded_ids"].ravel())


def test_pickled_shards_equal_safetensors(janus_a: Path, shared: Path, tmp_path: Path) -> None:
    script = shared / "goldens" / "make_checkpoint.py"
    out = tmp_path / "bin"
    subprocess.run([sys.executable, str(script), "janus_a", str(out), "--shards", "2"], check=True)
    assert_equal_trees(load_checkpoint(out).policy, load_checkpoint(janus_a).policy)


# Our own checkpoints ------------------------------------------------------------------------


def test_saved_and_loaded_states_are_equal_to_the_bit(tiny: Path) -> None:
    loaded = load_checkpoint(tiny, parts=PARTS)
    assert loaded.config == TINY
    states = tiny_states()
    for part in PARTS:
        assert_equal_trees(getattr(loaded, part), states[part])
    assert loaded.tokenizer.decode(loaded.tokenizer.encode_plan("red circle")) == "red circle"


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "ckpt", dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_states()["policy"])
    assert_equal_trees(load_checkpoint(path, dtype=jnp.bfloat16).policy, rounded)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
    assert_equal_trees(load_checkpoint(path).policy, wide)


def test_original_names_with_torch_layout(tiny: Path) -> None:
    stored = load_file(tiny / "model.safetensors")
    states = tiny_states()
    q = states["policy"]["decoder"]["layers"]["q"]["kernel"][...]
    name = "language_model.model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(stored[name], np.asarray(q[1]).T)
    block = states["understanding"]["tower"]["blocks"]
    fused = np.concatenate([np.asarray(block[n]["kernel"][0]).T for n in "qkv"])
    name = "vision_model.vision_tower.blocks.0.attn.qkv.weight"
    np.testing.assert_array_equal(stored[name], fused)
    conv = np.asarray(states["vq"]["encoder"]["conv_in"]["kernel"][...])
    name = "gen_vision_model.encoder.conv_in.weight"
    np.testing.assert_array_equal(stored[name], conv.transpose(3, 2, 0, 1))


def test_parts_may_be_left_out(tiny: Path, tmp_path: Path) -> None:
    states = tiny_states()
    path = save_checkpoint(
        tmp_path / "ckpt", TINY, states["policy"], states["vq"], None, tiny, "float32"
    )
    assert_equal_trees(load_checkpoint(path).policy, states["policy"])
    with pytest.raises(InputError, match="missing: aligner.layers.0.bias"):
        load_checkpoint(path, parts=PARTS)


def test_loading_onto_shards(tiny: Path) -> None:
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec

    def sharding(leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
        axes = [None] * (leaf.ndim - 1) + ["x" if leaf.shape[-1] % 2 == 0 else None]
        return jax.sharding.NamedSharding(mesh, spec(*axes))

    abstract = {part: nnx.split(abstract_part(part, TINY))[1] for part in PARTS}
    shardings = {part: jax.tree.map(sharding, state) for part, state in abstract.items()}
    split = load_checkpoint(tiny, parts=PARTS, shardings=shardings)
    whole = load_checkpoint(tiny, parts=PARTS)
    for part in PARTS:
        assert_equal_trees(getattr(split, part), getattr(whole, part))
    q = split.policy["decoder"]["layers"]["q"]["kernel"][...]
    assert {s.data.shape for s in q.addressable_shards} == {(2, 32, 16)}


def test_an_older_checkpoint_is_replaced_and_foreign_files_are_not(
    tiny: Path, tmp_path: Path
) -> None:
    path = write_tiny(tmp_path / "ckpt", seed=5)
    write_tiny(path, seed=0)
    assert_equal_trees(load_checkpoint(path).policy, load_checkpoint(tiny).policy)
    work = tmp_path / "work"
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_tiny(work)
    assert [f.name for f in work.iterdir()] == ["notes.txt"]


def test_a_full_disk_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    states = tiny_states()
    with pytest.raises(RunError, match="disk full"):
        save_checkpoint(tmp_path / "ckpt", TINY, states["policy"], None, None, tiny)
    assert list(tmp_path.iterdir()) == []


# The Hugging Face port ----------------------------------------------------------------------


def random_port() -> Any:
    """A small random Janus of transformers."""
    import torch
    from transformers import JanusConfig as PortConfig
    from transformers import JanusForConditionalGeneration

    torch.manual_seed(0)
    port = JanusForConditionalGeneration(
        PortConfig(
            text_config={
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 1440,
                "tie_word_embeddings": False,
            },
            vision_config={
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 16,
                "projection_dim": 32,
            },
            vq_config={
                "num_embeddings": 64,
                "base_channels": 32,
                "latent_channels": 16,
                "projection_dim": 32,
                "image_token_embed_dim": 32,
            },
            tie_word_embeddings=False,
        )
    ).eval()
    for parameter in port.parameters():  # defaults leave biases and norms at 0 and 1
        torch.nn.init.normal_(parameter, std=0.1)
    return port


def test_port_of_transformers(tiny: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    port = random_port()
    port.save_pretrained(tmp_path / "port")
    shutil.copy(tiny / "tokenizer.json", tmp_path / "port")
    loaded = load_checkpoint(tmp_path / "port", parts=PARTS)

    pixels = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    ids = np.arange(12).reshape(2, 6)
    image_ids = np.arange(8).reshape(2, 4) * 7
    torch_pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        features = port.model.get_image_features(torch_pixels)
        features = getattr(features, "pooler_output", features).numpy()
        hidden = port.model.language_model(torch.from_numpy(ids)).last_hidden_state
        text_logits = port.lm_head(hidden).numpy()
        image_logits = port.model.generation_head(hidden).numpy()
        embeds = port.prepare_embeddings_for_image_generation(torch.from_numpy(image_ids)).numpy()
        decoded = port.model.vqmodel.decode(torch.from_numpy(image_ids)).numpy()

    ours = np.asarray(loaded.understanding_module()(jnp.asarray(pixels)))
    np.testing.assert_allclose(ours, features.reshape(ours.shape), atol=1e-4)
    policy = loaded.policy_module()
    h = policy.hidden(policy.embed_text(jnp.asarray(ids)), jnp.arange(6)[None])
    np.testing.assert_allclose(policy.text_logits(h), text_logits, atol=1e-4)
    np.testing.assert_allclose(policy.image_logits(h), image_logits, atol=1e-4)
    np.testing.assert_allclose(policy.embed_image(jnp.asarray(image_ids)), embeds, atol=1e-4)
    image = np.asarray(loaded.vq_module().decode_ids(jnp.asarray(image_ids), 2))
    decoded = decoded.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(image, decoded, atol=1e-3)

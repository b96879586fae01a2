"""`gotr1 describe` against `transformers`: ids, pixels, logits and greedy answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tiny_checkpoints import TINY, tiny_states, write_tiny

from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.convert.names import NAMING
from gotr1_jax.convert.tree import checkpoint_tensors
from gotr1_jax.generate.describe import DescribeConfig, describe
from gotr1_jax.images import ImageSettings, open_image, preprocess, read_settings
from gotr1_jax.models.config import SiglipConfig
from gotr1_jax.sampler.answer import AnswerSampler
from gotr1_jax.sampler.config import AnswerConfig
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.tokenizers.janus import SPECIAL_STRINGS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIDE = 48
CONFIG = replace(
    TINY,
    siglip=SiglipConfig(
        image_size=SIDE, patch_size=16, width=16, mlp_size=64, num_layers=2, num_heads=2
    ),
)
QUESTION = "What is left of the red circle?"


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("answer") / "tiny", CONFIG)


@pytest.fixture(scope="module")
def port(ckpt: Path) -> Any:
    """Their model with the same weights, in float32."""
    d, vq, siglip = CONFIG.decoder, CONFIG.vq, CONFIG.siglip
    specials = load_checkpoint(ckpt).tokenizer.specials
    config = transformers.JanusConfig(
        text_config={
            "model_type": "llama", "vocab_size": d.vocab_size, "hidden_size": d.hidden_size,
            "intermediate_size": d.mlp_size, "num_hidden_layers": d.num_layers,
            "num_attention_heads": d.num_heads, "num_key_value_heads": d.num_kv_heads,
            "head_dim": d.head_dim, "rms_norm_eps": d.norm_eps, "rope_theta": d.rope_theta,
            "max_position_embeddings": 16384, "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": siglip.width, "num_hidden_layers": siglip.num_layers,
            "num_attention_heads": siglip.num_heads, "image_size": siglip.image_size,
            "patch_size": siglip.patch_size, "mlp_ratio": siglip.mlp_size / siglip.width,
            "projection_dim": d.hidden_size, "num_image_tokens": CONFIG.siglip.num_tokens,
        },
        vq_config={
            "embed_dim": vq.code_dim, "num_embeddings": vq.codebook_size,
            "latent_channels": vq.z_channels, "base_channels": 32, "channel_multiplier": [1, 1],
            "projection_dim": d.hidden_size, "image_token_embed_dim": d.hidden_size,
        },
        tie_word_embeddings=False,
        image_token_id=specials.image,
    )  # fmt: skip
    model = transformers.JanusForConditionalGeneration(config).eval()
    states = tiny_states(CONFIG)
    del states["vq"]
    ours = {
        t.name: torch.from_numpy(t.get().copy()) for t in checkpoint_tensors(states, NAMING["hf"])
    }
    loaded = model.load_state_dict(ours, strict=False)
    assert loaded.unexpected_keys == []
    assert all(".vqmodel." in name for name in loaded.missing_keys), loaded.missing_keys
    return model


def _image(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def _their_processor(settings: ImageSettings) -> Any:
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    return JanusImageProcessorPil(
        size={"height": settings.size, "width": settings.size},
        min_size=settings.min_size,
        image_mean=list(settings.mean),
        image_std=list(settings.std),
    )


def _their_pixels(path: Path, settings: ImageSettings) -> np.ndarray:
    image = transformers.image_utils.load_image(str(path))
    pixels = _their_processor(settings)(image, return_tensors="np")["pixel_values"]
    return np.asarray(pixels)[0].transpose(1, 2, 0)


@pytest.mark.parametrize(
    "settings",
    [
        ImageSettings(),
        ImageSettings(SIDE, 14, (0.48, 0.457, 0.408), (0.27, 0.26, 0.28)),
        ImageSettings(64, 20),
    ],
)
@pytest.mark.parametrize(
    "size", [(500, 333), (333, 500), (1, 5000), (5000, 1), (1, 1), (384, 384), (97, 13), (700, 701)]
)
def test_pixels(tmp_path: Path, settings: ImageSettings, size: tuple[int, int]) -> None:
    path = _image(tmp_path / "a.png", size)
    ours = preprocess(open_image(path), settings)
    assert ours.dtype == np.float32 and ours.shape == (settings.size, settings.size, 3)
    np.testing.assert_array_equal(ours, _their_pixels(path, settings))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16", "exif"])
def test_pixels_of_every_mode(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    theirs = path
    if mode == "I;16":
        # Theirs clips at 255, where nearly all of such an image is: scaled by us, then compared.
        deep = rng.integers(0, 2**16, (40, 70), np.uint16)
        Image.fromarray(deep).save(path)
        theirs = tmp_path / "8 bits.png"
        Image.fromarray(np.round(deep / 257).astype(np.uint8)).save(theirs)
    else:
        image = Image.fromarray(rng.integers(0, 256, (40, 70, 4), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        if mode == "exif":
            image.convert("RGB").save(path, exif=exif)
        else:
            image.convert(mode).save(path)
    raw_image = open_image(path)
    assert raw_image.size == ((40, 70) if mode == "exif" else (70, 40))
    settings = ImageSettings()
    np.testing.assert_array_equal(preprocess(raw_image, settings), _their_pixels(theirs, settings))


@pytest.mark.parametrize("images", [1, 2])
def test_prompt_ids(ckpt: Path, images: int) -> None:
    """Their processor and chat rules on the same tokenizer."""
    from transformers import JanusProcessor, PreTrainedTokenizerFast

    names = SPECIAL_STRINGS
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(ckpt / "tokenizer.json"),
        extra_special_tokens={
            "image_token": names["image"], "boi_token": names["boi"], "eoi_token": names["eoi"],
        },
    )  # fmt: skip
    fast.bos_token = names["bos"]
    expand = SimpleNamespace(
        image_start_token=names["boi"], image_token=names["image"],
        image_end_token=names["eoi"], num_image_tokens=9,
    )  # fmt: skip
    text = "<|User|>: " + "\n\n".join([names["image"]] * images)
    text += f"\n{QUESTION}\n\n<|Assistant|>:"
    theirs = text.replace(names["image"], JanusProcessor.replace_image_token(expand, {}, 0))
    expected = fast(names["bos"] + theirs, add_special_tokens=False)["input_ids"]
    ours = load_checkpoint(ckpt).tokenizer.encode_question(f" {QUESTION}\n", images, 9)
    assert ours == expected


@pytest.mark.parametrize("images", [1, 2])
def test_logits_and_answer(ckpt: Path, port: Any, tmp_path: Path, images: int) -> None:
    paths = [_image(tmp_path / f"{i}.png", (60 + 30 * i, 50), seed=i) for i in range(images)]
    checkpoint = load_checkpoint(ckpt, parts=("policy", "understanding"))
    tokenizer = checkpoint.tokenizer
    settings = read_settings(ckpt, SIDE)
    ids = tokenizer.encode_question(QUESTION, images, CONFIG.siglip.num_tokens)
    theirs = {
        "input_ids": torch.tensor([ids]),
        "pixel_values": torch.from_numpy(
            np.stack([_their_pixels(p, settings).transpose(2, 0, 1) for p in paths])
        ),
    }
    with torch.no_grad():
        expected = port(**theirs).logits[0].numpy()
        # Without an end, so that all of the answer is compared.
        chosen = port.generate(
            **theirs, attention_mask=torch.ones_like(theirs["input_ids"]), do_sample=False,
            max_new_tokens=40, eos_token_id=None, pad_token_id=tokenizer.specials.pad,
            bos_token_id=tokenizer.specials.bos,
        )[0, len(ids) :].tolist()  # fmt: skip

    policy, policy_state = nnx.split(checkpoint.policy_module())
    tower, tower_state = nnx.split(checkpoint.understanding_module())
    specials = replace(tokenizer.specials, eos=-1)
    answerer = AnswerSampler(policy, tower, CONFIG, specials, AnswerConfig(40))
    params = answerer.prepare(policy_state)
    padded = np.full((1, len(ids) + 5), specials.pad)
    padded[0, : len(ids)] = ids
    prompts = PromptBatch(jnp.asarray(padded), jnp.asarray([len(ids)]))
    pixels = jnp.asarray(np.stack([preprocess(open_image(p), settings) for p in paths]))
    logits = np.asarray(answerer.prompt_logits(params, tower_state, prompts, pixels))
    np.testing.assert_allclose(logits[0, : len(ids)], expected, atol=2e-4)
    keys = jax.random.split(jax.random.key(0), 1)
    answers = answerer(params, tower_state, prompts, pixels, keys)
    assert np.asarray(answers.ids_PT)[0].tolist() == chosen
    assert int(answers.len_P[0]) == 40 and not bool(answers.ended_P[0])

    # The command's own path, where EOS ends.
    result = describe(DescribeConfig(tuple(paths), QUESTION, str(ckpt), max_tokens=40))
    answer = result.answer
    eos = tokenizer.specials.eos
    cut = chosen[: chosen.index(eos) + 1] if eos in chosen else chosen
    assert list(answer.ids) == cut and answer.ended == (eos in chosen)
    assert result.prompt_tokens == len(ids)


def test_images_change_the_answer(ckpt: Path, port: Any, tmp_path: Path) -> None:
    """Logits differ by the image: the comparison above is not one of text alone."""
    checkpoint = load_checkpoint(ckpt, parts=("understanding",))
    see = checkpoint.understanding_module()
    a, b = (
        see(jnp.asarray(preprocess(open_image(_image(tmp_path / f"{s}.png", (48, 48), s)),
                                   ImageSettings(SIDE)))[None])
        for s in (0, 1)
    )  # fmt: skip
    assert float(jnp.abs(a - b).max()) > 0.1
    with torch.no_grad():
        pixels = _their_pixels(tmp_path / "0.png", ImageSettings(SIDE)).transpose(2, 0, 1)
        expected = port.model.get_image_features(torch.from_numpy(pixels.copy())[None])
    np.testing.assert_allclose(a, expected.pooler_output.numpy(), atol=2e-4)

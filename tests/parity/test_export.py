"""Checkpoints between forms: exact round trips, and what `transformers` makes of an export."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoints import PORTABLE, TINY, add_unused, tiny_states, write_tiny

from gotr1_jax.convert import command as convert_checkpoint
from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.convert.config_json import config_to_json
from gotr1_jax.convert.hf_json import config_to_hf_json
from gotr1_jax.convert.names import NAMING, UNUSED, Format
from gotr1_jax.convert.open_checkpoint import PARTS, OpenCheckpoint, open_checkpoint
from gotr1_jax.convert.reader import Tensor, open_tensors
from gotr1_jax.convert.rules import expected_tensors
from gotr1_jax.convert.translate import _with_unused, translate_tensors
from gotr1_jax.convert.tree import checkpoint_tensors
from gotr1_jax.convert.writer import write_safetensors
from gotr1_jax.errors import InputError
from gotr1_jax.grpo import export as export_checkpoint
from gotr1_jax.models.config import JANUS_PRO_1B, JANUS_PRO_7B, JanusConfig
from gotr1_jax.tokenizers.janus import SpecialIds, TextTokenizer, chat_parts

torch = pytest.importorskip("torch")
SPECIALS = SpecialIds(bos=0, eos=1, pad=2, boi=3, eoi=4, image=5)


def stored(path: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    """Every tensor of a directory: shape, dtype, bytes."""
    return {n: (t.shape, t.dtype, t.read().tobytes()) for n, t in open_tensors(path).items()}


def gotr1(command: Any, *arguments: Any) -> None:
    """A command without the whole command line, which would set devices up anew."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def convert(source: Path, target: Path, *more: Any) -> Path:
    gotr1(convert_checkpoint, "--from", source, "--to", target, *more)
    return target


def export(source: Path, target: Path, form: str, *more: Any) -> Path:
    gotr1(export_checkpoint, "--ckpt", source, "--to", target, "--format", form, *more)
    return target


# How it wants to be sampled, and a key of another tool.
SAMPLED = {"guidance_scale": 3.0, "image_temperature": 0.8, "template": "Paint {caption}", "x": [1]}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with everything that a released one holds, norms in float32."""
    path = write_tiny(tmp_path_factory.mktemp("released") / "ckpt", PORTABLE, dtype="bfloat16")
    add_unused(path)
    (path / "generation_config.json").write_text(json.dumps(SAMPLED))
    return path


@pytest.fixture(scope="module")
def port(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(released, tmp_path_factory.mktemp("port") / "port", "hf")


# Round trips --------------------------------------------------------------------------------


def test_original_to_ours_to_original_is_exact(released: Path, tmp_path: Path) -> None:
    ours = convert(released, tmp_path / "ours")
    back = export(ours, tmp_path / "back", "original", "--shard-size", "20KB")
    assert stored(ours) == stored(released)
    assert stored(back) == stored(released)
    assert len(list(back.glob("model-*.safetensors"))) > 2
    for file in released.iterdir():
        if file.suffix == ".json":
            assert json.loads((back / file.name).read_text()) == json.loads(file.read_text())


def test_port_to_ours_to_port_is_exact(released: Path, port: Path, tmp_path: Path) -> None:
    ours = convert(port, tmp_path / "ours")
    assert stored(export(ours, tmp_path / "back", "hf")) == stored(port)
    # The port lacks what nothing uses: the rest is the original's.
    used = {n: value for n, value in stored(released).items() if not UNUSED.match(n)}
    assert stored(ours) == used
    full = stored(export(port, tmp_path / "full", "original"))
    assert set(full) == set(stored(released))
    assert {n: value[:2] for n, value in full.items()} == {
        n: value[:2] for n, value in stored(released).items()
    }
    assert all(not any(full[n][2]) for n in set(full) - set(used))
    assert {n: full[n] for n in used} == used
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads(
            (port / name).read_text()
        )


def test_how_it_wants_to_be_sampled_goes_along(released: Path, port: Path, tmp_path: Path) -> None:
    in_port = json.loads((port / "generation_config.json").read_text())
    ids = {"bos_token_id", "eos_token_id", "pad_token_id", "generation_kwargs"}
    assert in_port.keys() == ids | SAMPLED.keys()
    assert {key: in_port[key] for key in SAMPLED} == SAMPLED
    back = json.loads((convert(port, tmp_path / "back") / "generation_config.json").read_text())
    assert back == {key: v for key, v in in_port.items() if key != "generation_kwargs"}
    plain = tmp_path / "plain"
    shutil.copytree(released, plain)
    (plain / "generation_config.json").unlink()
    made = export(plain, tmp_path / "made", "hf") / "generation_config.json"
    assert json.loads(made.read_text()).keys() == ids | {"guidance_scale"}
    assert json.loads(made.read_text())["guidance_scale"] == 5
    assert not (convert(plain, tmp_path / "ours") / "generation_config.json").exists()


def test_both_ways_to_the_port_are_equal(released: Path, port: Path, tmp_path: Path) -> None:
    ours = convert(released, tmp_path / "ours")
    assert stored(export(ours, tmp_path / "hf", "hf")) == stored(port)
    assert stored(export(port, tmp_path / "hf2", "hf")) == stored(port)


def test_pickled_shards_give_the_same(released: Path, tmp_path: Path) -> None:
    shutil.copytree(released, tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    from safetensors.torch import load_file

    state = load_file(released / "model.safetensors")
    names = sorted(state)
    files = {n: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, n in enumerate(names)}
    for file in set(files.values()):
        torch.save({n: state[n] for n in names if files[n] == file}, tmp_path / "bin" / file)
    index = json.dumps({"metadata": {}, "weight_map": files})
    (tmp_path / "bin" / "pytorch_model.bin.index.json").write_text(index)
    ours = convert(tmp_path / "bin", tmp_path / "ours")
    assert stored(ours) == stored(released)
    assert not list(ours.glob("*.bin*"))


def test_every_tensor_keeps_its_own_dtype_unless_told(released: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(released, mixed)
    tensors = open_tensors(released)
    kinds = {n: "F32" if "norm" in n else "F16" if "gen_head" in n else "BF16" for n in tensors}
    from gotr1_jax.convert.writer import OutTensor

    out = [OutTensor(n, t.shape, t.read, kinds[n]) for n, t in sorted(tensors.items())]
    write_safetensors(mixed / "model.safetensors", out)
    assert stored(export(mixed, tmp_path / "same", "original")) == stored(mixed)
    hf = export(mixed, tmp_path / "hf", "hf")
    assert {t.dtype for t in open_tensors(hf).values()} == {"F32", "F16", "BF16"}
    wide = convert(mixed, tmp_path / "wide", "--dtype", "float32")
    assert {t.dtype for t in open_tensors(wide).values()} == {"F32"}
    assert json.loads((wide / "config.json").read_text())["torch_dtype"] == "float32"
    narrow = convert(wide, tmp_path / "narrow", "--dtype", "bfloat16")
    # All of its values were bfloat16 numbers from the start.
    assert stored(narrow) == stored(released)


def test_gotr1_vocabulary_is_carried_without_growing(port: Path, tmp_path: Path) -> None:
    ours = convert(port, tmp_path / "ours")
    before = json.loads((port / "tokenizer.json").read_text())
    assert json.loads((ours / "tokenizer.json").read_text()) == before
    loaded = load_checkpoint(ours, parts=("policy",))
    assert loaded.config == PORTABLE
    text = "<|obj_start|>red circle<|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|>"
    ids = loaded.tokenizer.encode_plan(text)
    added = {t["content"]: t["id"] for t in before["added_tokens"]}
    assert ids[0] == added["<|obj_start|>"] and ids[-1] == added["<|box_end|>"]
    assert loaded.tokenizer.decode(ids) == text


# Names of the released sizes ----------------------------------------------------------------


def fake_opened(config: JanusConfig, form: Format) -> OpenCheckpoint:
    """An opened checkpoint of any size, without values."""

    def refuse(*_: object) -> np.ndarray:
        raise AssertionError("nothing may be read")

    empty = OpenCheckpoint(Path("fake"), {}, config, form, {}, PARTS, ())
    names = expected_tensors(empty.leaves, NAMING[form])
    tensors = {n: Tensor(n, s, "BF16", Path("fake"), refuse) for n, s in names.items()}
    return replace(empty, tensors=tensors)


@pytest.mark.parametrize(("size", "config"), [("1b", JANUS_PRO_1B), ("7b", JANUS_PRO_7B)])
def test_released_names_and_shapes_both_ways(shared: Path, size: str, config: JanusConfig) -> None:
    from transformers import JanusConfig as PortConfig
    from transformers import JanusForConditionalGeneration

    data = json.loads((shared / "goldens" / f"janus_pro_{size}_tensors.json").read_text())
    released = {name: tuple(shape) for name, shape in data["tensors"].items()}
    with torch.device("meta"):
        model = JanusForConditionalGeneration(
            PortConfig.from_dict(config_to_hf_json(config, SPECIALS, 16384, "bfloat16"))
        )
    port = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    out = translate_tensors(fake_opened(config, "original"), "hf", None, {})
    assert {t.name: t.shape for t in out} == port
    opened = fake_opened(config, "hf")
    back = translate_tensors(opened, "original", None, {})
    used = {n: s for n, s in released.items() if not UNUSED.match(n)}
    assert {t.name: t.shape for t in back} == used
    full, _, added = _with_unused(back, opened, "original", None, whole=True)
    assert {t.name: t.shape for t in full} == released and len(added) == 14
    assert {t.dtype for t in full} == {"BF16"}


# What transformers makes of it --------------------------------------------------------------


def test_transformers_gives_the_same_numbers(released: Path, port: Path) -> None:
    from transformers import JanusForConditionalGeneration

    model = JanusForConditionalGeneration.from_pretrained(port, dtype=torch.float32).eval()
    ours = load_checkpoint(released, parts=PARTS)
    ids = np.random.default_rng(0).integers(0, 400, (2, 7))
    pixels = np.random.default_rng(1).standard_normal((2, 16, 16, 3), np.float32)
    image_ids = np.arange(128).reshape(2, 64) % 64
    with torch.no_grad():
        hidden = model.model.language_model(torch.from_numpy(ids)).last_hidden_state
        text_logits = model.lm_head(hidden).numpy()
        image_logits = model.model.generation_head(hidden).numpy()
        decoded = model.model.vqmodel.decode(torch.from_numpy(image_ids)).numpy()
        torch_pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        seen = model.model.get_image_features(torch_pixels)
        seen = getattr(seen, "pooler_output", seen).numpy()
    policy = ours.policy_module()
    h = policy.hidden(policy.embed_text(jnp.asarray(ids)), jnp.arange(7)[None])
    np.testing.assert_allclose(policy.text_logits(h), text_logits, atol=1e-4)
    np.testing.assert_allclose(policy.image_logits(h), image_logits, atol=1e-4)
    image = np.asarray(ours.vq_module().decode_ids(jnp.asarray(image_ids), 8))
    decoded = decoded.reshape(2, 3, 16, 16).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(image, decoded, atol=1e-3)
    features = np.asarray(ours.understanding_module()(jnp.asarray(pixels)))
    np.testing.assert_allclose(features, seen.reshape(features.shape), atol=1e-4)
    # Not tied: the last layer is the stored one, not the embedding.
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_transformers_reads_the_files_around_the_weights(released: Path, port: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    ours = load_checkpoint(released, parts=()).tokenizer
    specials = ours.specials
    config = json.loads((port / "config.json").read_text())
    assert config["image_token_id"] == specials.image
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
    generation = GenerationConfig.from_pretrained(port)
    assert generation.bos_token_id == specials.bos and generation.pad_token_id == specials.pad
    assert generation.generation_kwargs == {"boi_token_id": specials.boi}
    assert (generation.guidance_scale, generation.template) == (3.0, "Paint {caption}")
    tokenizer = AutoTokenizer.from_pretrained(port)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    text = "a red circle left of a blue square"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == ours.encode_plan(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.boi_token == "<begin_of_image>" and tokenizer.eoi_token == "<end_of_image>"
    assert tokenizer.image_token_id == specials.image
    images = JanusImageProcessorPil.from_pretrained(port)
    assert (images.size["height"], list(images.image_mean)) == (128, [0.5, 0.5, 0.5])


def messages(question: str, images: int, system: str) -> list[dict[str, Any]]:
    parts = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    first = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*first, {"role": "user", "content": parts}]


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("system", ["", " You see images. "])
def test_the_port_has_a_chat_template(port: Path, images: int, system: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(port)
    asked = messages(" Is there a red circle?\n", images, system)
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text == "".join(
        part for part, _ in chat_parts(" Is there a red circle?", images, system)
    )
    # As ids, BOS stands in front once, by the tokenizer.
    ours = TextTokenizer.from_dir(port)
    ids = tokenizer(text).input_ids
    assert ids == ours.encode_question("Is there a red circle?", 0, 0, system) or images
    assert ids[0] == ours.specials.bos and ids.count(ours.specials.bos) == 1
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    line = tokenizer.apply_chat_template(answered, tokenize=False)
    assert line == text + " yes"
    again = [*answered, {"role": "user", "content": "And blue?"}]
    line = tokenizer.apply_chat_template(again, tokenize=False, add_generation_prompt=True)
    assert line == f"{text} yes<｜end▁of▁sentence｜><|User|>: And blue?\n\n<|Assistant|>:"


def test_a_chat_template_of_the_source_is_kept(released: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(released, own)
    settings = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{1}}"}))
    assert (export(own, tmp_path / "a", "hf") / "chat_template.jinja").read_text() == "{{1}}"
    (own / "chat_template.jinja").write_text("{{2}}")
    first = export(own, tmp_path / "b", "hf")
    assert (first / "chat_template.jinja").read_text() == "{{2}}"
    (first / "chat_template.jinja").unlink()
    tokenizer = json.loads((own / "tokenizer.json").read_text())
    (first / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    settings = json.loads((first / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (first / "tokenizer_config.json").write_text(json.dumps(settings))
    # Where the tokenizer does not write BOS, the template does.
    last = (export(first, tmp_path / "c", "hf") / "chat_template.jinja").read_text()
    assert "<｜begin▁of▁sentence｜>" in last


def test_sizes_that_the_port_cannot_say_are_named(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "ckpt", TINY)
    with pytest.raises(InputError, match=r"norm_groups") as error:
        export(path, tmp_path / "out", "hf")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_second_config_opens_as_the_first(released: Path, port: Path) -> None:
    one, two = open_checkpoint(released, PARTS), open_checkpoint(port, PARTS)
    assert (one.config, one.form) == (PORTABLE, "original")
    assert (two.config, two.form) == (PORTABLE, "hf")
    assert json.loads(json.dumps(config_to_json(two.config, "bfloat16"))) == dict(one.data)


def test_loading_the_port_gives_the_same_arrays(released: Path, port: Path) -> None:
    one, two = load_checkpoint(released, parts=PARTS), load_checkpoint(port, parts=PARTS)
    for part in PARTS:
        ours = checkpoint_tensors({part: getattr(one, part)}, NAMING["original"])
        theirs = checkpoint_tensors({part: getattr(two, part)}, NAMING["original"])
        for a, b in zip(ours, theirs, strict=True):
            assert a.name == b.name
            np.testing.assert_array_equal(a.get(), b.get())
    first = next(iter(checkpoint_tensors({"vq": tiny_states(PORTABLE)["vq"]}, NAMING["hf"])))
    assert first.name.startswith("model.vqmodel.")

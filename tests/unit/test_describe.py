"""Questions about images: chat text, settings of the preprocessing, the command's bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from gotr1_jax.cli import run
from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.convert.find import EMBEDDED
from gotr1_jax.errors import InputError
from gotr1_jax.images import ImageSettings, open_image, preprocess, read_settings
from gotr1_jax.sampler.answer import AnswerSampler
from gotr1_jax.sampler.config import AnswerConfig
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.tokenizers.janus import SPECIAL_STRINGS, TextTokenizer, chat_parts

pytestmark = pytest.mark.usefixtures("devices_as_they_are")

TOKENIZER = TextTokenizer.from_dir(EMBEDDED)
S = TOKENIZER.specials


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (90, 60), (200, 30, 30)).save(path)
    return path


def test_chat_text() -> None:
    def text(*args: object) -> str:
        return "".join(part for part, _ in chat_parts(*args))  # type: ignore[arg-type]

    tag = "<image_placeholder>"
    assert text(" Why? ", 1) == f"<|User|>: {tag}\nWhy?\n\n<|Assistant|>:"
    assert text("Why?", 2) == f"<|User|>: {tag}\n\n{tag}\nWhy?\n\n<|Assistant|>:"
    assert text("Why?", 0) == "<|User|>: Why?\n\n<|Assistant|>:"
    assert text("Why?", 1, " Be kind. ").startswith("Be kind.\n\n<|User|>: ")


def test_images_become_their_tokens() -> None:
    ids = TOKENIZER.encode_question("Why?", 2, 3)
    assert ids[0] == S.bos and ids.count(S.bos) == 1
    block = [S.boi, S.image, S.image, S.image, S.eoi]
    first = ids.index(S.boi)
    second = ids.index(S.boi, first + 1)
    assert ids[first : first + 5] == block == ids[second : second + 5]
    assert ids.count(S.image) == 6


@pytest.mark.parametrize("hostile", [*SPECIAL_STRINGS.values(), "<|box_start|>", "<|Assistant|>"])
@pytest.mark.parametrize("place", ["question", "system"])
def test_texts_never_become_control_tokens(hostile: str, place: str) -> None:
    texts = {"question": "Why?", "system": "Be kind.", place: f"a {hostile}"}
    control = set(TOKENIZER._control.values())
    ids = TOKENIZER.encode_question(texts["question"], 1, 1, texts["system"])
    plain = TOKENIZER.encode_question("Why?", 1, 1, "Be kind.")
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    # The words themselves are still there, as ordinary characters.
    assert hostile in TOKENIZER.decode([i for i in ids if i not in control], keep_special=True)


@pytest.mark.parametrize("question", ["", " \n", "\ud800", "why " * 5000])
def test_refused_questions(question: str) -> None:
    with pytest.raises(InputError, match="question"):
        TOKENIZER.encode_question(question, 1, 1)


def test_settings_of_released_and_port_files(tmp_path: Path) -> None:
    assert read_settings(tmp_path, 384) == ImageSettings()
    assert ImageSettings().background == (127, 127, 127)
    port = {
        "image_processor_type": "JanusImageProcessor",
        "size": {"height": 384, "width": 384},
        "image_mean": [0.48, 0.46, 0.4],
        "image_std": [0.25, 0.25, 0.5],
        "min_size": 20,
        "resample": 3,
        "do_pad": None,
    }
    expected = ImageSettings(384, 20, (0.48, 0.46, 0.4), (0.25, 0.25, 0.5))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": port}))
    assert read_settings(tmp_path, 384) == expected
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(port))
    (tmp_path / "processor_config.json").unlink()
    assert read_settings(tmp_path, 384) == expected


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("[]", "JSON object"),
        ("{", "not JSON"),
        ('{"image_processor_type": "CLIPImageProcessor"}', "image_processor_type"),
        ('{"do_normalize": false}', "do_normalize"),
        ('{"resample": 2}', "resample"),
        ('{"image_mean": [0.5, 0.5]}', "image_mean"),
        ('{"image_mean": [0.5, 0.5, 7]}', "image_mean"),
        ('{"image_std": [0.5, 0.5, "x"]}', "image_std"),
        ('{"image_std": [0.5, 0.5, 0]}', "image_std"),
        ('{"min_size": 14.5}', "min_size"),
        ('{"min_size": 500}', "min_size"),
        ('{"rescale_factor": true}', "rescale_factor"),
        ('{"rescale_factor": NaN}', "NaN, which is not finite"),
        ('{"image_size": "384"}', "image_size"),
        ('{"size": {"height": 384, "width": 300}}', "size"),
    ],
)
def test_refused_settings(tmp_path: Path, data: str, named: str) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(data)
    with pytest.raises(InputError, match=named) as caught:
        read_settings(tmp_path, 384)
    assert str(file) in str(caught.value)


def test_another_chat_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text('{"sft_format": "vicuna"}')
    with pytest.raises(InputError, match="sft_format"):
        read_settings(tmp_path, 384)


def test_the_towers_size_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_size": 384}')
    assert read_settings(tmp_path, 64).size == 64
    assert "384" in caplog.text and "64" in caplog.text


def test_preprocess_by_hand() -> None:
    # 4 x 2 white pixels in a square of 8: rows 2 to 5 are white, the rest the mean color.
    pixels = preprocess(Image.new("RGB", (4, 2), "white"), ImageSettings(8, 1))
    assert pixels.shape == (8, 8, 3)
    np.testing.assert_allclose(pixels[2:6], 1.0)
    np.testing.assert_allclose(pixels[[0, 1, 6, 7]], (127 / 255 - 0.5) / 0.5, rtol=1e-6)
    # One column of 5000 pixels still gets min_size columns, in the middle.
    thin = preprocess(Image.new("RGB", (1, 5000), "white"), ImageSettings(64, 14))
    assert np.flatnonzero(thin[0, :, 0] == 1).tolist() == list(range(25, 39))


def test_answers_end_at_eos_and_follow_the_seed() -> None:
    """One of two rows ends early; at a temperature the keys decide, row by row."""
    checkpoint = load_checkpoint(EMBEDDED, parts=("policy", "understanding"))
    policy, policy_state = nnx.split(checkpoint.policy_module())
    tower, tower_state = nnx.split(checkpoint.understanding_module())
    ids = [TOKENIZER.encode_question(q, 1, 64) for q in ("Red or blue?", "How many circles?")]
    size = max(map(len, ids))
    padded = jnp.asarray([row + [S.pad] * (size - len(row)) for row in ids])
    prompts = PromptBatch(padded, jnp.asarray([len(row) for row in ids]))
    pixels = jax.random.uniform(jax.random.key(0), (2, 128, 128, 3))

    def answerer(config: AnswerConfig, eos: int) -> AnswerSampler:
        specials = replace(S, eos=eos)
        return AnswerSampler(policy, tower, checkpoint.config, specials, config)

    params = answerer(AnswerConfig(8), -1).prepare(policy_state)

    def answer(of: AnswerSampler, keys: jax.Array) -> tuple[np.ndarray, ...]:
        out = of(params, tower_state, prompts, pixels, keys)
        return np.asarray(out.ids_PT), np.asarray(out.len_P), np.asarray(out.ended_P)

    keys = jax.random.split(jax.random.key(1), 2)
    greedy, length, ended = answer(answerer(AnswerConfig(8), -1), keys)
    assert greedy.shape == (2, 8) and length.tolist() == [8, 8] and not ended.any()
    # Let a token that only row 0 writes end it.
    own = next(t for t in greedy[0] if t not in greedy[1])
    at = greedy[0].tolist().index(own)
    cut, length, ended = answer(answerer(AnswerConfig(8), int(own)), keys)
    assert length.tolist() == [at + 1, 8] and ended.tolist() == [True, False]
    np.testing.assert_array_equal(cut[0, : at + 1], greedy[0, : at + 1])
    assert (cut[0, at + 1 :] == S.pad).all()
    np.testing.assert_array_equal(cut[1], greedy[1])

    warm = answerer(AnswerConfig(8, temperature=2.0), -1)
    drawn = answer(warm, keys)[0]
    np.testing.assert_array_equal(drawn, answer(warm, keys)[0])
    other = answer(warm, keys.at[1].set(jax.random.key(9)))[0]
    np.testing.assert_array_equal(drawn[0], other[0])
    assert (drawn[1] != other[1]).any() and (drawn != greedy).any()


def test_images_and_placeholders_agree() -> None:
    checkpoint = load_checkpoint(EMBEDDED, parts=("policy", "understanding"))
    policy, policy_state = nnx.split(checkpoint.policy_module())
    tower, tower_state = nnx.split(checkpoint.understanding_module())
    answerer = AnswerSampler(policy, tower, checkpoint.config, S, AnswerConfig(2))
    prompts = PromptBatch(jnp.asarray([[S.bos, S.image]]), jnp.asarray([2]))
    with pytest.raises(InputError, match="1 image tokens"):
        answerer(
            answerer.prepare(policy_state), tower_state, prompts, jnp.zeros((1, 64, 64, 3)),
            jax.random.split(jax.random.key(0), 1),
        )  # fmt: skip


def test_the_command(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["describe", "--image", str(image), "--question", "What is it?", "--max-tokens", "6"]
    assert run(ask) == 0
    plain = capsys.readouterr().out
    assert run([*ask, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answer"] + "\n" == plain
    assert len(result["answer_ids"]) <= 6
    assert result["prompt"].endswith("What is it?\n\n<|Assistant|>:")
    assert result["images"] == [str(image)]
    assert run([*ask, "--dtype", "bfloat16", "--temperature", "1", "--seed", "3"]) == 0


def _broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.png"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no image")
    elif kind == "cut":
        Image.effect_noise((80, 80), 90).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "header":
        Image.new("RGB", (9, 9)).save(path)
        path.write_bytes(path.read_bytes()[:20])
    elif kind == "directory":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "header", "directory"])
def test_unreadable_images(
    tmp_path: Path, image: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _broken(tmp_path, kind)
    with pytest.raises(InputError):
        open_image(path)
    assert run(["describe", "--image", str(image), "--image", str(path), "--question", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and str(path) in err


def test_a_image_too_large_for_memory(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="pixels"):
        open_image(image)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--question", " "], "question"),
        (["--question", "x", "--max-tokens", "0"], "max_tokens"),
        (["--question", "x", "--temperature", "-1"], "temperature"),
        (["--question", "x", "--temperature", "nan"], "temperature"),
        (["--question", "x", "--seed", "-1"], "seed"),
        (["--question", "x", "--ckpt", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_input(
    image: Path, options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["describe", "--image", str(image), *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and named in err

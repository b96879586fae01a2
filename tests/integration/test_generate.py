"""`gotr1 generate`: the golden image, files of captions, batches, bad input."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_checkpoints import TINY, write_tiny

from gotr1_jax.convert.find import EMBEDDED, find_checkpoint
from gotr1_jax.errors import InputError
from gotr1_jax.generate import command as generate
from gotr1_jax.generate.batches import BatchSizes
from gotr1_jax.generate.config import GenerateConfig
from gotr1_jax.generate.generator import ImageGenerator
from gotr1_jax.sampler.sampler import row_keys, sample_keys

pytestmark = pytest.mark.usefixtures("compiled_programs")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "ckpt")


def gotr1(*words: str | Path) -> None:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    generate.run(parser.parse_args([str(word) for word in words]))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_golden_image(janus_a: Path, shared: Path, tmp_path: Path) -> None:
    golden = json.loads((shared / "goldens" / "janus_a_generate.json").read_text())
    gotr1(
        "--ckpt", janus_a, "--prompt", golden["caption"], "--out", tmp_path / "out",
        "--greedy", "--cfg", "5", "--max-plan-tokens", "32",
    )  # fmt: skip
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    (sample,) = result["samples"]
    assert result["sft_prompt"] == golden["sft_prompt"]
    assert result["prompt_ids"] == golden["prompt_ids"]
    assert sample["plan_ids"] == golden["text_ids"]
    assert sample["plan_text"] == golden["text"]
    assert sample["image_ids"] == golden["image_ids"]
    ours = pixels(tmp_path / "out" / "image_00.png").astype(int)
    reference = pixels(shared / "goldens" / "janus_a_generate.png").astype(int)
    assert ours.shape == (384, 384, 3)
    assert np.abs(ours - reference).max() <= 1


def test_one_caption(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    common = ("--ckpt", tiny, "--out", out, "--max-plan-tokens", "6", "--json")
    gotr1("--prompt", "a red circle", "--n", "3", *common)
    printed = json.loads(capsys.readouterr().out)
    result = json.loads((out / "result.json").read_text())
    assert printed == result
    assert {p.name for p in out.iterdir()} == {
        "result.json",
        *(f"image_0{i}.png" for i in range(3)),
        *(f"overlay_0{i}.png" for i in range(3)),
        *(f"plan_0{i}.txt" for i in range(3)),
    }
    assert set(result) == {"prompt", "sft_prompt", "prompt_ids", "sampling", "samples"}
    for i, sample in enumerate(result["samples"]):
        assert set(sample) == {"plan_ids", "plan_text", "objects", "image_ids", "image"}
        assert len(sample["image_ids"]) == TINY.num_image_tokens
        assert pixels(out / sample["image"]).shape == (16, 16, 3)
        assert (out / f"plan_0{i}.txt").read_bytes().decode() == sample["plan_text"]
    draws = {tuple(sample["image_ids"]) for sample in result["samples"]}
    assert len(draws) == 3

    # Samples do not depend on how many are asked for; files of the earlier run are gone.
    gotr1("--prompt", "a red circle", *common)
    again = json.loads((out / "result.json").read_text())
    assert again["samples"] == result["samples"][:1]
    assert len(list(out.iterdir())) == 4


CAPTIONS = ["a red circle", "Bjørn's 🟥", "مربع أحمر", "a <begin_of_image> b", "a cat"]


def files(out: Path) -> dict[str, bytes]:
    """Content of all files by name."""
    found = (f for f in out.rglob("*") if f.is_file())
    return {f.relative_to(out).as_posix(): f.read_bytes() for f in found}


def test_file_of_captions(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "captions.txt"
    file.write_bytes(("\r\n\r\n".join(CAPTIONS)).encode())
    out = tmp_path / "out"
    common = ("--ckpt", tiny, "--prompts", file, "--max-plan-tokens", "6", "--n", "2", "--json")
    gotr1("--out", out, *common)
    printed = capsys.readouterr().out
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["prompt"] for line in lines] == CAPTIONS
    assert {f.name for f in out.iterdir()} == {
        "generation.json", *(f"{i:05d}" for i in range(5))
    }  # fmt: skip
    for i, line in enumerate(lines):
        folder = out / f"{i:05d}"
        assert json.loads((folder / "result.json").read_text()) == line
        assert len(list(folder.iterdir())) == 7
        assert line["prompt_ids"].count(line["prompt_ids"][0]) == 1
        assert [s["image"] for s in line["samples"]] == ["image_00.png", "image_01.png"]

    # The same command again: nothing is generated, all results are printed.
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*")}
    gotr1("--out", out, *common)
    assert capsys.readouterr().out == printed
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*")} == before


def test_samples_depend_on_neither_batches_nor_devices(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(["a red circle", "a cat", "a blue star", "a red circle"]))
    common = ("--ckpt", tiny, "--prompts", file, "--max-plan-tokens", "6", "--n", "3", "--json")
    outputs, every = [], jax.devices()
    for devices, size in ((1, 8), (1, 1), (1, 3), (8, 8)):
        monkeypatch.setattr(jax, "devices", lambda devices=devices: every[:devices])
        out = tmp_path / f"{devices}_{size}"
        gotr1("--out", out, *common, "--batch-size", size)
        outputs.append((capsys.readouterr().out, files(out)))
    assert all(output == outputs[0] for output in outputs[1:])
    results = [json.loads(line) for line in outputs[0][0].splitlines()]
    draws = {tuple(s["image_ids"]) for result in results for s in result["samples"]}
    assert len(draws) == 12


def test_keys_are_folded_from_seed_step_caption_and_sample() -> None:
    fold = jax.random.fold_in
    by_hand = [
        jax.random.key_data(fold(fold(fold(jax.random.key(3), 7), caption), sample))
        for caption in (1, 4)
        for sample in range(6)
    ]
    places, samples = np.repeat([1, 4], 6), np.tile(np.arange(6), 2)
    for keys in (row_keys(3, 7, np.array([1, 4]), 6), sample_keys(3, 7, places, samples)):
        np.testing.assert_array_equal(jax.random.key_data(keys), by_hand)


@pytest.mark.parametrize("devices", [1, 3])
def test_decoding_one_image_at_a_time(tiny: Path, tmp_path: Path, devices: int) -> None:
    config = GenerateConfig(tmp_path, prompt="a")
    sizes = BatchSizes(5, 16, 601)
    decode = ImageGenerator(config, tiny, sizes, "float32", jax.devices()[:devices]).decode
    assert decode is not None
    ids = np.random.default_rng(0).integers(0, 64, (5, TINY.num_image_tokens), np.int32)
    whole = decode(ids)
    assert len(whole) == 5
    assert all(image.shape == (16, 16, 3) and image.dtype == np.uint8 for image in whole)
    for i in range(5):
        np.testing.assert_array_equal(decode(ids[i : i + 1])[0], whole[i])
    assert len({image.tobytes() for image in whole}) == 5


# Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", " "), "caption is empty"),
        (("--prompt", "red " * 3000), r"\d+ tokens, more than the limit of 2048"),
        (("--prompt", "a", "--n", "0"), "n is 0"),
        (("--prompt", "a", "--max-plan-tokens", "0"), "max_plan_tokens is 0"),
        (("--prompt", "a", "--cfg", "nan"), "cfg is nan"),
        (("--prompt", "a", "--seed", "-1"), "seed is -1"),
        (("--prompt", "a", "--batch-size", "0"), "batch_size is 0"),
        (("--prompt", "a", "--temperature", "0"), "temperature is 0"),
        (("--prompt", "a", "--top-p", "0"), "top_p is 0"),
        (("--prompt", "a", "--template", "Paint"), "reasongen_rl nor a readable file"),
        (("--prompt", "a", "--template", "{caption}{caption}"), "exactly once"),
        (("--prompt", "a", "--plans", "p.jsonl"), "give one of them"),
        (("--plans", "p.jsonl", "--plans-only"), "give one of them"),
        (("--prompt", "a", "--plans-only", "--speculative", "4"), "--plans-only makes none"),
        (("--prompt", "a", "--speculative", "17"), "an image has 16 tokens"),
        (("--prompt", "a", "--speculative", "1"), "speculative is 1"),
        (("--plans", "none.jsonl"), "cannot read plans from none.jsonl: No such file"),
        ((), "nothing to generate"),
    ],
)
def test_bad_words(tiny: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        gotr1("--ckpt", tiny, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_bad_files(tiny: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    with pytest.raises(InputError, match="no checkpoint at"):
        gotr1("--ckpt", tmp_path / "none", "--prompt", "a", *out)
    with pytest.raises(InputError, match="cannot read captions"):
        gotr1("--ckpt", tiny, "--prompts", tmp_path / "none.txt", *out)
    long = tmp_path / "long.txt"
    long.write_text("a cat\n" + "red " * 3000)
    with pytest.raises(InputError, match=r"long.txt, line 2: .* limit of 2048"):
        gotr1("--ckpt", tiny, "--prompts", long, *out)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="long.txt is a file"):
        gotr1("--ckpt", tiny, "--prompt", "a", "--out", long)


def test_a_run_directory_stands_for_its_model(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("steps: 1")
    with pytest.raises(InputError, match="has no model/ yet"):
        find_checkpoint(run)
    shutil.copytree(tiny, run / "model")
    assert find_checkpoint(run) == run / "model"
    assert find_checkpoint(tiny) == tiny
    assert find_checkpoint(None) == EMBEDDED

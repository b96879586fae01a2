"""`gotr1 generate`: the golden picture, files of captions, bad input, nothing half-written."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_checkpoints import TINY, write_tiny

from gotr1_jax import generate
from gotr1_jax.convert.checkpoint import EMBEDDED, find_checkpoint
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.generate import MAX_ROWS, GenerateConfig, Painter, Sample, batches, write_result


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


def test_golden_picture(janus_a: Path, shared: Path, tmp_path: Path) -> None:
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
    assert set(result) == {"prompt", "sft_prompt", "prompt_ids", "samples"}
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


def test_file_of_captions(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "captions.txt"
    captions = ["a red circle", "Bjørn's 🟥", "مربع أحمر", "a <begin_of_image> b", "a cat"]
    file.write_bytes(("\r\n\r\n".join(captions)).encode())
    common = ("--ckpt", tiny, "--max-plan-tokens", "6", "--n", "2")
    gotr1("--prompts", file, "--out", tmp_path / "whole", *common, "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == captions
    folders = sorted((tmp_path / "whole").iterdir())
    assert [f.name for f in folders] == [f"{i:05d}" for i in range(5)]
    for folder, line in zip(folders, lines):
        assert json.loads((folder / "result.json").read_text()) == line
        assert len(list(folder.iterdir())) == 7
        assert line["prompt_ids"].count(line["prompt_ids"][0]) == 1

    # The same file in batches of two captions, the last one filled up: the same draws.
    monkeypatch.setattr(generate, "MAX_ROWS", 4)
    gotr1("--prompts", file, "--out", tmp_path / "split", *common)
    for folder, line in zip(sorted((tmp_path / "split").iterdir()), lines):
        assert json.loads((folder / "result.json").read_text()) == line


@pytest.mark.parametrize(("captions", "n"), [(1, 1), (5, 3), (40, 1), (3, MAX_ROWS), (2, 70)])
def test_batches_cover_every_sample_once(captions: int, n: int) -> None:
    seen, shapes = [], set()
    for places, first, count in batches(captions, n):
        assert len(places) * count <= MAX_ROWS
        shapes.add((len(places), count))
        for place in dict.fromkeys(places):
            seen += [(place, first + i) for i in range(count)]
    assert seen == [(p, s) for p in range(captions) for s in range(n)]
    assert len(shapes) <= 2


def test_keys_of_later_samples_do_not_depend_on_the_cut() -> None:
    whole = jax.random.key_data(generate._keys(3, [1, 4], 0, 6)).reshape(2, 6, -1)
    part = jax.random.key_data(generate._keys(3, [4], 4, 2))
    np.testing.assert_array_equal(part, whole[1, 4:])


def test_decoding_in_chunks(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(GenerateConfig(("a",), tmp_path), tiny)
    ids = np.random.default_rng(0).integers(0, 64, (5, TINY.num_image_tokens), np.int32)
    whole = painter._decoder()(ids)
    monkeypatch.setattr(generate, "_DECODED_PIXELS", 2 * TINY.image_size**2)
    parts = painter._decoder()(ids)
    assert whole.shape == parts.shape == (5, 16, 16, 3)
    assert np.abs(whole.astype(int) - parts).max() <= 1


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
    with pytest.raises(InputError, match=r"caption 2 of the file: .* limit of 2048"):
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


def result_of(*names: str) -> tuple[dict[str, Any], list[Sample]]:
    sample = Sample([1], [2], np.zeros((16, 16, 3), np.uint8))
    entries = [{"plan_text": "", "image": name} for name in names]
    return {"samples": entries}, [sample] * len(names)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write_result(out, *result_of("image_00.png"))
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    assert set(before) == {"image_00.png", "overlay_00.png", "plan_00.txt", "result.json"}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="disk full"):
        write_result(out, *result_of("image_00.png", "image_01.png"))
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    with pytest.raises(RunError, match="disk full"):
        write_result(tmp_path / "new", *result_of("image_00.png"))
    assert not (tmp_path / "new").exists()

"""What `gotr1 generate` writes: benchmark layouts, restarts, full disks."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_generator import SIDE, FakeImageGenerator, gotr1
from PIL import Image
from tiny_checkpoints import write_tiny

import gotr1_jax
from gotr1_jax.errors import InputError, RunError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "ckpt")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.generate.generator.ImageGenerator", FakeImageGenerator)


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    file = tmp_path / "captions.txt"
    file.write_bytes("a cat\r\n\r\nBjørn's 🟥 dog\r\na cat\r\n a long “red” caption".encode())
    return file


def files(out: Path) -> dict[str, bytes]:
    found = (f for f in out.rglob("*") if f.is_file())
    return {f.relative_to(out).as_posix(): f.read_bytes() for f in found}


def color(path: Path) -> tuple[int, ...]:
    with Image.open(path) as image:
        assert image.size == (SIDE, SIDE)
        return image.getpixel((0, 0))


# Layouts, read as the benchmarks' evaluators read them ----------------------------------------


def test_t2i_compbench(tiny: Path, tmp_path: Path, captions: Path) -> None:
    out = tmp_path / "out"
    gotr1("--ckpt", tiny, "--prompts", captions, "--out", out, "--layout", "t2i_compbench")
    names = sorted(os.listdir(out / "samples"), key=lambda x: int(x.split("_")[-1].split(".")[0]))
    assert len(names) == 40
    texts = ["a cat", "Bjørn's 🟥 dog", "a cat", "a long “red” caption"]
    for i, name in enumerate(names):
        assert name == f"{texts[i // 10]}_{i:06d}.png"
        assert name.split("_")[0] == texts[i // 10]
        assert color(out / "samples" / name) == (0, i // 10 * 10, i % 10 * 40 % 256)
    assert {f.name for f in out.iterdir()} == {"samples", "plans", "generation.json"}
    result = json.loads((out / "plans" / "00001.json").read_text())
    assert result["prompt"] == texts[1] and len(result["samples"]) == 10
    assert [s["image"] for s in result["samples"]] == [f"samples/{n}" for n in names[10:20]]


@pytest.mark.parametrize("name", ["color_val", "non_spatial_train", "shape_train", "numeracy_val"])
def test_published_captions(tiny: Path, tmp_path: Path, shared: Path, name: str) -> None:
    file = shared / "prompts" / "t2i_compbench" / f"{name}.txt"
    out = tmp_path / "out"
    gotr1(
        "--ckpt", tiny, "--prompts", file, "--out", out, "--layout", "t2i_compbench", "--n", "1",
        "--batch-size", "64",
    )  # fmt: skip
    lines = file.read_bytes().decode().replace("\r\n", "\n").split("\n")
    expected = {f"{t}_{i:06d}.png" for i, t in enumerate(t for t in lines if t)}
    assert set(os.listdir(out / "samples")) == expected


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("long " * 60, r"captions.txt, line 2: .* name has 310 bytes, more than the 255"),
        ("ø" * 123, r"line 2: .* name has 257 bytes"),
        ("a cat and/or a dog", r"line 2: .* cannot hold '/'"),
        ("a_b", r"line 2: .* cannot hold '_'"),
        ("a \0 b", r"line 2: .* cannot hold a NUL"),
    ],
)
def test_captions_that_are_no_file_name(
    tiny: Path, tmp_path: Path, caption: str, message: str
) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a cat\n" + caption)
    words = ("--ckpt", tiny, "--prompts", file, "--out", tmp_path / "out")
    with pytest.raises(InputError, match=message):
        gotr1(*words, "--layout", "t2i_compbench")
    assert not (tmp_path / "out").exists()
    gotr1(*words)  # numbered folders hold any caption


def test_geneval(tiny: Path, tmp_path: Path, shared: Path) -> None:
    file = tmp_path / "metadata.jsonl"
    published = (shared / "prompts" / "geneval_metadata.jsonl").read_text().splitlines()[:3]
    lines = [*published, '{"prompt":"a  photo", "tag" : "two_object", "include": []}']
    file.write_text("\r\n".join(lines))
    out = tmp_path / "out"
    gotr1("--ckpt", tiny, "--prompts", file, "--out", out, "--layout", "geneval", "--seed", "2")
    folders = sorted(f for f in os.listdir(out) if (out / f).is_dir() and f.isdigit())
    assert folders == ["00000", "00001", "00002", "00003"]
    for place, folder in enumerate(folders):
        assert (out / folder / "metadata.jsonl").read_text() == lines[place] + "\n"
        samples = sorted(os.listdir(out / folder / "samples"))
        assert samples == [f"{i:05d}.png" for i in range(4)]
        with Image.open(out / folder / "grid.png") as grid:
            cells = np.asarray(grid).reshape(2, SIDE, 2, SIDE, 3)[:, 0, :, 0].reshape(4, 3)
        for i, name in enumerate(samples):
            assert color(out / folder / "samples" / name) == (100, place * 10, i * 40)
            assert tuple(cells[i]) == (100, place * 10, i * 40)
    text = tmp_path / "text.txt"
    text.write_text("a photo of a bench")
    with pytest.raises(InputError, match="text.txt, line 1 is not JSON"):
        gotr1("--ckpt", tiny, "--prompts", text, "--out", tmp_path / "b", "--layout", "geneval")


def test_dpg(tiny: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "diffusiondb14.txt").write_bytes("a café, at night.\r\n".encode())
    (prompts / "0.txt").write_text("a/b " * 100)
    (prompts / "notes.md").write_text("not a prompt")
    out = tmp_path / "out"
    words = ("--ckpt", tiny, "--prompts", prompts, "--layout", "dpg")
    gotr1(*words, "--out", out)
    assert sorted(os.listdir(out)) == ["0.png", "diffusiondb14.png"]
    for place, stem in enumerate(("0", "diffusiondb14")):
        with Image.open(out / f"{stem}.png") as grid:
            assert grid.size == (2 * SIDE, 2 * SIDE)
            for i in range(4):
                corner = (i % 2 * SIDE, i // 2 * SIDE)
                assert grid.getpixel(corner) == (0, place * 10, i * 40)
    result = json.loads((tmp_path / "out_plans" / "plans" / "00001.json").read_text())
    assert result["prompt"] == "a café, at night." and len(result["samples"]) == 4
    gotr1(*words, "--out", tmp_path / "one", "--n", "1")
    assert color(tmp_path / "one" / "0.png") == (0, 0, 0)
    with pytest.raises(InputError, match="0.txt: 5 images"):
        gotr1(*words, "--out", tmp_path / "five", "--n", "5")
    (prompts / "1.txt").write_text(" \n")
    with pytest.raises(InputError, match="1.txt: the caption is empty"):
        gotr1(*words, "--out", tmp_path / "empty")
    with pytest.raises(InputError, match="needs the benchmark's directory"):
        gotr1("--prompts", prompts / "0.txt", "--out", tmp_path / "file", "--layout", "dpg")


# Stopping and going on ------------------------------------------------------------------------

LAYOUTS = ["plain", "t2i_compbench", "geneval"]


def words_of(tiny: Path, tmp_path: Path, layout: str) -> list[str | Path]:
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"caption {i}"}) + "\n" for i in range(6)))
    return ["--ckpt", tiny, "--prompts", file, "--layout", layout, "--n", "3", "--batch-size", "4"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_and_a_rerun(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    words = words_of(tiny, tmp_path, layout)
    gotr1(*words, "--out", tmp_path / "whole")
    write, written = Path.write_bytes, 0

    def filling(self: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written > 10 and self.name == "image_01.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", filling)
        with pytest.raises(RunError, match="disk full: .* give the same command again"):
            gotr1(*words, "--out", out)
    whole, part = files(tmp_path / "whole"), files(out)
    # What is there is whole, and nothing half-written is.
    assert 2 < len(part) < len(whole)
    assert {name: whole[name] for name in part} == part
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*") if f.is_file()}
    gotr1(*words, "--out", out)
    assert files(out) == whole
    assert all(f.stat().st_mtime_ns == time for f, time in before.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_killed_process(tiny: Path, tmp_path: Path, layout: str) -> None:
    words = words_of(tiny, tmp_path, layout)
    gotr1(*words, "--out", tmp_path / "whole")
    out = tmp_path / "out"
    script = Path(__file__).parents[1] / "fake_generator.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(gotr1_jax.__file__).parents[1])}
    command = [sys.executable, str(script), "15", *map(str, words), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / ".unfinished").is_dir()
    gotr1(*words, "--out", out)
    assert files(out) == files(tmp_path / "whole")
    # A deleted image is generated again.
    name = next(n for n in sorted(files(out)) if re.search(r"(image_|samples/).*\.png", n))
    (out / name).unlink()
    gotr1(*words, "--out", out)
    assert files(out) == files(tmp_path / "whole")


def test_another_layout_in_the_same_directory(tiny: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "0.txt").write_text("a cat")
    words = ("--ckpt", tiny, "--prompts", prompts, "--out", tmp_path / "out", "--n", "1")
    gotr1(*words)
    with pytest.raises(InputError, match="layout 'plain', not 'dpg'"):
        gotr1(*words, "--layout", "dpg")
    assert not (tmp_path / "out_plans").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", "1"), "seed 0, not 1"),
        (("--cfg", "3"), "cfg 5.0, not 3.0"),
        (("--n", "2"), "n 1, not 2"),
        (("--template", "janus"), "template "),
        (("--dtype", "bfloat16"), "dtype 'float32', not 'bfloat16'"),
        (("--greedy",), "greedy False, not True"),
        (("--plans-only",), "plans_only False, not True"),
        (("--layout", "t2i_compbench"), "layout 'plain', not 't2i_compbench'"),
    ],
)
def test_other_settings_are_refused(
    tiny: Path, tmp_path: Path, captions: Path, words: tuple[str, ...], message: str
) -> None:
    common = ("--ckpt", tiny, "--prompts", captions, "--out", tmp_path / "out")
    gotr1(*common)
    before = files(tmp_path / "out")
    with pytest.raises(InputError, match=f"out was filled with {message}.*another --out"):
        gotr1(*common, *words)
    gotr1(*common, "--batch-size", "3")
    assert files(tmp_path / "out") == before


def test_a_checkpoint_is_sampled_as_it_wants(tiny: Path, tmp_path: Path, captions: Path) -> None:
    ckpt, out = tmp_path / "ckpt", tmp_path / "out"
    shutil.copytree(tiny, ckpt)
    wanted = {"guidance_scale": 3, "max_new_tokens": 40, "template": "Paint {caption}", "top_k": 9}
    (ckpt / "generation_config.json").write_text(json.dumps(wanted))
    gotr1("--ckpt", ckpt, "--prompts", captions, "--out", out, "--top-k", "5")
    result = json.loads((out / "00000" / "result.json").read_text())
    assert result["sft_prompt"] == "Paint a cat"
    assert result["sampling"] == {
        "template": "Paint {caption}", "max_plan_tokens": 40, "cfg": 3.0, "greedy": False,
        "temperature": 1.0, "image_temperature": 1.0, "top_k": 5, "top_p": 1.0, "seed": 0,
    }  # fmt: skip
    assert json.loads((out / "generation.json").read_text()).items() >= result["sampling"].items()
    # A checkpoint that wants something else meanwhile does not fill the same folder.
    (ckpt / "generation_config.json").write_text(json.dumps({**wanted, "guidance_scale": 4}))
    with pytest.raises(InputError, match="cfg 3.0, not 4.0"):
        gotr1("--ckpt", ckpt, "--prompts", captions, "--out", out, "--top-k", "5")
    (ckpt / "generation_config.json").write_text('{"temperature": "warm"}')
    with pytest.raises(InputError, match="generation_config.json: temperature is 'warm'"):
        gotr1("--ckpt", ckpt, "--prompts", captions, "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_other_captions_weights_and_unknown_results_are_refused(
    tiny: Path, tmp_path: Path, captions: Path
) -> None:
    out = tmp_path / "out"
    gotr1("--ckpt", tiny, "--prompts", captions, "--out", out)
    other = write_tiny(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="other weights: those of .*ckpt, not .*other"):
        gotr1("--ckpt", other, "--prompts", captions, "--out", out)
    tiny_moved = tmp_path / "moved"
    tiny_moved.symlink_to(tiny)
    gotr1("--ckpt", tiny_moved, "--prompts", captions, "--out", out)
    captions.write_text("a dog")
    with pytest.raises(InputError, match="other captions or plans"):
        gotr1("--ckpt", tiny, "--prompts", captions, "--out", out)
    (out / "generation.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as the settings of a run"):
        gotr1("--ckpt", tiny, "--prompts", captions, "--out", out)
    (out / "generation.json").unlink()
    with pytest.raises(InputError, match="holds results, but no generation.json"):
        gotr1("--ckpt", tiny, "--prompts", captions, "--out", out)


def test_results_are_shown_in_order(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "captions.txt"
    captions = ["a very long caption " * 10, *(f"caption {i}" for i in range(9))]
    file.write_text("\n".join(captions))
    words = ("--ckpt", tiny, "--prompts", file, "--out", tmp_path / "out", "--n", "2", "--json")
    # Batches hold rows of one width: the long caption comes last.
    gotr1(*words, "--batch-size", "3")
    printed = capsys.readouterr().out
    prompts = [json.loads(line)["prompt"] for line in printed.splitlines()]
    assert prompts == [caption.strip() for caption in captions]
    for place in (0, 4):
        (tmp_path / "out" / f"{place:05d}" / "result.json").unlink()
    gotr1(*words)
    assert capsys.readouterr().out == printed


def test_a_run_that_drew_nothing_binds_nobody(
    tiny: Path, tmp_path: Path, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--ckpt", tiny, "--prompts", captions, "--out", tmp_path / "out")

    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FakeImageGenerator, "sample", fail)
        with pytest.raises(KeyboardInterrupt):
            gotr1(*words)
    gotr1(*words, "--seed", "1")
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["seed"] == 1


def test_a_single_caption_on_a_full_disk(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--ckpt", tiny, "--prompt", "a cat", "--out")
    gotr1(*words, tmp_path / "out")
    before = files(tmp_path / "out")
    assert set(before) == {"image_00.png", "overlay_00.png", "plan_00.txt", "result.json"}

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for name in ("out", "new"):
        with pytest.raises(RunError, match="disk full"):
            gotr1(*words, tmp_path / name, "--n", "2")
    assert files(tmp_path / "out") == before
    assert not (tmp_path / "new").exists()


def test_an_output_that_cannot_be_written(tiny: Path, captions: Path) -> None:
    for out in (captions / "out", Path("/proc/out")):
        with pytest.raises((InputError, RunError), match="cannot (be written|write)|cannot be"):
            gotr1("--ckpt", tiny, "--prompts", captions, "--out", out)

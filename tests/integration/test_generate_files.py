"""What `gotr1 generate` writes: benchmark layouts, restarts, full disks, given plans."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_painter import SIDE, FakePainter, gotr1
from PIL import Image
from tiny_checkpoints import write_tiny

import gotr1_jax
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.text import JANUS_TEMPLATE, TextTokenizer

PLAN = "<|obj_start|>cat<|obj_end|> <|box_start|>(1,2),(30,40)<|box_end|>"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "ckpt")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.generation.painter.Painter", FakePainter)


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    file = tmp_path / "captions.txt"
    file.write_bytes("a cat\r\n\r\nBjørn's 🟥 dog\r\na cat\r\n a long “red” caption".encode())
    return file


def files(out: Path) -> dict[str, bytes]:
    found = (f for f in out.rglob("*") if f.is_file())
    return {f.relative_to(out).as_posix(): f.read_bytes() for f in found}


def color(path: Path) -> tuple[int, ...]:
    with Image.open(path) as picture:
        assert picture.size == (SIDE, SIDE)
        return picture.getpixel((0, 0))


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
        ("a cat and/or a dog", r"line 2: .* where '/' cannot stand"),
        ("a_b", r"line 2: .* where '_' cannot stand"),
        ("a \0 b", r"line 2: .* where a NUL cannot stand"),
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
    with pytest.raises(InputError, match="0.txt: 5 pictures"):
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
    script = Path(__file__).parents[1] / "fake_painter.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(gotr1_jax.__file__).parents[1])}
    command = [sys.executable, str(script), "15", *map(str, words), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / ".unfinished").is_dir()
    gotr1(*words, "--out", out)
    assert files(out) == files(tmp_path / "whole")
    # A picture that got lost is drawn again.
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


def test_other_captions_weights_and_unknown_results_are_refused(
    tiny: Path, tmp_path: Path, captions: Path
) -> None:
    out = tmp_path / "out"
    gotr1("--ckpt", tiny, "--prompts", captions, "--out", out)
    other = write_tiny(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="the weights of .*, not those of"):
        gotr1("--ckpt", other, "--prompts", captions, "--out", out)
    tiny_moved = tmp_path / "moved"
    tiny_moved.symlink_to(tiny)
    gotr1("--ckpt", tiny_moved, "--prompts", captions, "--out", out)
    captions.write_text("a dog")
    with pytest.raises(InputError, match="other captions or plans"):
        gotr1("--ckpt", tiny, "--prompts", captions, "--out", out)
    (out / "generation.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as the note of a run"):
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
    # Rows of one width go together: the long caption, of another width, is drawn last.
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
        patch.setattr(FakePainter, "draw", fail)
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


def test_an_output_that_cannot_be_written(tiny: Path, tmp_path: Path, captions: Path) -> None:
    for out in (captions / "out", Path("/proc/out")):
        with pytest.raises((InputError, RunError), match="cannot (be written|write)|cannot be"):
            gotr1("--ckpt", tiny, "--prompts", captions, "--out", out)


# Plans ----------------------------------------------------------------------------------------


def test_plans_are_sampled_and_painted(
    tiny: Path, tmp_path: Path, captions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--ckpt", tiny, "--json")
    gotr1(*common, "--prompts", captions, "--out", tmp_path / "whole", "--n", "2")
    whole = capsys.readouterr().out
    plans = tmp_path / "plans"
    gotr1(*common, "--prompts", captions, "--out", plans, "--n", "2", "--plans-only")
    printed = capsys.readouterr().out
    assert (plans / "plans.jsonl").read_text() == printed
    assert "image" not in json.loads(printed.splitlines()[0])["samples"][0]
    assert not list(plans.rglob("*.png"))
    for i, source in enumerate((plans / "plans.jsonl", plans, tmp_path / "whole")):
        gotr1(*common, "--plans", source, "--out", tmp_path / f"painted{i}")
        assert capsys.readouterr().out == whole
    gotr1(*common, "--plans", tmp_path / "whole" / "00001" / "result.json", "--out", tmp_path / "b")
    assert json.loads(capsys.readouterr().out)["prompt"] == "Bjørn's 🟥 dog"


def test_plans_by_hand(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = TextTokenizer.from_dir(tiny)
    boi = tokenizer.specials.boi
    file = tmp_path / "plans.jsonl"
    texts = ["", PLAN, PLAN + "<begin_of_image>", "a <begin_of_image> b", "<｜end▁of▁sentence｜>"]
    stale = {"plan_text": "another", "plan_ids": [5, boi]}
    kept = {"plan_text": tokenizer.decode([7, 9, boi], keep_special=True), "plan_ids": [7, 9, boi]}
    lines = [{"prompt": "a cat", "plan": text} for text in texts]
    lines.append({"caption": "a dog", "samples": [stale, kept]})  # type: ignore[dict-item]
    file.write_text("\r\n\r\n".join(json.dumps(line) for line in lines))
    gotr1(
        "--ckpt", tiny, "--plans", file, "--out", tmp_path / "out", "--n", "2", "--json",
        "--template", "janus",
    )  # fmt: skip
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    drawn = [[s["plan_ids"] for s in result["samples"]] for result in results]
    for ids, text in zip(drawn, ["", PLAN, PLAN, *texts[3:]]):
        assert ids == [[*tokenizer.encode_plan(text), boi]] * 2
        assert ids[0].count(boi) == 1 and tokenizer.specials.eos not in ids[0]
    assert results[1]["samples"][0]["objects"] == [{"name": "cat", "box": [1, 2, 30, 40]}]
    edited = [*tokenizer.encode_plan("another"), boi]
    assert drawn[5] == [edited, edited, [7, 9, boi], [7, 9, boi]]
    assert results[0]["sft_prompt"] == JANUS_TEMPLATE.format(caption="a cat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no plan"),
        ("{oops", "line 1 is not JSON"),
        ('{"prompt": "a", "plan": "b"}\n\n["x"]', "line 3 is not an object"),
        ('{"plan": "b"}', "line 1 has no text under 'prompt'"),
        ('{"prompt": "a"}', "line 1 has no text under 'plan'"),
        ('{"prompt": "a", "plan": 3}', "line 1 has no text under 'plan'"),
        ('{"prompt": "a", "samples": [{"plan_ids": [3]}]}', "line 1 has no text under 'plan'"),
        ('{"prompt": " ", "plan": "b"}', "line 1: the caption is empty"),
        ('{"prompt": "a", "plan": "\\ud800"}', "line 1: the plan is not valid Unicode"),
        ('{"prompt": "a", "plan": "%s"}' % ("b " * 99), r"line 1: the plan has \d+ tokens, .* 50"),
    ],
)
def test_bad_plans(tiny: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plans.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=f"plans.jsonl.*{message}"):
        gotr1("--ckpt", tiny, "--plans", file, "--out", tmp_path / "out", "--max-plan-tokens", "50")
    assert not (tmp_path / "out").exists()


def test_plans_beside_prompts(tiny: Path, tmp_path: Path) -> None:
    metadata, plans = tmp_path / "metadata.jsonl", tmp_path / "plans.jsonl"
    metadata.write_text('{"prompt": "a cat", "tag": "x"}\n{"prompt": "a dog", "tag": "y"}\n')
    lines = [json.dumps({"prompt": p, "plan": PLAN}) for p in ("a cat", "a dog", "a cow")]
    words = ("--ckpt", tiny, "--prompts", metadata, "--plans", plans, "--layout", "geneval")
    plans.write_text("\n".join(lines[:2]))
    gotr1(*words, "--n", "4", "--out", tmp_path / "out")
    assert len(os.listdir(tmp_path / "out" / "00001" / "samples")) == 4
    assert json.loads((tmp_path / "out" / "00001" / "metadata.jsonl").read_text())["tag"] == "y"
    for wrong, message in (
        (lines[:1], "metadata.jsonl, line 2: there are fewer plans"),
        (lines, "plans.jsonl, line 3: there are more plans"),
        (lines[1::-1], "plans.jsonl, line 1 is a plan for 'a dog', but"),
    ):
        plans.write_text("\n".join(wrong))
        with pytest.raises(InputError, match=message):
            gotr1(*words, "--out", tmp_path / "wrong")
    with pytest.raises(InputError, match="geneval needs the benchmark's own --prompts"):
        gotr1("--plans", plans, "--layout", "geneval", "--out", tmp_path / "wrong")
    with pytest.raises(InputError, match="--plans-only makes none"):
        gotr1(*words[:4], "--plans-only", "--layout", "geneval", "--out", tmp_path / "wrong")

"""The one way of reading files: whatever a name or a content is, the error is one line."""

from __future__ import annotations

import ast
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gotr1_jax.cli import run as run_command
from gotr1_jax.errors import InputError
from gotr1_jax.io import reading
from gotr1_jax.io.reading import (
    is_stray_file,
    list_folder,
    open_file,
    parse_json,
    read_bytes,
    read_json,
    read_lines,
    read_text,
)

READERS: tuple[Callable[[Path], object], ...] = (
    open_file,
    read_bytes,
    read_text,
    read_json,
    lambda path: list(read_lines(path, "captions")),
)


def bad_names(folder: Path) -> dict[str, Path]:
    """Names of what is no readable file, by a part of the message."""
    os.mkfifo(folder / "fifo")
    (folder / "dangling").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "file").write_text("x")
    names = {
        "FIFO": folder / "fifo",
        "a device": Path("/dev/zero"),
        "a folder": folder,
        "No such file": folder / "dangling",
        "symbolic links": folder / "loop",
        "name too long": folder / ("x" * 300),
        "null": Path(f"{folder}/a\0b"),
        "Not a directory": folder / "file" / "below",
    }
    sock = socket.socket(socket.AF_UNIX)
    os.chdir(folder)
    sock.bind("socket")
    return names | {"a socket": folder / "socket"}


def test_what_is_no_file_is_one_line_and_never_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for message, name in bad_names(tmp_path).items():
        for read in READERS:
            with pytest.raises(InputError) as caught:
                read(name)
            text = str(caught.value)
            assert message.lower() in text.lower() and "\n" not in text and "\0" not in text
            assert len(text) < 600


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[" * 100_000, "nested more than 100 levels"),
        (b'{"a":' * 100_000, "nested more than 100 levels"),
        (b"[" * 500 + b"]" * 500, "nested more than 100 levels"),
        (b"1" * 5000, "a number of 5000 digits"),
        (b'{"a": [NaN]}', "NaN, which is not finite"),
        (b"[-Infinity]", "-Infinity, which is not finite"),
        (b"[1e999]", "1e999, which is not finite"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "holds the key 'c' twice"),
        (b'"\xff"', "not JSON in UTF-8"),
        (b"", "is not JSON"),
        (b"{} {}", "is not JSON"),
    ],
)
def test_json(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="x.json") as caught:
        read_json(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_json_that_is_good(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, 1000000000000000019884624838656, null]}\r\n')
    assert read_json(path) == {"a": [1, 2.5, 10**30 + 19884624838656, None]}
    assert str(parse_json("[NaN, -Infinity]", "x", allow_nan=True)) == "[nan, -inf]"
    deep = "[" * 90 + "]" * 90
    assert parse_json(deep, "x")


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.txt"
    path.write_text("1234567890\n" * 3)
    monkeypatch.setattr(reading, "MAX_LINE", 8)
    with pytest.raises(InputError, match="line 1 has more than 8 characters"):
        list(read_lines(path, "captions"))
    with pytest.raises(InputError, match="more than 20 bytes"):
        read_bytes(path, max_bytes=20)


def test_lines_of_any_ending(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \rthree\n\xe2\x80\xa8four")
    assert [n for n, _ in read_lines(path, "captions")] == [1, 3, 4, 5]
    assert [text for _, text in read_lines(path, "captions")][:3] == ["one", "two", "three"]
    path.write_bytes(b"one\n\xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_lines(path, "captions"))


def test_stray_files_are_no_data(tmp_path: Path) -> None:
    stray = (
        ".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", "__MACOSX", "a.png.tmp", "a.txt~",
        ".ipynb_checkpoints", "README", "README.md", "readme.txt", "LICENSE", "a.swp",
    )  # fmt: skip
    data = (
        "a.png",
        "readme of a dog.png",
        "README_000000.png",
        "license plate.txt",
        "tmp",
        "b.tmp.png",
    )
    for name in (*stray, *data):
        (tmp_path / name).write_text("x")
    assert [path.name for path in list_folder(tmp_path)] == sorted(data)
    assert all(map(is_stray_file, stray)) and not any(map(is_stray_file, data))
    with pytest.raises(InputError, match="cannot read images from .*none: No such"):
        list_folder(tmp_path / "none", "images")


PACKAGE = Path(__file__).resolve().parents[2] / "gotr1_jax"
# Calls that read a file or parse what came from one, with the modules that may make them: on a
# name that `open_file` has checked, or on the file that it opened.
DIRECT = {
    "json.loads": {"io/reading.py", "io/lock.py", "convert/safetensors_file.py"},  # bounded
    "json.load": set(),
    "yaml.safe_load": set(),
    "yaml.load": set(),
    "np.load": {"data/token_cache.py", "data/text_tokens.py", "shapes/cells.py"},
    "np.memmap": {"convert/reader.py", "convert/safetensors_file.py"},
    "np.fromfile": set(),
    "torch.load": {"convert/torch_file.py"},
    "Image.open": {"images/reader.py"},
    "tarfile.open": {"data/tables.py", "convert/torch_file.py"},
    "zipfile.ZipFile": {"convert/torch_file.py"},
    "gzip.open": set(),
    "open": {"io/lock.py"},  # for writing, too
    "io.open": set(),
    "os.open": {"io/reading.py", "io/files.py"},  # in files.py to flush
    "read_text": {"aot/target.py"},  # of the package's own files
    "read_bytes": set(),
}  # fmt: skip


def direct_reads(source: str) -> list[str]:
    """The calls of `DIRECT` in a module; opening for writing is none."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "read_bytes"):
            name = node.func.attr
        elif name in ("read_text", "read_bytes"):
            continue  # the guarded ones
        elif name in ("open", "io.open", "os.open"):
            how = ast.unparse(ast.Tuple([*node.args[1:], *(k.value for k in node.keywords)]))
            if re.search(r"'[wax]|O_WRONLY|O_CREAT", how):
                continue
        if name in DIRECT:
            found.append(name)
    return found


def test_the_search_finds_what_it_should() -> None:
    assert direct_reads("open(p)\nopen(p, 'rb')\nPath(p).read_text()\njson.loads(t)") == [
        "open", "open", "read_text", "json.loads",
    ]  # fmt: skip
    assert direct_reads("open(p, 'ab')\nread_text(p)\nos.open(p, os.O_WRONLY)\nrun.open()") == []


def test_nothing_else_opens_files_for_reading() -> None:
    wrong = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        allowed = {name for name, modules in DIRECT.items() if module in modules}
        found = [n for n in direct_reads(path.read_text("utf-8")) if n not in allowed]
        if found:
            wrong[module] = found
    assert wrong == {}, "read through gotr1_jax.io.reading"


@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_that_is_too_long_is_one_short_line(
    length: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests of this process may have started the devices.
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    name = "x" * length
    for command in (
        ["report", name], ["generate", "--prompts", name, "--out", "o"],
        ["train", "grpo", "--config", name], ["judge", "--input", name, "--out", "o"],
    ):  # fmt: skip
        assert run_command(command) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "too long" in line and "write" not in line and len(line) < 2100

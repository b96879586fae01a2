"""What keeps the package readable: sizes, one class a name, and the field's own words."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "gotr1_jax"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# Words that once were ours alone, with the field's term. As whole parts of identifiers
# (`null_ramp` has the parts null and ramp):
NAMES = {
    "asker": "client",
    "beside": "frozen",
    "figures": "metrics",
    "folded": "merged",
    "gather_groups": "sample_groups",
    "is_first": "is_main_process",
    "first_says": "broadcast_from_main",
    "keep_likely": "top_k_top_p_filter",
    "located": "detections",
    "painter": "image decoder",
    "picture": "image",
    "pictures": "images",
    "ramp": "unconditional prefix",
    "refill": "resample",
    "refills": "resample",
    "replay": "teacher-forced log-probs",
    "roller": "rollout worker",
    "rung": "bucket size",
    "said": "raw answers",
    "segment": "KV cache",
    "stretch": "token batch",
    "together": "raise_on_all_processes",
    "told": "scored",
    "wave": "batch",
}
# Class names.
CLASSES = {"Rows", "RowLogps", "Segment", "Head", "Stretch", "Roller", "Painter", "Asker"}
# In docstrings, comments and messages:
PROSE = {
    r"pictures?": "image",
    r"ramps?": "unconditional prefix",
    r"refill\w*": "resample",
    r"replay\w*": "teacher-forced log-probs",
    r"adapters?[^.]{0,30} folded": "merged",
    r"rungs?": "bucket size",
    r"waves?": "batch",
    r"(could|can|cannot|not) (not )?(be )?(told|tell)": "could not be scored",
    r"laid out for (decoding|sampling)": "layers unstacked, one dtype",
}
# Texts that are sent to models or belong to file formats; a change would change behaviour.
SENT_TO_MODELS = (
    "bench/judge.py",
    "evaluation/",
    "rewards/multimodal/instructions.py",
    "shapes/questions.py",
)


def sources() -> Iterator[tuple[str, str]]:
    """(path below the package, text) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path.read_text("utf-8")


def names_in(source: str) -> set[str]:
    """Every name that a module defines or uses, keyword arguments and attributes included."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def parts_of(name: str) -> set[str]:
    """`readRamp_BT` -> {readramp, ramp, bt, ...}: the name and its words, in lower case."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {name.lower(), *(word.lower() for word in words)}


def wrong_names(source: str) -> list[str]:
    """Names of a module that hold a word of `NAMES` or are one of `CLASSES`."""
    allowed = {"fold_in", "SegmentIds"}  # names of jax
    return sorted(
        name
        for name in names_in(source) - allowed
        if parts_of(name) & NAMES.keys() or name in CLASSES
    )


def prose_of(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of docstrings and comments."""
    for node in ast.walk(ast.parse(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.lineno, value.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def wrong_prose(source: str) -> list[str]:
    """Places whose docstring or comment has a word of `PROSE`."""
    found = []
    for line, text in prose_of(source):
        for pattern, term in PROSE.items():
            match = re.search(rf"\b(?:{pattern})\b", " ".join(text.split()), re.IGNORECASE)
            if match:
                found.append(f"line {line}: {match.group(0)!r}; write {term}")
    return found


def test_names_are_the_fields_own() -> None:
    assert {path: found for path, text in sources() if (found := wrong_names(text))} == {}


def test_docstrings_and_comments_are_in_plain_words() -> None:
    found = {
        path: wrong
        for path, text in sources()
        if not path.startswith(SENT_TO_MODELS) and (wrong := wrong_prose(text))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source, names, prose",
    [
        ("def replay_rows(): pass", 1, 0),
        ("x.null_ramp = f(beside=3)", 2, 0),
        ("class Segment: pass", 1, 0),
        ('"""The ramp of BOS and pads."""', 0, 1),
        ("x = 1  # a row that no judge could tell", 0, 1),
        ("key = jax.random.fold_in(key, 3)  # trampled", 0, 0),
    ],
)
def test_the_rules_catch(source: str, names: int, prose: int) -> None:
    assert (len(wrong_names(source)), len(wrong_prose(source))) == (names, prose)


def test_no_class_name_stands_twice() -> None:
    places: dict[str, list[str]] = {}
    for path, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_files_and_functions_are_short() -> None:
    long = []
    tests = (
        (str(p.relative_to(ROOT)), p.read_text("utf-8")) for p in (ROOT / "tests").rglob("*.py")
    )
    for path, text in (*sources(), *tests):
        if (lines := len(text.splitlines())) > MAX_FILE_LINES:
            long.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{path}: {node.name} has {lines} lines")
    assert long == []


def test_paths_in_the_documentation_exist() -> None:
    """Every `gotr1_jax/...`, `configs/...`, `launch/...`, `tests/...` path and module name."""
    missing = []
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        text = page.read_text("utf-8")
        for path in re.findall(r"\b(?:gotr1_jax|configs|launch|tests)/[\w./-]*\w", text):
            if not (ROOT / path).exists():
                missing.append(f"{page.name}: {path}")
        for name in re.findall(r"\bgotr1_jax(?:\.[a-z_0-9]+)+", text):
            parts = name.split(".")
            # The last part may be a function or class of a module.
            if not any(
                (ROOT.joinpath(*parts[:n]).with_suffix(".py")).exists()
                or (ROOT.joinpath(*parts[:n])).is_dir()
                for n in (len(parts), len(parts) - 1)
            ):
                missing.append(f"{page.name}: {name}")
    assert missing == []


def test_tests_that_the_documentation_names_exist() -> None:
    """`tests/FILE.py::NAME` is a function of that file."""
    named = [
        (page, path, name)
        for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
        for path, name in re.findall(r"(tests/\S+?\.py)::(\w+)", page.read_text("utf-8"))
    ]
    assert named
    for page, path, name in named:
        source = (ROOT / path).read_text("utf-8") if (ROOT / path).is_file() else ""
        assert f"def {name}(" in source, f"{page.name}: {path}::{name}"


def test_test_files_have_names_of_their_own() -> None:
    """Two files of one name in different folders cannot be collected together."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert not [name for name, count in names.items() if count > 1 and name != "conftest.py"]

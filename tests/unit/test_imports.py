"""Who may import whom: the layers of the package, read from its source without running it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "gotr1_jax"
ROOT = Path(__file__).resolve().parents[2] / PACKAGE

# A unit (a file or folder right under the package) imports units of lower layers only.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("limits", "io"),
    ("config", "plan"),
    ("parallel", "config_reference"),
    ("images", "tokenizers"),
    ("models", "data", "shapes"),
    ("convert", "decoding"),
    ("sampler", "vlm_engine"),
    ("rewards",),
    ("trainer",),
    ("report",),
    ("grpo", "sft", "vq", "judge_sft"),
    ("generate",),
    ("jobs",),
    ("evaluation", "ablate", "aot", "play", "completion"),
    ("bench",),
    ("cli",),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}

# Outside the standard library, these units import nothing but what is listed.
THIRD_PARTY = {
    "errors": set[str](),
    "limits": set(),
    "config": {"yaml"},
    "config_reference": set(),
    "images": {"numpy", "PIL"},
    "plan": {"numpy", "PIL", "scipy"},
}
# Pure numpy work: it must run where no accelerator and no model is.
WITHOUT_JAX = {
    "errors",
    "limits",
    "config",
    "config_reference",
    "images",
    "plan",
    "tokenizers",
    "data",
    "shapes",
    "report",
}
# Small pure functions: these modules import jax and their own kind only.
ALGORITHMS = {
    "gotr1_jax.grpo.advantage_config",
    "gotr1_jax.grpo.advantages",
    "gotr1_jax.grpo.kl",
    "gotr1_jax.grpo.loss_config",
    "gotr1_jax.grpo.losses",
    *(
        f"gotr1_jax.grpo.losses.{name}"
        for name in ("batch", "importance", "policy", "surrogates", "uncertain")
    ),
    "gotr1_jax.grpo.per_modality",
    "gotr1_jax.judge_sft.losses",
    "gotr1_jax.sft.losses",
    "gotr1_jax.vq.losses",
}
ARRAY_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax"}


class Import(NamedTuple):
    unit: str  # of the importing file
    module: str  # the importing file, dotted
    target: str  # absolute dotted name
    place: str  # file:line
    inside_function: bool


def unit_of(module: str) -> str:
    """'gotr1_jax.plan.boxes' -> 'plan'; the package itself -> ''."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_of(path: Path, root: Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def targets_of(node: ast.AST, package: str) -> list[str]:
    """Absolute names that a node imports; `package` is what one leading dot stands for."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")
            base = ".".join([*above[: len(above) - node.level + 1], *([base] if base else [])])
        # `from gotr1_jax import plan` imports the unit, not only the package.
        return [f"{base}.{a.name}" for a in node.names] if base == PACKAGE else [base]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        called = node.func.id if isinstance(node.func, ast.Name) else called
        if called in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def imports_of(source: str, module: str, is_package: bool, place: str) -> Iterator[Import]:
    package = module if is_package else module.rpartition(".")[0]

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            for target in targets_of(child, package):
                line = getattr(child, "lineno", 0)
                yield Import(unit_of(module), module, target, f"{place}:{line}", inside)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, inside or function)

    yield from walk(ast.parse(source), False)


def all_imports(root: Path = ROOT) -> list[Import]:
    found: list[Import] = []
    for path in sorted(root.rglob("*.py")):
        place = str(path.relative_to(root.parent))
        is_package = path.name == "__init__.py"
        found += imports_of(path.read_text("utf-8"), module_of(path, root), is_package, place)
    return found


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return all_imports()


def wrong_layers(imports: list[Import]) -> list[str]:
    """Imports of a unit in the same or a higher layer, and of or by units that have no layer."""
    wrong = []
    for item in imports:
        if item.target.split(".")[0] != PACKAGE or item.unit == unit_of(item.target):
            continue
        target = unit_of(item.target)
        # The package's own module names, for type checkers, what users import from it.
        if target in ("", "__version__") or item.unit == "":
            continue
        if item.unit not in RANK or target not in RANK or RANK[target] >= RANK[item.unit]:
            wrong.append(f"{item.place}: {item.unit or PACKAGE} imports {target}")
    return wrong


def wrong_third_party(imports: list[Import]) -> list[str]:
    """Libraries that a unit must not use."""
    wrong = []
    for item in imports:
        top = item.target.split(".")[0]
        if top == PACKAGE or top in sys.stdlib_module_names:
            continue
        allowed = THIRD_PARTY.get(item.unit)
        refused = allowed is not None and top not in allowed
        refused |= item.unit in WITHOUT_JAX and top in ARRAY_LIBRARIES
        # The comparison of `gotr1 bench` needs torch only when it is asked for.
        lazy = item.unit == "bench" and item.inside_function
        # Models that score images for a benchmark, where they are asked to.
        lazy |= "evaluation/torch_models.py:" in item.place and item.inside_function
        refused |= top == "torch" and item.unit != "convert" and not lazy
        if refused:
            wrong.append(f"{item.place}: {item.unit or PACKAGE} imports {top}")
    return wrong


def test_units_import_lower_layers_only(imports: list[Import]) -> None:
    assert wrong_layers(imports) == []


def test_units_use_only_their_libraries(imports: list[Import]) -> None:
    assert wrong_third_party(imports) == []


def foreign_to_algorithms(imports: list[Import]) -> list[str]:
    """What a loss imports besides jax, other losses, and what states the range of a setting."""
    own = {*ALGORITHMS, "jax", *(f"gotr1_jax.{name}" for name in ("config", "errors", "limits"))}
    return [
        f"{i.place}: {i.target}"
        for i in imports
        if i.module in ALGORITHMS
        and not {i.target, i.target.split(".")[0]} & own
        and i.target.split(".")[0] not in sys.stdlib_module_names
    ]


def test_algorithms_import_jax_and_their_own_types_only(imports: list[Import]) -> None:
    assert {i.module for i in imports} >= ALGORITHMS
    assert foreign_to_algorithms(imports) == []
    found = imports_of("import numpy", "gotr1_jax.grpo.losses", is_package=False, place="x.py")
    assert foreign_to_algorithms(list(found)) == ["x.py:1: numpy"]


def test_every_unit_has_a_layer() -> None:
    units = {p.stem for p in ROOT.glob("*.py")} | {
        p.parent.name for p in ROOT.glob("*/__init__.py")
    }
    assert units - {"__init__"} == RANK.keys()
    assert len(RANK) == sum(map(len, LAYERS))


def test_setup_installs_every_library(imports: list[Import]) -> None:
    setup = (ROOT.parent / "setup.py").read_text("utf-8")
    installed = {name.lower() for name in re.findall(r'"([\w-]+)(?:\[\w+\])?>?==?[\d.]+"', setup)}
    names = {"PIL": "pillow", "yaml": "pyyaml", "orbax": "orbax-checkpoint", "jaxlib": "jax"}
    names["mlflow"] = "mlflow-skinny"
    used = {i.target.split(".")[0] for i in imports} - sys.stdlib_module_names - {PACKAGE}
    assert "jax" in used and "jax" in installed
    assert {n for n in used if names.get(n, n).lower() not in installed} == set()


@pytest.mark.parametrize(
    "module, source, refused",
    [
        ("gotr1_jax.plan.boxes", "import jax.numpy as jnp", "plan imports jax"),
        ("gotr1_jax.models.vq", "def f():\n    import torch", "models imports torch"),
        ("gotr1_jax.bench", "import torch", "bench imports torch"),
        (
            "gotr1_jax.evaluation.benchmark",
            "def f():\n    import torch",
            "evaluation imports torch",
        ),
        ("gotr1_jax.images.qwen", "import scipy", "images imports scipy"),
        (
            "gotr1_jax.shapes.render",
            "import importlib\nimportlib.import_module('jax')",
            "shapes",
        ),
        ("gotr1_jax.models.vq", "from ..trainer.state import x", "models imports trainer"),
        ("gotr1_jax.shapes.scenes", "from .. import sampler", "shapes imports sampler"),
        ("gotr1_jax.convert.read", "from gotr1_jax.sampler import x", "convert imports sampler"),
        ("gotr1_jax.plan.boxes", "from gotr1_jax import models", "plan imports models"),
        ("gotr1_jax.config", "from gotr1_jax.new_unit import x", "config imports new_unit"),
        ("gotr1_jax.bench", "def f():\n    import torch", None),
        ("gotr1_jax.convert.read", "import torch", None),
        ("gotr1_jax.grpo.update", "from ..trainer.state import x\nimport jax, torchvision", None),
        ("gotr1_jax.plan.draw", "from .boxes import Box\nfrom ..errors import InputError", None),
        ("gotr1_jax.cli", "from gotr1_jax import __version__, report", None),
    ],
)
def test_the_rules_catch(module: str, source: str, refused: str | None) -> None:
    found = list(imports_of(source, module, is_package=False, place="x.py"))
    assert found
    wrong = wrong_layers(found) + wrong_third_party(found)
    if refused is None:
        assert wrong == []
    else:
        assert len(wrong) == 1 and refused in wrong[0]

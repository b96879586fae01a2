"""What the project ships loads: every configuration, and the embedded checkpoint."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from gotr1_jax.ablate.config import AblationConfig
from gotr1_jax.config import load_config, to_yaml
from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.convert.find import EMBEDDED
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.judge_sft.config import JudgeSftConfig
from gotr1_jax.sft.config import SftConfig
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.vq.config import VqTrainConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMAS = {
    "vq": VqTrainConfig,
    "sft": SftConfig,
    "grpo": GrpoConfig,
    "judge": JudgeSftConfig,
    "ablation": AblationConfig,
    "methods": AblationConfig,
    "orderings": AblationConfig,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_loads_and_comes_back(path: Path, tmp_path: Path) -> None:
    # A file's name holds its job.
    (schema,) = (SCHEMAS[part] for part in path.stem.split("_") if part in SCHEMAS)
    config = load_config(schema, path)
    (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(schema, tmp_path / "again.yaml") == config


def test_embedded_checkpoint_is_whole_and_small() -> None:
    files = list(EMBEDDED.iterdir())
    assert sum(file.stat().st_size for file in files) <= 10 * 2**20
    assert "config.json" in {file.name for file in files}
    checkpoint = load_checkpoint(EMBEDDED, parts=("policy", "vq", "understanding"))
    count = sum(x.size for x in jax.tree.leaves(checkpoint.policy))
    assert 1e6 <= count <= 4e6
    assert checkpoint.config.image_size == 128 and checkpoint.config.num_image_tokens == 64
    stored = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    assert stored["model_type"] == "multi_modality"


def test_embedded_tokenizer_writes_the_plans_of_the_world() -> None:
    tokenizer = load_checkpoint(EMBEDDED, parts=()).tokenizer
    caption, plan = ShapesSource("train", 1).text(0)
    assert tokenizer.decode(tokenizer.encode_plan(plan), keep_special=True) == plan
    ids = tokenizer.encode_prompt(caption)
    assert ids[0] == tokenizer.specials.bos and tokenizer.specials.boi not in ids


def test_embedded_image_tokenizer_keeps_a_image() -> None:
    checkpoint = load_checkpoint(EMBEDDED, parts=("vq",))
    image = ShapesSource("train", 1).image(0).astype(np.float32) / 127.5 - 1
    vq = checkpoint.vq_module()
    back = vq.decode_ids(vq.encode_ids(image[None]), checkpoint.config.grid)[0]
    error = float(np.mean((np.asarray(back) - image) ** 2))
    # 20 dB; an untrained or misread one is below 10.
    assert error < 4 / 100


def test_every_file_of_the_package_is_installed() -> None:
    """Files besides modules are listed in setup.py, for the wheel, and in MANIFEST.in."""
    (call,) = (
        node.value
        for node in ast.parse((ROOT / "setup.py").read_text("utf-8")).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )
    (package_data,) = (k.value for k in call.keywords if k.arg == "package_data")
    installed: set[Path] = set()
    for package, patterns in ast.literal_eval(package_data).items():
        folder = ROOT.joinpath(*package.split("."))
        installed |= {path for pattern in patterns for path in folder.glob(pattern)}
    files = {p for p in (ROOT / "gotr1_jax").rglob("*") if p.is_file()}
    files = {p for p in files if p.suffix != ".py" and "__pycache__" not in p.parts}
    assert files == {path for path in installed if path.is_file()}
    lines = (ROOT / "MANIFEST.in").read_text("utf-8").splitlines()
    with_all = {ROOT / line.split()[1] for line in lines if line.endswith(" *")}
    named = {ROOT / word for line in lines if line.startswith("include ") for word in line.split()}
    assert {path for path in files - named if not with_all & set(path.parents)} == set()

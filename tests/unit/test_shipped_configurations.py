"""Configurations that ship: by name from anywhere, also of an installed package; of another job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gotr1_jax import cli
from gotr1_jax.ablate.config import AblationConfig
from gotr1_jax.ablate.runs import list_runs, plan_runs
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.io.strict_yaml import SHIPPED, find_configuration

ROOT = Path(__file__).resolve().parents[2]


def test_names_lead_to_files_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (ROOT / "configs").glob("*.yaml"):
        assert find_configuration(Path(file.stem)).read_bytes() == file.read_bytes()
    config = GrpoConfig.from_file(Path("gotr1_7b_grpo"), ["--steps", "7"])
    assert config.steps == 7
    # What is there comes first, and a path is only a path.
    (tmp_path / "shapes_grpo").write_text("steps: 3\nrun_dir: here\n")
    assert GrpoConfig.from_file(Path("shapes_grpo")).run_dir == "here"
    for path in ("gotr1_7b_grpo.yaml", "configs/gotr1_7b_grpo", "./no/gotr1_7b_grpo"):
        assert find_configuration(Path(path)) == Path(path)
    with pytest.raises(InputError, match="gotr1_7b_gprs is no file.*gotr1_7b_grpo, ") as error:
        find_configuration(Path("gotr1_7b_gprs"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["methods", "orderings"])
def test_ablations_find_their_recipe_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = plan_runs(AblationConfig.from_file(Path(f"shapes_{name}")), tmp_path / "out")
    last = f"{len(runs)} runs, 0 finished; how long the others take is known once one is finished"
    assert list_runs(runs, 2).splitlines()[-1] == last


def test_an_installed_package_works_outside_the_checkout(tmp_path: Path) -> None:
    # In a copy: setuptools writes its notes beside setup.py.
    source, built = tmp_path / "source", tmp_path / "built"
    source.mkdir()
    for name in ("setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for name in ("gotr1_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(built)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    configs = {file.name for file in (ROOT / "configs").glob("*.yaml")}
    package = built / "gotr1_jax"
    assert {file.name for file in (package / "configs").iterdir()} == configs
    assert (package / "py.typed").exists() and (package / "assets/shapes/config.json").exists()
    assert SHIPPED[0] == ROOT / "gotr1_jax" / "configs"
    # It works alone, from a folder of the user's: samples, checkpoint, configurations by name.
    (tmp_path / "mine.py").write_text("def ones(requests):\n    return [1.0 for _ in requests]\n")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from gotr1_jax import cli\nfrom gotr1_jax.convert.find import find_checkpoint\n"
        "from gotr1_jax.grpo.config import GrpoConfig\n"
        "print(cli.__file__, GrpoConfig.from_file(Path('gotr1_7b_grpo')).steps)\n"
        "assert (find_checkpoint('embedded') / 'model.safetensors').exists()\n"
        "sys.exit(cli.run(['judge', '--check', 'mine.py:ones']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(built)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first == f"{package / 'cli.py'} 1000" and last == "no mistake found on 8 samples"


@pytest.mark.parametrize(
    ("job", "name", "right"),
    [("sft", "gotr1_7b_grpo", "grpo"), ("grpo", "shapes_vq", "vq"), ("vq", "shapes_judge", "judge"),
     ("judge", "gotr1_1b_sft", "sft")],
)  # fmt: skip
def test_a_file_of_another_job_says_so(job: str, name: str, right: str, capsys) -> None:
    assert cli.run(["train", job, "--config", name]) == 2
    error = capsys.readouterr().err
    assert f"{name} is a configuration of gotr1 train {right}, not of {job}" in error


def test_other_mistakes_keep_their_message(capsys) -> None:
    assert cli.run(["train", "grpo", "--config", "gotr1_7b_grpo", "--learning_rate", "1"]) == 2
    assert "did you mean 'optimizer.learning_rate'?" in capsys.readouterr().err

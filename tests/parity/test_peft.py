"""A run with adapters: merged into an export, or alone in the layout that `peft` loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import grpo_values
from tiny_checkpoints import PORTABLE, write_tiny

from gotr1_jax.config import from_dict, to_yaml
from gotr1_jax.convert import command as convert_checkpoint
from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.errors import InputError
from gotr1_jax.grpo import export as export_checkpoint
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.policy import SplitPolicy, load_policy, merge_adapters
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.trainer.state import new_state

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


def export(source: Path, target: Path, form: str, *more: str) -> Path:
    parser = argparse.ArgumentParser()
    export_checkpoint.add_arguments(parser)
    words = ["--ckpt", str(source), "--to", str(target), "--format", form, *more]
    export_checkpoint.run(parser.parse_args(words))
    return target


def start_run(folder: Path, lora: bool = True) -> tuple[Path, SplitPolicy, Any]:
    """A run as it lies on disk after a checkpoint: (its directory, policy, what it trained)."""
    base = write_tiny(folder / "base", PORTABLE)
    values = grpo_values(base, folder / "run")
    if not lora:
        values["policy"]["lora"] = None
    config = from_dict(GrpoConfig, values)
    policy, _ = load_policy(config.policy, 0, make_mesh(1, 1, 1))

    def disturb(leaf: jax.Array) -> jax.Array:
        noise = np.random.default_rng(leaf.size).standard_normal(leaf.shape, np.float32)
        return jnp.asarray(np.asarray(leaf) + 0.3 * noise, leaf.dtype)

    trained = jax.tree.map(disturb, policy.trained)
    state = new_state(trained, make_optimizer(config.optimizer, 4))
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(config))
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(3, state, {"seed": 0})
    return run, policy, trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SplitPolicy, Any]:
    return start_run(tmp_path_factory.mktemp("grpo"))


def logits(state: nnx.State, ids: np.ndarray) -> np.ndarray:
    from gotr1_jax.models.janus import abstract_policy

    policy = nnx.merge(nnx.split(abstract_policy(PORTABLE))[0], state)
    hidden = policy.hidden(policy.embed_text(jnp.asarray(ids)), jnp.arange(ids.shape[1])[None])
    return np.asarray(policy.text_logits(hidden))


def test_an_unfinished_run_is_exported_with_its_adapters_merged(
    trained: tuple[Path, SplitPolicy, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, policy, arrays = trained
    out = export(run, tmp_path / "out", "original")
    assert "checkpoint of step 3" in capsys.readouterr().out
    merged = load_checkpoint(out, parts=("policy",)).policy
    base = load_checkpoint(run.parent / "base", parts=("policy",)).policy
    assert_close(merged, merge_adapters(policy, arrays))
    for name in ("q", "v", "down", "k", "up"):
        before, after = (p["decoder"]["layers"][name]["kernel"][...] for p in (base, merged))
        adapted = name in ("q", "v", "down")
        assert bool((before != after).any()) == adapted


def assert_close(one: Any, two: Any) -> None:
    """Same structure, same values but for the order of additions."""
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, two)


def test_a_run_that_trains_everything_is_exported_exactly(tmp_path: Path) -> None:
    run, _, arrays = start_run(tmp_path, lora=False)
    out = export(run, tmp_path / "out", "original")
    merged = load_checkpoint(out, parts=("policy",)).policy
    jax.tree.map(np.testing.assert_array_equal, merged, arrays)
    with pytest.raises(InputError, match="has no adapters to export"):
        export(run, tmp_path / "peft", "peft")
    assert not (tmp_path / "peft").exists()


def test_peft_loads_the_adapters_and_merges_to_the_same_numbers(
    trained: tuple[Path, SplitPolicy, Any], tmp_path: Path
) -> None:
    from transformers import JanusForConditionalGeneration

    run, policy, arrays = trained
    port = export(run.parent / "base", tmp_path / "port", "hf")
    adapters = export(run, tmp_path / "adapters", "peft")
    names = sorted(f.name for f in adapters.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    model = JanusForConditionalGeneration.from_pretrained(port, dtype=torch.float32)
    before = set(model.state_dict())
    wrapped = peft.PeftModel.from_pretrained(model, adapters)
    wanted = {n for n in wrapped.state_dict() if ".lora_" in n}
    stored = open_safetensors(adapters / "adapter_model.safetensors")
    # Every stored tensor has its place and every adapter has its tensors; no other layer got one.
    assert {n.replace(".default.", ".") for n in wanted} == set(stored)
    assert all(".language_model.layers." in name for name in stored)
    merged = wrapped.merge_and_unload().eval()
    assert set(merged.state_dict()) == before
    ids = np.random.default_rng(3).integers(0, 400, (2, 9))
    with torch.no_grad():
        hidden = merged.model.language_model(torch.from_numpy(ids)).last_hidden_state
        theirs = merged.lm_head(hidden).numpy()
    ours = logits(merge_adapters(policy, arrays), ids)
    np.testing.assert_allclose(theirs, ours, atol=2e-4)
    base = logits(load_checkpoint(run.parent / "base", parts=("policy",)).policy, ids)
    assert np.abs(ours - base).max() > 0.1


def open_safetensors(file: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(file)


def test_a_run_without_a_good_checkpoint_is_refused(
    trained: tuple[Path, SplitPolicy, Any], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text((trained[0] / "config.yaml").read_text())
    with pytest.raises(InputError, match="has no checkpoint yet"):
        export(bare, tmp_path / "out", "original")
    (bare / "config.yaml").write_text("steps: 3\nvq: x\n")
    with pytest.raises(InputError, match="is not a run of gotr1 train grpo"):
        export(bare, tmp_path / "out", "peft")
    with pytest.raises(InputError, match="needs the directory of a run"):
        export(trained[0].parent / "base", tmp_path / "out", "peft")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["bare"]


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5_000_000_000), ("500 mb", 500_000_000), ("12", 12), ("1.5KB", 1500)]
)
def test_sizes(text: str, size: int) -> None:
    assert convert_checkpoint.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-1GB", "0", "inf", "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        convert_checkpoint.parse_size(text)

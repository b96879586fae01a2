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
from gotr1_jax.grpo.policy import SplitPolicy, load_policy
from gotr1_jax.grpo.run_weights import read_run_weights, write_run_model
from gotr1_jax.io.files import write_json
from gotr1_jax.models.lora import merge_lora
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


def start_run(
    folder: Path, lora: bool = True, dtype: str = "float32"
) -> tuple[Path, SplitPolicy, Any]:
    """A run as it lies on disk after a checkpoint: (its directory, policy, what it trained).

    dtype: of the base's files and of the policy's weights in training.
    """
    base = write_tiny(folder / "base", PORTABLE, dtype=dtype)
    values = grpo_values(base, folder / "run")
    values["policy"]["param_dtype"] = dtype
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


def merge_adapters(policy: SplitPolicy, trained: Any) -> nnx.State:
    """The policy's parameters with its adapters added in, in their dtype."""

    @jax.jit  # merging changes the module in place
    def fold(trained: Any, frozen: Any) -> nnx.State:
        return nnx.split(merge_lora(nnx.merge(policy.graphdef, trained, frozen)))[1]

    return fold(trained, policy.frozen)


def finish(run: Path) -> str:
    """What the end of a run leaves behind; returns the line about rounding."""
    write_json(run / "summary.json", {"steps": 3})
    return write_run_model(run / "model", read_run_weights(run))


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


def test_a_finished_run_in_bfloat16_exports_what_peft_merges_in_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import JanusForConditionalGeneration

    run, *_ = start_run(tmp_path, dtype="bfloat16")
    line = finish(run)
    assert "base in bfloat16, its sum with the adapters rounded to bfloat16" in line
    port = export(tmp_path / "base", tmp_path / "port", "hf")
    adapters = export(run, tmp_path / "adapters", "peft")
    model = JanusForConditionalGeneration.from_pretrained(port, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, adapters).merge_and_unload().state_dict()
    capsys.readouterr()
    for source in (run, run / "model"):
        out = export(source, tmp_path / "out", "hf", "--dtype", "float32")
        assert "its sum with the adapters in float32, not rounded" in capsys.readouterr().out
        for name, ours in open_safetensors(out / "model.safetensors").items():
            np.testing.assert_allclose(ours, merged[name].numpy(), atol=1e-6, rtol=1e-6)
    # The run's own model holds the rounded sum, with the difference that was said.
    stored = open_safetensors(export(run / "model", tmp_path / "own", "hf") / "model.safetensors")
    assert {array.dtype.name for array in stored.values()} == {"bfloat16"}
    lost = max(
        np.abs(array.astype(np.float32) - merged[name].numpy()).max()
        for name, array in stored.items()
    )
    assert float(line.split("largest difference ")[1].split(";")[0]) == pytest.approx(
        lost, rel=0.01
    )
    assert lost > 1e-3


def test_a_run_of_float32_weights_keeps_them(tmp_path: Path) -> None:
    base = start_run(tmp_path)[0]
    assert finish(base).endswith("in float32, not rounded")
    model = load_checkpoint(base / "model", parts=("policy", "vq", "understanding"))
    again = load_checkpoint(export(base, tmp_path / "out", "original"), parts=("policy",))
    jax.tree.map(np.testing.assert_array_equal, model.policy, again.policy)
    raw = open_safetensors(base / "model" / "model.safetensors")
    assert {array.dtype.name for array in raw.values()} == {"float32"}


def test_bfloat16_parameters_are_exported_from_their_masters(tmp_path: Path) -> None:
    run, _, arrays = start_run(tmp_path, lora=False, dtype="bfloat16")
    assert "trained weights rounded to bfloat16, largest difference 0;" in finish(run)
    exact = load_checkpoint(export(run, tmp_path / "out", "hf", "--dtype", "float32")).policy
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, np.float32)), exact, arrays
    )
    weights = read_run_weights(run)
    assert {array.dtype.name for array in weights.arrays.values()} == {"float32"}


def test_a_finished_run_without_its_base_falls_back_on_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, *_ = start_run(tmp_path, dtype="bfloat16")
    finish(run)
    (tmp_path / "base").rename(tmp_path / "moved")
    export(run, tmp_path / "out", "original", "--dtype", "float32")
    said = capsys.readouterr().out
    assert "is taken as it is, not base and checkpoint: no checkpoint at" in said
    assert "holds rounded weights (BF16), which stay rounded" in said
    (tmp_path / "moved").rename(tmp_path / "base")
    write_json(run / "summary.json", {"steps": 9})  # its last checkpoint was damaged
    export(run, tmp_path / "out", "original")
    assert "its newest checkpoint is of step 3, not 9" in capsys.readouterr().out
    write_json(run / "summary.json", {"steps": 3})
    write_tiny(tmp_path / "base", PORTABLE, seed=1, dtype="bfloat16")  # trained again, say
    export(run, tmp_path / "out", "original")
    assert "base is not what it began from" in capsys.readouterr().out
    with pytest.raises(InputError, match="is the source itself"):
        export(run, run / "model", "original")


def test_a_run_that_went_back_is_exported_from_the_checkpoint_of_that_step_or_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, *_ = start_run(tmp_path)
    finish(run)

    def said(step: int) -> str:
        write_json(run / "summary.json", {"steps": 9, "patience": {"weights_of_step": step}})
        export(run, tmp_path / "out", "original")
        return capsys.readouterr().out

    assert f"step 3 of {run}: base in float32" in said(3)
    assert "taken as it is" in (lost := said(0)) and "of step 0, of which it has no" in lost
    (damaged,) = (run / "checkpoints/step_000003/meta").rglob("metadata")
    damaged.write_bytes(b"{}")
    assert "ended with the weights of step 3, but" in said(3)


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

"""Small jobs for tests: a random checkpoint of the shapes world, configurations, rows by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from jax.experimental.compilation_cache import compilation_cache
from tiny_checkpoints import write_tiny

from gotr1_jax import cli
from gotr1_jax.grpo import setup
from gotr1_jax.models.config import DecoderConfig, JanusConfig, SiglipConfig, VQConfig
from gotr1_jax.rewards import JudgeRequest, JudgeResult
from gotr1_jax.sampler.token_batch import TokenBatch
from gotr1_jax.tokenizers.janus import SpecialIds
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.metrics import MetricsWriter, is_timing, read_metrics

# The shapes world's image size and tokenizer; everything else as small as it goes.
SHAPES = JanusConfig(
    DecoderConfig(
        vocab_size=1440, hidden_size=32, mlp_size=64, num_layers=2, num_heads=2, num_kv_heads=2,
        head_dim=16,
    ),
    VQConfig(
        codebook_size=32, code_dim=4, base_channels=4, z_channels=8,
        encoder_multipliers=(1, 1, 1, 1, 1), decoder_multipliers=(1, 1, 1, 1, 1), num_res_blocks=1,
        norm_groups=2,
    ),
    SiglipConfig(image_size=64, patch_size=32, width=16, mlp_size=32, num_layers=1, num_heads=2),
    image_size=128,
)  # fmt: skip

# A model for steps alone: every size divides by 2, no text, an image of 9 tokens.
SPECIALS = SpecialIds(bos=1, eos=4, pad=2, boi=3, eoi=5, image=6)
STEP_MODEL = JanusConfig(
    DecoderConfig(
        vocab_size=12, hidden_size=16, mlp_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=4,
    ),
    VQConfig(
        codebook_size=20, code_dim=4, encoder_multipliers=(1, 1), decoder_multipliers=(1, 1)
    ),
    image_size=6,
)  # fmt: skip


def write_shapes(directory: Path) -> Path:
    """A random checkpoint of `SHAPES` in the released format; returns `directory`."""
    return write_tiny(directory, SHAPES)


def grpo_values(checkpoint: Path, run_dir: Path) -> dict[str, Any]:
    """Plain values of a GRPO job of 2 captions x 2 samples with adapters, 4 steps."""
    return {
        "run_dir": str(run_dir),
        "steps": 4,
        "samples_every": 2,
        "policy": {
            "init": str(checkpoint),
            "max_prompt_tokens": 48,
            "lora": {"rank": 2, "alpha": 4.0, "targets": ["q", "v", "down"]},
        },
        "captions": {"count": 8},
        "rollout": {
            "captions_per_step": 2,
            "samples_per_caption": 2,
            "max_plan_tokens": 8,
            "guidance": 2.0,
            "decode_batch": 4,
        },
        "reward": {"total": "sum"},
        # The hardest of the modes: replay runs both branches.
        "loss": {"logp_mode": "guided"},
        "entropy": {"text_target": 1.0, "image_target": 20.0, "learning_rate": 1e-3},
        "update": {"micro_batch": 4, "max_bad_updates": 2},
        "optimizer": {"learning_rate": 1e-2},
        "checkpoint": {"every": 2},
        "evaluation": {"captions": 2, "samples": 2, "shown": 2, "follow": False},
        "mesh": {"data": 1},
    }


def sft_values(vq: Path, run_dir: Path) -> dict[str, Any]:
    """Plain values of a supervised job that makes a new model, 4 steps."""
    return {
        "run_dir": str(run_dir),
        "vq": str(vq),
        "steps": 4,
        "batch_size": 4,
        "micro_batch": 2,
        "caption_dropout": 0.25,
        "log_every": 1,
        "model": {
            "decoder": {
                "vocab_size": 1440, "hidden_size": 32, "mlp_size": 64, "num_layers": 2,
                "num_heads": 2, "num_kv_heads": 2, "head_dim": 16,
            },
            "siglip": {
                "image_size": 64, "patch_size": 32, "width": 16, "mlp_size": 32,
                "num_layers": 1, "num_heads": 2,
            },
        },
        "data": {
            "examples": 8,
            "unfaithful_fraction": 0.5,
            "max_prompt_tokens": 48,
            "max_plan_tokens": 80,
            "cache_dir": str(run_dir.parent / "picture_tokens"),
        },
        "optimizer": {"learning_rate": 1e-2},
        "checkpoint": {"every": 2},
        "mesh": {"data": 1},
    }  # fmt: skip


def write_config(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Brightness:
    """A judge that grades every image differently: by its channels' means and its plan."""

    terms: tuple[str, ...] = ("sem", "spa", "ri", "pi")
    identity: str = "brightness"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        results = []
        for request in requests:
            red, green, blue = request.image.reshape(-1, 3).mean(axis=0) / 255
            words = len(set(request.plan.text)) / 100
            results.append(JudgeResult({"sem": words, "spa": red, "ri": green, "pi": blue}))
        return results


@dataclass(frozen=True)
class Blind(Brightness):
    """As `Brightness`, but of every second image it cannot tell."""

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        results = super().judge(requests)
        unknown = dict.fromkeys(self.terms, float("nan"))
        return [JudgeResult(unknown) if i % 2 else r for i, r in enumerate(results)]


def random_rows(count: int, seed: int = 0) -> TokenBatch:
    """Numpy rows for `STEP_MODEL`: prompts of 2..5, plans of 2..5 with BOI, the longest forced."""
    rng = np.random.default_rng(seed)
    prompt_len = rng.integers(2, 6, count)
    plan_len = rng.integers(2, 6, count)
    plan_ids = rng.integers(7, 12, (count, 5))
    plan_ids[np.arange(count), plan_len - 1] = SPECIALS.boi
    chosen = np.arange(5)[None, :] < plan_len[:, None]
    chosen[plan_len == 5, 4] = False
    prompts = rng.integers(7, 12, (count, 5))
    prompts[:, 0] = SPECIALS.bos
    return TokenBatch(
        prompt_ids_BC=prompts.astype(np.int32),
        prompt_len_B=prompt_len.astype(np.int32),
        plan_ids_BT=plan_ids.astype(np.int32),
        plan_len_B=plan_len.astype(np.int32),
        plan_mask_BT=chosen,
        image_ids_BU=rng.integers(0, 20, (count, 9), np.int32),
    )


def host(tree: Any) -> Any:
    """A tree's arrays as numpy copies: they outlive a donation."""
    return jax.tree.map(lambda x: np.array(x), tree)


def assert_equal_trees(one: Any, two: Any) -> None:
    """Equal to the bit, leaf by leaf."""
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def judge_by_brightness(patch: pytest.MonkeyPatch) -> None:
    """GRPO jobs in this process, whose devices are set already: `Brightness` is their judge."""
    patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    patch.setattr(setup, "make_judge", lambda *_: Brightness())


def run_grpo(values: dict[str, Any], *words: str) -> int:
    """The exit code of `gotr1 train grpo` on a file of `values`, which lies beside its run."""
    path = Path(values["run_dir"]).parent / "grpo.yaml"
    return cli.run(["train", "grpo", "--config", str(write_config(path, values)), *words])


@contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Inside, jobs of the same sizes share their compiled programs, which lie in `folder`: one of
    the whole session, unless processes of a test's own share it."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(folder), 0.0)):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def record_saves(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """From now on: the trees that jobs give to be saved, by step, as numpy copies."""
    saved: dict[int, Any] = {}
    save = Checkpoints.save

    def recording(self: Checkpoints, step: int, tree: Any, *rest: Any, **named: Any) -> None:
        saved[step] = host(tree)
        save(self, step, tree, *rest, **named)

    monkeypatch.setattr(Checkpoints, "save", recording)
    return saved


def interrupt_after(monkeypatch: pytest.MonkeyPatch, line: int) -> None:
    """From now on a job is interrupted when it has written the metrics of step `line`."""
    write = MetricsWriter.write

    def interrupting(self: MetricsWriter, step: int, values: Mapping[str, Any]) -> None:
        write(self, step, values)
        if step == line:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricsWriter, "write", interrupting)


def steady_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics without those that hang on the clock."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not is_timing(k)} for line in lines]

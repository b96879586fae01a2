"""What is measured: policies and a judge of the released sizes, or tiny ones of the same kind.

The settings are those of the shipped recipes, with the layout of docs/fits.md for one device. Plans
have 256 tokens, about as many as GoT-R1's have, and all of them are full: nothing is padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gotr1_jax.aot.sizes import JUDGE_SIZES, POLICY_SIZES
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.images.qwen import Geometry
from gotr1_jax.models.config import DecoderConfig, JanusConfig, VQConfig
from gotr1_jax.models.qwen_config import QwenConfig, QwenVisionConfig
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig
from gotr1_jax.vlm_engine.config import QwenEngineConfig

PROMPT_TOKENS, PLAN_TOKENS = 48, 256
# About as long as a trained judge's answers are. Random weights hardly ever end one.
QUESTIONS = QuestionsConfig(score_tokens=48, boxes_tokens=64)
_ROOMY = 120e9  # bytes of a device on which the layout of an H200 fits, else that of an H100
# remat, update.micro_batch, rollout.captions_at_once (0: all); as in docs/fits.md.
_LAYOUTS = {
    ("1b", True): ("full", 16, 0),
    ("1b", False): ("full", 8, 4),
    ("7b", True): ("full", 4, 2),
    ("7b", False): ("full", 2, 1),
}
_SHARED = {
    "--rollout.max_plan_tokens": str(PLAN_TOKENS),
    "--policy.max_prompt_tokens": str(PROMPT_TOKENS),
    "--rollout.decode_batch": "32",
    "--evaluation.captions": "64",  # so that it draws no more rows at once than a step
}


@dataclass(frozen=True)
class PolicyToMeasure:
    """A policy with random weights, and the step of GRPO that it is measured in.

    Attributes:
      name: of the sections.
      sizes: of the model.
      config: of the job.
      rows: numbers of rows of the loops, in the order of their worth.
      compile_options: of the `gotr1 compile` that predicts the same job; empty: there is none.
    """

    name: str
    sizes: JanusConfig
    config: GrpoConfig
    rows: tuple[int, ...]
    compile_options: tuple[str, ...] = ()

    @property
    def plan_tokens(self) -> int:
        """Tokens of a plan, without BOI."""
        return self.config.sampling.max_plan_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt, none of them padding."""
        return self.config.policy.max_prompt_tokens

    @property
    def step_rows(self) -> int:
        """Rows that a step draws at once."""
        return self.config.rollout.rows_at_once

    @property
    def update_rows(self) -> int:
        """Rows of the measured update: four micro-batches."""
        return min(self.config.rollout.rows, 4 * self.config.update.micro_batch)


@dataclass(frozen=True)
class JudgeToMeasure:
    """A judge with random weights.

    Attributes:
      sizes, engine: of the model, and its settings.
      questions: of a sample, those of the shipped recipes with shorter answers.
      samples: that it is asked about; image_size: sides of their images, in pixels.
    """

    sizes: QwenConfig
    engine: QwenEngineConfig
    questions: QuestionsConfig
    samples: int
    image_size: int


def released_policy(size: str, hbm_bytes: int) -> PolicyToMeasure:
    """The 1b or 7b in the layout that fits a device of so many bytes."""
    remat, micro, captions = _LAYOUTS[size, hbm_bytes >= _ROOMY]
    overrides = _SHARED | {
        "--policy.remat": remat,
        "--update.micro_batch": str(micro),
        "--rollout.captions_at_once": str(captions),
    }
    words = tuple(word for pair in overrides.items() for word in pair)
    recipe = f"gotr1_{size}_grpo"
    config = GrpoConfig.from_file(Path(recipe), words)
    at_once = config.rollout.rows_at_once
    rows = tuple(dict.fromkeys((at_once, 64, 16, 128, 1)))
    options = ("--config", recipe, "--policy-size", size, "--judge-size", "7b", *words)
    return PolicyToMeasure(size.upper(), POLICY_SIZES[size], config, rows, options)


def released_judge() -> JudgeToMeasure:
    """Qwen2.5-VL-7B as in the recipes; a quarter of a step's samples."""
    engine = QwenEngineConfig("random")
    return JudgeToMeasure(JUDGE_SIZES["7b"], engine, QUESTIONS, 32, 384)


def tiny_policy() -> PolicyToMeasure:
    """For trying the sections on a CPU."""
    sizes = JanusConfig(
        DecoderConfig(
            vocab_size=512, hidden_size=32, mlp_size=64, num_layers=2, num_heads=4, num_kv_heads=4,
            head_dim=8,
        ),
        VQConfig(
            codebook_size=64, code_dim=4, base_channels=8, z_channels=8, num_res_blocks=1,
            encoder_multipliers=(1, 1, 1, 1, 1), decoder_multipliers=(1, 1, 1, 1, 1), norm_groups=2,
        ),
        image_size=64,
    )  # fmt: skip
    words = (
        "--policy.dtype", "bfloat16", "--policy.param_dtype", "bfloat16", "--policy.remat", "full",
        "--policy.max_prompt_tokens", "8", "--rollout.captions_per_step", "2",
        "--rollout.samples_per_caption", "4", "--rollout.captions_at_once", "1",
        "--rollout.max_plan_tokens", "12", "--rollout.guidance", "5", "--rollout.decode_batch", "4",
        "--rollout.text_temperature", "1", "--rollout.image_temperature", "1",
        "--update.updates_per_rollout", "1", "--update.micro_batch", "2",
    )  # fmt: skip
    config = GrpoConfig.from_file(Path("shapes_grpo"), words)
    return PolicyToMeasure("tiny", sizes, config, (4, 1))


def tiny_judge() -> JudgeToMeasure:
    """For trying the sections on a CPU."""
    text = DecoderConfig(
        vocab_size=2048, hidden_size=32, mlp_size=48, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=8, rope_theta=1e6, qkv_bias=True, mrope_section=(1, 1, 2),
    )  # fmt: skip
    vision = QwenVisionConfig(32, 40, 2, 2, 32, (1,), geometry=Geometry())
    engine = QwenEngineConfig("random", rows=4, max_pixels=112 * 112)
    questions = replace(QUESTIONS, score_tokens=4, boxes_tokens=4, canvas=112)
    return JudgeToMeasure(QwenConfig(text, vision), engine, questions, 2, 64)

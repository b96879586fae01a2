"""What an experiment consists of: one dataclass a job, its parts shared between jobs.

Each field is documented where it stands; `configs/` holds one complete YAML an experiment.
"""

from gotr1_jax.schema.ablation import AblationConfig, VariantConfig
from gotr1_jax.schema.grpo import (
    CaptionsConfig,
    EntropyConfig,
    EvaluationConfig,
    GrpoConfig,
    GrpoLossConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    UpdateConfig,
)
from gotr1_jax.schema.sft import (
    ModelSize,
    SftConfig,
    SftDataConfig,
)
from gotr1_jax.schema.shared import (
    CheckpointConfig,
    DistributedConfig,
    MeshConfig,
    OptimizerConfig,
    check_seed,
    positive,
)
from gotr1_jax.schema.vq import (
    CropConfig,
    RestartConfig,
    VqLossWeights,
    VqTrainConfig,
)

__all__ = [
    "AblationConfig",
    "CaptionsConfig",
    "CheckpointConfig",
    "CropConfig",
    "DistributedConfig",
    "EntropyConfig",
    "EvaluationConfig",
    "GrpoConfig",
    "GrpoLossConfig",
    "MeshConfig",
    "ModelSize",
    "OptimizerConfig",
    "PolicyConfig",
    "RestartConfig",
    "RewardConfig",
    "RolloutConfig",
    "SftConfig",
    "SftDataConfig",
    "UpdateConfig",
    "VariantConfig",
    "VqLossWeights",
    "VqTrainConfig",
    "check_seed",
    "positive",
]

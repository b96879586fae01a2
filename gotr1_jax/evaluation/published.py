"""The papers' numbers, shown next to a benchmark's own."""

from __future__ import annotations

# Captions behind these numbers: per category of T2I-CompBench, and in GenEval.
T2I_COMPBENCH_CAPTIONS = 300
GENEVAL_CAPTIONS = 553

# arXiv 2505.17022v2 (GoT-R1), table of T2I-CompBench; SFT: GoT-R1-1B before RL.
T2I_COMPBENCH = {
    "color": (0.3411, 0.6336, 0.7632, 0.8139),
    "shape": (0.2261, 0.4456, 0.5174, 0.5549),
    "texture": (0.2696, 0.5621, 0.6589, 0.7339),
    "spatial": (0.0968, 0.2140, 0.2674, 0.3306),
    "non_spatial": (0.2808, 0.3070, 0.3101, 0.3169),
    "complex": (0.2721, 0.3490, 0.3749, 0.3944),
}
T2I_COMPBENCH_MODELS = ("Janus-Pro-1B", "SFT 1B", "GoT-R1-1B", "GoT-R1-7B")

# The same paper.
GENEVAL = {"GoT-R1-7B": 0.75}

REASONGEN = (
    "ReasonGen-R1 (arXiv 2505.24875) reports gains over Janus-Pro-7B only: GenEval +6 %, "
    "DPG-Bench +1.7 %, T2I-CompBench +13.4 %."
)


def t2i_compbench(category: str) -> dict[str, float]:
    """The papers' numbers of a category, by model; empty where there are none."""
    return dict(zip(T2I_COMPBENCH_MODELS, T2I_COMPBENCH.get(category, ())))

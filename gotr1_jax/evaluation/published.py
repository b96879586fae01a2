"""The papers' numbers, shown next to a benchmark's own."""

from __future__ import annotations

# Captions behind these numbers: per category of T2I-CompBench, and in GenEval.
T2I_COMPBENCH_CAPTIONS = 300
GENEVAL_CAPTIONS = 553

# arXiv 2505.17022v2 (GoT-R1), table of T2I-CompBench; SFT: GoT-R1-1B before RL. The last two:
# arXiv 2505.00703 (T2I-R1), table 1.
T2I_COMPBENCH = {
    "color": (0.3411, 0.6336, 0.7632, 0.8139, 0.6359, 0.8130),
    "shape": (0.2261, 0.4456, 0.5174, 0.5549, 0.3528, 0.5852),
    "texture": (0.2696, 0.5621, 0.6589, 0.7339, 0.4936, 0.7243),
    "spatial": (0.0968, 0.2140, 0.2674, 0.3306, 0.2061, 0.3378),
    "non_spatial": (0.2808, 0.3070, 0.3101, 0.3169, 0.3085, 0.3090),
    "complex": (0.2721, 0.3490, 0.3749, 0.3944, 0.3559, 0.3993),
}
T2I_COMPBENCH_MODELS = (
    "Janus-Pro-1B", "SFT 1B", "GoT-R1-1B", "GoT-R1-7B", "Janus-Pro-7B", "T2I-R1"
)  # fmt: skip

# arXiv 2501.17811 (Janus-Pro), table 4, by GenEval's tasks; the mean of GoT-R1-7B: its paper.
JANUS_PRO_MODELS = ("Janus-Pro-1B", "Janus-Pro-7B")
JANUS_PRO_GENEVAL = {
    "single_object": (0.98, 0.99),
    "two_object": (0.82, 0.89),
    "counting": (0.51, 0.59),
    "colors": (0.89, 0.90),
    "position": (0.65, 0.79),
    "color_attr": (0.56, 0.66),
    "mean": (0.73, 0.80),
}
GENEVAL_MEANS = {"GoT-R1-7B": 0.75}
# The same paper, table 5, over 100, by DPG-Bench's broad categories.
JANUS_PRO_DPG = {
    "dpg": (0.8263, 0.8419),
    "global": (0.8758, 0.8690),
    "entity": (0.8863, 0.8890),
    "attribute": (0.8817, 0.8940),
    "relation": (0.8898, 0.8932),
    "other": (0.8830, 0.8948),
}

REASONGEN = (
    "ReasonGen-R1 (arXiv 2505.24875) reports gains over Janus-Pro-7B only: GenEval +6 %, "
    "DPG-Bench +1.7 %, T2I-CompBench +13.4 %."
)


def t2i_compbench(category: str) -> dict[str, float]:
    """The papers' numbers of a category, by model; empty where there are none."""
    return dict(zip(T2I_COMPBENCH_MODELS, T2I_COMPBENCH.get(category, ())))


def geneval(task: str) -> dict[str, float]:
    """The papers' numbers of a task, or of the "mean" of all, by model."""
    means = GENEVAL_MEANS if task == "mean" else {}
    return dict(zip(JANUS_PRO_MODELS, JANUS_PRO_GENEVAL.get(task, ()))) | means


def dpg(category: str) -> dict[str, float]:
    """The papers' numbers of a category, or of "dpg" for all, by model."""
    return dict(zip(JANUS_PRO_MODELS, JANUS_PRO_DPG.get(category, ())))

"""How well a judge locates the objects of the shapes world: its boxes against the exact judge's.

    python tests/scale/located_boxes.py samples/pictures.jsonl [--checkpoint embedded_judge]

Each sample's planned names are searched for in its image, in the words of `ri`. Prints how many of
the answers could be read, how often the judge rightly says whether anything of the name's color and
shape is there, and the IoU of its boxes with those of the exact judge (0 where it gives none).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from gotr1_jax.judge_sft.answers import grade, search_answer
from gotr1_jax.plan import Box, match_objects
from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.rewards.calibration.labels import read_labels
from gotr1_jax.rewards.multimodal.box_answers import parse_boxes
from gotr1_jax.rewards.multimodal.client import EngineClient
from gotr1_jax.rewards.multimodal.questions import (
    QuestionsConfig,
    distinct_names,
    search_question,
    searched_objects,
)
from gotr1_jax.vlm_engine.base import make_image_input
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.engine import QwenEngine


def main() -> None:
    """Print the figures as a row of a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path)
    parser.add_argument("--checkpoint", default="embedded_judge")
    options = parser.parse_args()
    asked, right = [], []
    for labelled in read_labels(options.samples).samples:
        sample = grade(labelled.sample.read_request())
        image, config = make_image_input(sample.request.image), QuestionsConfig()
        for name in distinct_names(searched_objects(sample.request.plan, config)):
            asked.append(search_question(name, image, config))
            answer = parse_boxes(search_answer(name, sample, (SCALE, SCALE)))
            right.append([("", Box(*map(int, box))) for box in answer])
    engine = QwenEngine.from_config(QwenEngineConfig(options.checkpoint, "float32"))
    ious, agreed, readable = list[float](), list[bool](), 0
    for question, answer, boxes in zip(asked, EngineClient(engine).ask(asked), right, strict=True):
        readable += answer.boxes is not None
        height, width = engine.image_size(*question.images[0].size)
        sides = SCALE / np.array([width, height, width, height])
        found = [("", Box(*map(int, np.rint(box * sides)))) for box in answer.boxes or ()]
        agreed.append(bool(found) == bool(boxes))
        ious += [iou for _, _, iou in match_objects(boxes, found)]
    print(
        f"{len(asked)} names: {readable / len(asked):.1%} readable, {np.mean(agreed):.1%} rightly "
        f"there or not; {len(ious)} objects: IoU {np.mean(ious):.3f}, at least .5 of "
        f"{np.mean(np.array(ious) >= 0.5):.1%}"
    )


if __name__ == "__main__":
    main()

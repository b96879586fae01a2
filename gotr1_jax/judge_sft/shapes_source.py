"""Samples of the shapes world with a multimodal judge's questions and the exact judge's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from gotr1_jax.images.qwen import Preprocessing, QwenImage, image_grid, read_image, resized_size
from gotr1_jax.images.qwen_pack import RowShape
from gotr1_jax.judge_sft.answers import (
    INVENTORY,
    GradedSample,
    grade,
    inventory_answer,
    right_answer,
    search_answer,
)
from gotr1_jax.judge_sft.batch import TaughtExample, TaughtText, TaughtTurn, example_patches
from gotr1_jax.judge_sft.config import JudgeShapesConfig
from gotr1_jax.plan import Box, format_object, parse_plan
from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.multimodal.questions import (
    LAYOUT_TERM,
    SEARCH_TERM,
    distinct_names,
    make_questions,
    search_question,
    searched_objects,
)
from gotr1_jax.rewards.stored_samples import StoredSample
from gotr1_jax.shapes.captions import (
    CaptionSpec,
    ObjectSpec,
    contradict,
    sample_caption,
    write_caption,
)
from gotr1_jax.shapes.plans import write_plan
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.scenes import Scene, sample_scene
from gotr1_jax.shapes.vocabulary import COLORS, IMAGE_SIZE, MAX_OBJECTS, SHAPES, SIZES
from gotr1_jax.vlm_engine.base import ImageInput, Question, make_image_input

# Separates the random stream of these samples from others of the same seed.
_STREAM = 0x6A756467
# Sides count twice: they are hardest to see.
_CHANGES = ("color", "shape", "size", "side", "side", "fewer", "more", "other")
# Share of the plans whose boxes are moved away from what is drawn.
_MOVED_BOXES = 0.5
_ABSENT_NAMES = 0.15
_KEPT_SCENE = 0.6  # of the images: drawn from the plan, not from the caption anew

Reconstruct = Callable[[np.ndarray], np.ndarray]


class JudgedShapes:
    """`len` examples; each is a function of (seed, index) alone.

    An example is one sample with all questions about it: a question for each of sem, pi and
    verdict, one for each layout of spa, and `searches` of ri. Only those that the multimodal judge
    would ask: a sample whose plan has no box has no question about its boxes.
    """

    def __init__(
        self,
        config: JudgeShapesConfig,
        preprocessing: Preprocessing,
        seed: int,
        reconstruct: Reconstruct | None = None,
        samples: Sequence[StoredSample] = (),
        thousandths: bool = False,
        objects: bool = False,
    ) -> None:
        """
        Args:
          config: of the samples.
          preprocessing: of the model's images.
          seed: of the random choices.
          reconstruct: uint8 (H, W, 3) -> the same, through an image tokenizer.
          samples: of a policy.
          thousandths: boxes are answered so, not in pixels of the model's image.
          objects: examples have the objects of their images in place of questions.
        """
        self._config, self._preprocessing, self._seed = config, preprocessing, seed
        self._reconstruct, self._samples = reconstruct, samples
        self._thousandths, self._objects = thousandths, objects

    def __len__(self) -> int:
        return self._config.examples

    @property
    def turns(self) -> int:
        """Questions of an example, at most."""
        own = {LAYOUT_TERM: len(self._config.layouts), SEARCH_TERM: self._config.searches}
        return sum(own.get(term, 1) for term in self._config.terms) + self._config.inventory

    def patches(self) -> RowShape:
        """The row of patches that the largest image and its sketch fill."""
        sizes = {(IMAGE_SIZE, IMAGE_SIZE)}
        sizes |= {sample.read_request().image.shape[:2] for sample in self._samples}
        side, shapes = self._config.questions.canvas, []
        for height, width in sizes:
            grids = [image_grid(height, width, self._preprocessing)]
            if "canvas" in self._config.layouts:
                scale = side / max(height, width)
                sketch = round(scale * height), round(scale * width)
                grids.append(image_grid(*sketch, self._preprocessing))
            shapes.append(example_patches(grids, self._preprocessing.geometry))
        return RowShape(max(s.patches for s in shapes), max(s.windows for s in shapes))

    def text(self, index: int) -> TaughtText:
        """An example without its pixels; with its questions, which a tokenizer is made of."""
        return self._asked(index).text

    def __getitem__(self, index: int) -> TaughtExample:
        return self._seen(index) if self._objects else self._asked(index)

    def _seen(self, index: int) -> TaughtExample:
        """The image of a sample and its sketch, with what is in them."""
        sample = grade(self.draw_request(np.random.default_rng((_STREAM, self._seed, index))))
        seen = [(make_image_input(sample.request.image), tuple(sample.shown))]
        if "canvas" in self._config.layouts:
            questions = replace(self._config.questions, layout="canvas")
            for question in make_questions(sample.request, [LAYOUT_TERM], questions)[LAYOUT_TERM]:
                seen.append((question.images[0], tuple(sample.request.plan.boxes)))
        images = tuple(self._pixels(image) for image, _ in seen)
        return TaughtExample(f"example {index}", images, (), tuple(o for _, o in seen))

    def _asked(self, index: int) -> TaughtExample:
        rng = np.random.default_rng((_STREAM, self._seed, index))
        sample = grade(self.draw_request(rng))
        asked = list(self._questions(rng, sample))
        images: dict[str, ImageInput] = {p.key: p for q, _ in asked for p in q.images}
        order = {key: i for i, key in enumerate(images)}
        turns = tuple(
            TaughtTurn(q.instruction, tuple(order[p.key] for p in q.images), q.text, answer)
            for q, answer in asked
        )
        return TaughtExample(f"example {index}", tuple(map(self._pixels, images.values())), turns)

    def draw_request(self, rng: np.random.Generator) -> JudgeRequest:
        """A sample: of the policy's, or drawn anew."""
        config = self._config
        if self._samples and rng.random() < config.samples_fraction:
            return self._samples[int(rng.integers(len(self._samples)))].read_request()
        caption, plan, scene = draw_sample(rng, config.true_plans, config.true_images)
        image = render(scene)
        if self._reconstruct is not None and rng.random() < config.vq_fraction:
            image = self._reconstruct(image)
        return JudgeRequest(caption, parse_plan(plan), image)

    def _questions(
        self, rng: np.random.Generator, sample: GradedSample
    ) -> list[tuple[Question, str]]:
        """The questions about a sample, with their answers, in a fixed order."""
        config = self._config
        asked: list[tuple[Question, str]] = []
        for term in config.terms:
            if term == SEARCH_TERM:
                asked += self._searches(rng, sample)
                continue
            for layout in config.layouts if term == LAYOUT_TERM else config.layouts[:1]:
                questions = replace(config.questions, layout=layout)
                for question in make_questions(sample.request, [term], questions)[term]:
                    answer = right_answer(term, question, sample)
                    asked += [] if answer is None else [(question, answer)]
        if config.inventory:
            image = make_image_input(sample.request.image)
            question = Question("boxes", (image,), INVENTORY, "", config.questions.boxes_tokens)
            asked.append((question, inventory_answer(sample, self._box_size(image))))
        return asked

    def _searches(
        self, rng: np.random.Generator, sample: GradedSample
    ) -> list[tuple[Question, str]]:
        """Some of the planned names, and one that may be of nothing in the image."""
        config = self._config
        names = distinct_names(searched_objects(sample.request.plan, config.questions))
        rng.shuffle(names)
        names = names[: config.searches]
        if len(names) < config.searches or rng.random() < _ABSENT_NAMES:
            names = [*names[: config.searches - 1], _random_object(rng).name]
        image = make_image_input(sample.request.image)
        size = self._box_size(image)
        return [
            (search_question(n, image, config.questions), search_answer(n, sample, size))
            for n in names
        ]

    def _box_size(self, image: ImageInput) -> tuple[int, int]:
        """(height, width) in the units of an answer's boxes."""
        if self._thousandths:
            return SCALE, SCALE
        return resized_size(*image.size, self._preprocessing)

    def _pixels(self, image: ImageInput) -> QwenImage:
        return read_image(Image.fromarray(image.pixels), self._preprocessing)


def draw_sample(
    rng: np.random.Generator, true_plans: float, true_images: float
) -> tuple[str, str, Scene]:
    """A caption, the text of a plan, and the scene of an image; each may contradict the caption.

    Mostly the image follows the plan, so that ri is not 0 throughout, with a change of its own
    unless it is to keep to the caption.
    """
    spec = sample_caption(rng, "train")
    true_plan, true_image = rng.random() < true_plans, rng.random() < true_images
    planned = _scene(rng, spec if true_plan else change(rng, spec))
    scene = planned
    if true_image and not true_plan:
        scene = _scene(rng, spec)
    elif not true_image and rng.random() < _KEPT_SCENE:
        scene = repaint(rng, planned)
    elif not true_image:
        scene = _scene(rng, change(rng, spec))
    # The words between the objects are the caption's, as a policy's are, or what is planned.
    says_caption = len(planned.objects) > 1 and rng.random() < 0.5
    plan = write_plan(replace(planned, caption=spec) if says_caption else planned)
    if rng.random() < _MOVED_BOXES:
        plan = move_boxes(rng, plan)
    return write_caption(spec), plan, scene


def change(rng: np.random.Generator, spec: CaptionSpec) -> CaptionSpec:
    """A caption that differs from `spec` in one way."""
    kind = _CHANGES[int(rng.integers(len(_CHANGES)))]
    objects, count = list(spec.objects), len(spec.objects)
    at = int(rng.integers(count))
    if kind == "side" and spec.relation is not None:
        return contradict(rng, spec, "side")
    if kind == "shape":
        objects[at] = replace(objects[at], shape=_other(rng, SHAPES, objects[at].shape))
    elif kind == "size" and (size := objects[at].size) is not None:
        objects[at] = replace(objects[at], size=_other(rng, SIZES, size))
    elif kind == "fewer" and count > 1:
        del objects[at]
    elif kind == "more" and count < MAX_OBJECTS:
        objects.append(_random_object(rng))
    elif kind == "other":
        return sample_caption(rng, "train")
    else:
        return contradict(rng, spec, "color")
    # Without its first two objects a relation says something else.
    return CaptionSpec(tuple(objects), spec.relation if len(objects) >= count else None)


def repaint(rng: np.random.Generator, scene: Scene) -> Scene:
    """A scene with one object in another color or shape, or without it; boxes stay."""
    objects = list(scene.objects)
    at = int(rng.integers(len(objects)))
    spec, kind = objects[at].spec, int(rng.integers(3))
    if kind == 0:
        new = replace(spec, color=_other(rng, tuple(COLORS), spec.color))
        objects[at] = replace(objects[at], spec=new)
    elif kind == 1 or len(objects) == 1:
        new = replace(spec, shape=_other(rng, SHAPES, spec.shape))
        objects[at] = replace(objects[at], spec=new)
    else:
        del objects[at]
    return replace(scene, objects=tuple(objects))


def move_boxes(rng: np.random.Generator, plan: str) -> str:
    """The plan with some of its boxes moved, by up to a quarter of the image, or resized."""
    parsed = parse_plan(plan)
    pieces, end = [], 0
    for item in parsed.objects:
        box = item.box
        if box is None or rng.random() < 0.5:
            continue
        shift = rng.integers(-250, 251, 2)
        grow = rng.integers(-80, 81, 2)
        corners = np.array([box.x1, box.y1, box.x2, box.y2]) + np.concatenate([shift, shift + grow])
        x1, y1, x2, y2 = (int(v) for v in np.clip(corners, 0, SCALE - 1))
        if x1 >= x2 or y1 >= y2:
            continue
        pieces += [plan[end : item.start], format_object(item.name, Box(x1, y1, x2, y2))]
        end = item.end
    return "".join([*pieces, plan[end:]])


def _scene(rng: np.random.Generator, spec: CaptionSpec) -> Scene:
    """A scene of a caption; of its objects alone where the relation leaves no room for them."""
    try:
        return sample_scene(rng, spec)
    except ValueError:  # no such scene
        return sample_scene(rng, replace(spec, objects=spec.objects[:2], relation=None))


def _random_object(rng: np.random.Generator) -> ObjectSpec:
    return ObjectSpec(
        SHAPES[int(rng.integers(len(SHAPES)))],
        tuple(COLORS)[int(rng.integers(len(COLORS)))],
        SIZES[int(rng.integers(len(SIZES)))],
    )


def _other(rng: np.random.Generator, values: Sequence[str], taken: str) -> str:
    rest = [value for value in values if value != taken]
    return rest[int(rng.integers(len(rest)))]

"""Examples as arrays: tokens of questions and answers, and the patches of their images.

Letters: E examples, K rows of text of an example, S tokens of a row, Q turns of an example, U units
of its images (each is one token of a turn that shows it). Several turns of an example share a row,
each a sequence of its own that sees no other. The images of an example are in the row of patches of
the same number, so that nothing crosses devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import Geometry, QwenImage, count_windows
from gotr1_jax.images.qwen_pack import Grid, PatchBatch, RowShape, mrope_positions, pack_images
from gotr1_jax.judge_sft.objects import UnitLabels, label_units
from gotr1_jax.plan import Box
from gotr1_jax.tokenizers.qwen import ImageTokens, QwenTokenizer


@dataclass(frozen=True)
class TaughtTurn:
    """A question and its right answer.

    Attributes:
      instruction, text: in front of the images and behind them.
      images: shown in this order, as numbers of the example's images.
      answer: what the model is to write.
      system: the system message; None: the model's usual one.
    """

    instruction: str
    images: tuple[int, ...]
    text: str
    answer: str
    system: str | None = None


@dataclass(frozen=True)
class TaughtText:
    """An example without its pixels: what its lengths follow from.

    Attributes:
      where: its name in messages.
      grids: units (rows, columns) of each of its images.
      turns: about these images.
    """

    where: str
    grids: tuple[Grid, ...]
    turns: tuple[TaughtTurn, ...]


@dataclass(frozen=True)
class TaughtExample:
    """Images, and turns about them; `where` is its name in messages.

    objects: names and boxes of what is in each image, where they are to be learned; else empty.
    """

    where: str
    images: tuple[QwenImage, ...]
    turns: tuple[TaughtTurn, ...]
    objects: tuple[tuple[tuple[str, Box], ...], ...] = ()

    @property
    def text(self) -> TaughtText:
        """The example without its pixels."""
        return TaughtText(self.where, tuple(image.grid for image in self.images), self.turns)


@dataclass(frozen=True)
class BatchShape:
    """Sizes of the arrays of a batch.

    Attributes:
      turns: of an example, at most.
      rows: of text, of an example.
      tokens: of a row.
      answer_tokens: of an answer, at most, with the end of its message.
      patches: of an example's images; None where no example has one.
    """

    turns: int
    rows: int
    tokens: int
    answer_tokens: int
    patches: RowShape | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class JudgeBatch:
    """Rows on the right of which is padding.

    Attributes:
      ids_EKS: int32 token ids.
      sequences_EKS: int32 number of the token's turn in its example, from 1; 0 is padding.
      places_EKS: int32 unit of the example's images that stands at an image token; -1 for text.
      positions_EK3S: int32 positions in time, height and width, of each turn from 0.
      starts_EQ: int32 index of each answer's first token in the example's rows, joined (K·S).
      lengths_EQ: int32 tokens of each answer, its end of message included; 0: no such turn.
      patches: the images, a row an example; None where there are none.
      labels: of the images' units, where objects are to be learned.
    """

    ids_EKS: np.ndarray
    sequences_EKS: np.ndarray
    places_EKS: np.ndarray
    positions_EK3S: np.ndarray
    starts_EQ: np.ndarray
    lengths_EQ: np.ndarray
    patches: PatchBatch | None
    labels: UnitLabels | None = None


@dataclass(frozen=True)
class TokenizedTurn:
    """A turn as int32 ids (S,), and where its answer starts in them."""

    ids_S: np.ndarray
    start: int


def tokenize_turn(
    turn: TaughtTurn, grids: Sequence[Grid], tokenizer: QwenTokenizer
) -> TokenizedTurn:
    """The chat up to the answer, the answer, and the end of the message.

    The answer is encoded apart, as the model that is asked writes it.
    """
    shown = (ImageTokens(grids[i][0] * grids[i][1]) for i in turn.images)
    chat = tokenizer.encode_chat([turn.instruction, *shown, turn.text], turn.system)
    answer = [*tokenizer.encode(turn.answer), tokenizer.ids.message_end]
    return TokenizedTurn(np.array([*chat, *answer], np.int32), len(chat))


def example_patches(grids: Sequence[Grid], geometry: Geometry) -> RowShape:
    """The row of patches that images of these sizes fill."""
    units = sum(h * w for h, w in grids)
    windows = sum(count_windows(grid, geometry) for grid in grids)
    return RowShape(units * geometry.unit_patches, windows)


def too_long(turn: TokenizedTurn, shape: BatchShape) -> str:
    """Which setting a turn is too long for, and by how much; empty where it fits."""
    answer = len(turn.ids_S) - turn.start
    if len(turn.ids_S) > shape.tokens:
        return f"{len(turn.ids_S)} tokens, over data.max_tokens {shape.tokens}"
    if answer > shape.answer_tokens:
        return f"an answer of {answer} tokens, over data.max_answer_tokens {shape.answer_tokens}"
    return ""


def assign_turns(turns: Sequence[TokenizedTurn], shape: BatchShape) -> list[tuple[int, int] | None]:
    """(row, first token) of each turn; None for one that is too long or for which no row has room.

    The longest are placed first, each into the first row with room.
    """
    used = [0] * shape.rows
    places: list[tuple[int, int] | None] = [None] * len(turns)
    for i in sorted(range(len(turns)), key=lambda i: -len(turns[i].ids_S)):
        size = len(turns[i].ids_S)
        row = next((k for k, n in enumerate(used) if n + size <= shape.tokens), None)
        if row is not None and not too_long(turns[i], shape):
            places[i] = row, used[row]
            used[row] += size
    return places


def make_batch(
    examples: Sequence[TaughtExample],
    tokenizer: QwenTokenizer,
    geometry: Geometry,
    shape: BatchShape,
) -> JudgeBatch:
    """The arrays of some examples; turns that do not fit, see `assign_turns`, are left out.

    Raises InputError for images that do not fit into `shape`.
    """
    E, K, S = len(examples), shape.rows, shape.tokens
    batch = JudgeBatch(
        ids_EKS=np.full((E, K, S), tokenizer.ids.text_end, np.int32),
        sequences_EKS=np.zeros((E, K, S), np.int32),
        places_EKS=np.full((E, K, S), -1, np.int32),
        positions_EK3S=np.zeros((E, K, 3, S), np.int32),
        starts_EQ=np.ones((E, shape.turns), np.int32),
        lengths_EQ=np.zeros((E, shape.turns), np.int32),
        patches=_pack(examples, geometry, shape.patches),
        labels=_label(examples, geometry, shape.patches),
    )
    for e, example in enumerate(examples):
        if len(example.turns) > shape.turns:
            raise ValueError(f"{example.where} has {len(example.turns)} turns, over {shape.turns}")
        grids = example.text.grids
        turns = [tokenize_turn(turn, grids, tokenizer) for turn in example.turns]
        for q, place in enumerate(assign_turns(turns, shape)):
            if place is not None:
                shown = example.turns[q].images
                _write_turn(batch, (e, q), place, turns[q], (grids, shown), tokenizer.ids.image)
    return batch


def _write_turn(
    batch: JudgeBatch,
    number: tuple[int, int],
    place: tuple[int, int],
    turn: TokenizedTurn,
    images: tuple[Sequence[Grid], Sequence[int]],
    image_id: int,
) -> None:
    """Puts turn (example, number) at (row, first token); images: the example's, those shown."""
    (e, q), (row, first), (grids, shown) = number, place, images
    here = np.s_[e, row, first : first + len(turn.ids_S)]
    batch.ids_EKS[here] = turn.ids_S
    batch.sequences_EKS[here] = q + 1
    mask_S = turn.ids_S == image_id
    starts = np.cumsum([0, *(h * w for h, w in grids)])
    units = [np.arange(starts[i], starts[i + 1]) for i in shown]
    batch.places_EKS[here][mask_S] = np.concatenate([np.zeros(0, np.int64), *units])
    positions = mrope_positions(mask_S[None], [[grids[i] for i in shown]])[:, 0]
    batch.positions_EK3S[e, row, :, first : first + len(turn.ids_S)] = positions
    batch.starts_EQ[e, q] = row * batch.ids_EKS.shape[2] + first + turn.start
    batch.lengths_EQ[e, q] = len(turn.ids_S) - turn.start


def _pack(
    examples: Sequence[TaughtExample], geometry: Geometry, shape: RowShape | None
) -> PatchBatch | None:
    """The images of each example in a row of their own."""
    if shape is None:
        return None
    rows = []
    for example in examples:
        try:
            rows.append(pack_images(example.images, geometry, shape, 1).batch)
        except ValueError as error:
            raise InputError(f"the images of {example.where} are larger than before") from error
    names = PatchBatch.__dataclass_fields__
    return PatchBatch(**{n: np.concatenate([getattr(row, n) for row in rows]) for n in names})


def _label(
    examples: Sequence[TaughtExample], geometry: Geometry, shape: RowShape | None
) -> UnitLabels | None:
    """Labels of the units of each example's images."""
    if shape is None or not any(example.objects for example in examples):
        return None
    images = [list(zip(e.text.grids, e.objects, strict=True)) for e in examples]
    return label_units(images, shape.patches // geometry.unit_patches)

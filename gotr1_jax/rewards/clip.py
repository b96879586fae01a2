"""What HPS, PickScore and CLIPScore share: a CLIP that compares an image with its caption."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.convert.clip import (
    ClipCheckpoint,
    abstract_state,
    load_clip,
    read_clip_config,
    read_vocabulary,
)
from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.errors import InputError
from gotr1_jax.images.clip import crop_pixels
from gotr1_jax.io.digests import model_digest
from gotr1_jax.models.clip import abstract_clip
from gotr1_jax.models.config import ClipConfig
from gotr1_jax.parallel.mesh import replicated, row_multiple, row_sharding
from gotr1_jax.parallel.sharding import state_shardings
from gotr1_jax.rewards.base import NOT_FINITE, JudgeRequest, JudgeResult, to_uint8
from gotr1_jax.tokenizers.clip import ClipTokenizer

# Host rows (R, ...) -> unit vectors (R, E) on the devices.
_Encode = Callable[[np.ndarray], jax.Array]
# The same with the parameters of the model before them.
_Program = Callable[[Any, Any], jax.Array]


class ClipJudge:
    """Scores samples by the cosine of an image and its caption; deterministic, without state.

    A subclass says what is encoded and what the cosine becomes. Images and captions go through two
    compiled programs of one shape each, `batch_rows` rows at a time: that bounds the memory,
    whatever the number of requests. A caption that several requests share is encoded once.
    Captions are cut at 77 tokens, as the references do.

    Attributes:
      kind: the name of the scorer, and of its term unless others are given.
      meaning: what a high value says.
      prefix: stands before every caption.
      activation: of the scorer's CLIP, as `models.config.ClipTowerConfig` names it; empty: any.
    """

    kind: ClassVar[str]
    meaning: ClassVar[str]
    prefix: ClassVar[str] = ""
    activation: ClassVar[str] = ""
    needs_main_thread: ClassVar[bool] = True

    def __init__(
        self,
        checkpoint: ClipCheckpoint,
        tokenizer: ClipTokenizer,
        batch_rows: int = 32,
        mesh: Mesh | None = None,
        terms: Sequence[str] = (),
    ) -> None:
        """A judge that computes in float32, whatever the dtype of the parameters.

        Args:
          checkpoint: the model.
          tokenizer: its tokenizer.
          batch_rows: rows of one call of a program; rounded up to what divides over the mesh.
          mesh: devices of this process on which the checkpoint's parameters lie; rows are split
            over its axes `data` and `fsdp`. None: the default device.
          terms: names of the score; empty: `kind`.
        """
        self.terms: tuple[str, ...] = tuple(terms) or (self.kind,)
        self.meanings: Mapping[str, str] = dict.fromkeys(self.terms, self.meaning)
        self.identity = self.kind
        multiple = 1 if mesh is None else row_multiple(mesh)
        self._rows = -(-batch_rows // multiple) * multiple
        self._mesh = mesh
        self._config, self._tokenizer = checkpoint.config, tokenizer
        images, captions = _programs(checkpoint.config, jnp.dtype(checkpoint.dtype), mesh)
        self._encode_images = self._placed(images, checkpoint.state)
        self._encode_captions = self._placed(captions, checkpoint.state)

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        vocabulary: str | Path | None = None,
        *,
        dtype: Any = jnp.bfloat16,
        batch_rows: int = 32,
        mesh: Mesh | None = None,
        terms: Sequence[str] = (),
    ) -> Self:
        """The judge of a checkpoint.

        Args:
          path: the file or directory (see `convert.clip.load_clip`), or a hub id.
          vocabulary: file or directory of CLIP's vocabulary; None: where the weights are.
          dtype: of the parameters.
          batch_rows, mesh, terms: as for the class; a mesh splits the parameters too.

        Raises InputError in one line for what cannot be read; the vocabulary, which is small, is
        read first.
        """
        source = find_checkpoint(path)
        config = read_clip_config(source)
        cls._check(config, source)
        tokenizer = read_vocabulary(source, config, vocabulary)
        shardings = None if mesh is None else state_shardings(abstract_state(config, dtype), mesh)
        checkpoint = load_clip(source, dtype, shardings)
        judge = cls(checkpoint, tokenizer, batch_rows, mesh, terms)
        judge.identity = f"{cls.kind} {path} weights={model_digest(source, vocabulary)}"
        return judge

    @classmethod
    def _check(cls, config: ClipConfig, source: Path) -> None:
        """InputError for a CLIP that cannot be this scorer's."""
        for part, tower in (("vision", config.vision), ("text", config.text)):
            if cls.activation and tower.activation != cls.activation:
                raise InputError(
                    f"{source} is no {cls.kind}: {part}_config.hidden_act is {tower.activation!r}, "
                    f"as of OpenAI's CLIPs, and that of {cls.kind} is {cls.activation!r}; give the "
                    "weights of that scorer, or use clipscore"
                )

    def pixels(self, image: np.ndarray, size: int) -> np.ndarray:
        """The tower's input, float32 (size, size, 3), of an image uint8 (H, W, 3) RGB."""
        return crop_pixels(image, size)

    def score(self, cosine: float) -> float:
        """The value of a finite cosine."""
        raise NotImplementedError

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request.

        An image is uint8, or float from 0 to 255, which is rounded. An image or a cosine that is
        not finite scores NaN.
        """
        if not requests:
            return []
        unique = list(dict.fromkeys(request.caption for request in requests))
        index = {caption: i for i, caption in enumerate(unique)}
        images = [to_uint8(request.image) for request in requests]
        texts = self._run(self._encode_captions, len(unique), lambda i: self._ids(unique[i]))
        vectors = self._run(self._encode_images, len(images), lambda i: self._pixels(images[i]))
        return [
            self._result(None if image is None else float(vector @ texts[index[request.caption]]))
            for request, vector, image in zip(requests, vectors, images)
        ]

    def _result(self, cosine: float | None) -> JudgeResult:
        """cosine: None for an image that is not finite."""
        if cosine is None:
            return JudgeResult(dict.fromkeys(self.terms, math.nan), rationale=NOT_FINITE)
        value = self.score(cosine) if math.isfinite(cosine) else math.nan
        return JudgeResult(dict.fromkeys(self.terms, value), rationale=f"cosine {cosine:.4f}")

    def _ids(self, caption: str) -> np.ndarray:
        return self._tokenizer.encode([self.prefix + caption])[0]

    def _pixels(self, image: np.ndarray | None) -> np.ndarray:
        size = self._config.image_size
        return np.zeros((size, size, 3), np.float32) if image is None else self.pixels(image, size)

    def _run(self, encode: _Encode, count: int, row: Callable[[int], np.ndarray]) -> np.ndarray:
        """Unit vectors float32 (count, E) of the rows `row(0)` ... in batches of one shape."""
        # Devices work on one batch while the host makes the next one.
        pending = [encode(batch) for batch in self._batches(count, row)]
        return np.concatenate([np.asarray(vectors) for vectors in pending])[:count]

    def _batches(self, count: int, row: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
        for start in range(0, count, self._rows):
            batch = np.stack([row(i) for i in range(start, min(start + self._rows, count))])
            missing = self._rows - len(batch)
            yield np.concatenate([batch, np.repeat(batch[:1], missing, axis=0)])

    def _placed(self, encode: _Program, state: Any) -> _Encode:
        """A program with its parameters, on host rows, which are split over the mesh."""
        if self._mesh is None:
            return lambda batch: encode(state, batch)
        rows = row_sharding(self._mesh)
        return lambda batch: encode(state, jax.device_put(batch, rows))


@cache
def _programs(config: ClipConfig, dtype: Any, mesh: Mesh | None) -> tuple[_Program, _Program]:
    """Those of images and of captions; judges of equal models share what is compiled."""
    graphdef = nnx.split(abstract_clip(config, dtype))[0]

    # Scores of one caption's images differ in the second and third digit after the point;
    # activations in bfloat16 would blur the third.
    def images(state: Any, pixels_RHWC: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).encode_images(pixels_RHWC)

    def captions(state: Any, ids_RS: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).encode_captions(ids_RS, jnp.float32)

    out = None if mesh is None else replicated(mesh)
    return jax.jit(images, out_shardings=out), jax.jit(captions, out_shardings=out)

"""Images through a VQ tokenizer and back, as a policy's images are."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from gotr1_jax.convert.image_tokenizer import ImageTokenizer
from gotr1_jax.errors import InputError
from gotr1_jax.models.vq import abstract_vq, image_decoder, image_encoder


def make_reconstruct(vq: ImageTokenizer, image_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 (H, W, 3) -> the same after encoding and decoding, on one device of this process.

    Raises InputError for a tokenizer of images of another size.
    """
    if vq.image_size != image_size:
        raise InputError(
            f"data.shapes.vq is of images of {vq.image_size} px, the shapes world has "
            f"{image_size}; give its own tokenizer"
        )
    graphdef = nnx.split(abstract_vq(vq.config))[0]
    encode = image_encoder(graphdef)
    decode = image_decoder(graphdef, image_size // vq.config.downsampling)
    state = jax.device_put(vq.state, jax.local_devices()[0])
    return lambda image: np.asarray(decode(state, encode(state, image[None])))[0]

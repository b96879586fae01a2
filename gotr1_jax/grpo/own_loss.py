"""A policy loss of one's own: `loss.kind: "my_losses.py:loss"`, or `module:function`.

    def loss(batch: LossBatch, config: PolicyLossConfig, normalisers: Normalisers):
        surrogate_BN = -jnp.exp(log_ratios(batch)) * token_advantages(batch, config)
        return token_mean(surrogate_BN, batch, config, normalisers)

It is traced by jax, once a micro-batch shape, and returns a scalar to be minimised, or it and a
mapping from name to scalar: metrics of the run. All of them are sums over micro-batches, so a mean
divides by the normalisers, as `token_mean` does; a name that ends in max is a maximum.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gotr1_jax.errors import GotR1Error, InputError
from gotr1_jax.grpo.losses import (
    LossBatch,
    Normalisers,
    OwnLoss,
    PolicyLossConfig,
    clean,
    count_normalisers,
)
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.rewards.own_function import is_from_outside, load_function
from gotr1_jax.rewards.source_digest import source_digest


def load_loss(config: PolicyLossConfig) -> OwnLoss | None:
    """The function that config.kind names, what it returns checked; None where it names none.

    InputError where there is no such function, and later, when it is traced, where it raises or
    returns something else.
    """
    if not config.is_own:
        return None
    return partial(_checked, config.kind, load_function(config.kind))


def try_loss(config: PolicyLossConfig) -> dict[str, str]:
    """Runs one's own loss on a made-up batch; what it is, to compare when a run is resumed.

    By the name of its setting: the function's name and source digest; nothing for a published kind.

    InputError where that fails, where loss or gradient are not finite, and where the gradient is
    0: such a loss teaches nothing.
    """
    function = load_loss(config)
    if function is None:
        return {}

    def value(logp_BN: jax.Array, batch: LossBatch) -> tuple[jax.Array, Any]:
        batch = clean(_with_logp(batch, logp_BN))
        norm = count_normalisers(batch.mask_BN, batch.is_image_BN, batch.row_mask_B)
        return function(batch, config, norm)

    config = replace(config, max_tokens=config.max_tokens or 12)
    batch = _made_up_batch(config)
    step = jax.jit(jax.value_and_grad(value, has_aux=True))
    with _failures_as_one_line(config.kind):
        (loss, stats), gradient = jax.device_get(step(batch.logp_BN, batch))
    for name, number in {"its value": loss, **stats}.items():
        if not np.isfinite(number):
            raise _error(config.kind, f"gave {number} for {name} on ordinary log-probs")
    if not np.isfinite(gradient).all():
        raise _error(config.kind, "has a gradient that is not finite on ordinary log-probs")
    if not gradient.any():
        raise _error(config.kind, "has gradient 0: it must depend on batch.logp_BN")
    return {"loss.kind": f"{config.kind} {source_digest(load_function(config.kind))}"}


def _checked(
    name: str, function: Callable[..., Any], batch: LossBatch, config: PolicyLossConfig,
    normalisers: Normalisers,
) -> tuple[jax.Array, Mapping[str, jax.Array]]:  # fmt: skip
    with _failures_as_one_line(name):
        result = function(batch, config, normalisers)
    loss, stats = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(stats, Mapping) or not all(isinstance(key, str) and key for key in stats):
        raise _error(name, "must return a loss, or a loss and a mapping from name to number")
    return _scalar(name, "a loss", loss), {
        key: _scalar(name, key, value) for key, value in stats.items()
    }


def _scalar(name: str, what: str, value: Any) -> jax.Array:
    shape = getattr(value, "shape", None if not isinstance(value, int | float) else ())
    if shape is None:
        raise _error(name, f"returned {type(value).__name__} as {what}; return a scalar")
    if shape != ():
        raise _error(name, f"returned an array of shape {shape} as {what}; return a scalar")
    number = jnp.asarray(value)
    if not jnp.issubdtype(number.dtype, jnp.floating) and what == "a loss":
        raise _error(name, f"returned {number.dtype} as {what}; return a float")
    return number.astype(jnp.float32)


@contextmanager
def _failures_as_one_line(name: str) -> Iterator[None]:
    try:
        yield
    except GotR1Error:
        raise
    except BaseException as error:
        if is_from_outside(error):
            raise
        place = _last_own_frame(error)
        text = (str(error).strip().splitlines() or [""])[0]
        raise _error(name, f"raised {type(error).__name__}: {text} ({place})") from error


def _last_own_frame(error: BaseException) -> str:
    """Where an error was raised; in jax's own code: where that was called."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if "site-packages" not in f.filename] or list(frames)
    return f"{outside[-1].filename}, line {outside[-1].lineno}"


def _error(name: str, what: str) -> InputError:
    return InputError(f"loss {name} {what}")


def _with_logp(batch: LossBatch, logp_BN: jax.Array) -> LossBatch:
    """The batch with its log-probs, and entropies that depend on them as a policy's do."""
    assert batch.entropy_BN is not None
    return replace(batch, logp_BN=logp_BN, entropy_BN=batch.entropy_BN - 0.1 * logp_BN)


def _made_up_batch(config: PolicyLossConfig) -> LossBatch:
    """Of a policy that has moved a little: plans of several lengths, a sample without a reward, and
    what the configuration asks for."""
    rng = np.random.default_rng(0)
    samples, plan = 4, 6
    shape = (samples, 2 * plan)
    old_BN = rng.normal(-2.0, 0.5, shape)

    def near() -> jax.Array:
        return jnp.asarray(old_BN + rng.normal(0.0, 0.1, shape), jnp.float32)

    is_image_BN = np.tile(np.arange(shape[1]) >= plan, (samples, 1))
    lengths_B1 = plan - np.arange(samples)[:, None] % plan
    adv_B = jnp.asarray(np.resize([1.0, -1.0, 0.5, 0.0], samples), jnp.float32)
    return LossBatch(
        logp_BN=near(),
        old_logp_BN=jnp.asarray(old_BN, jnp.float32),
        mask_BN=jnp.asarray(is_image_BN | (np.arange(shape[1]) < lengths_B1)),
        is_image_BN=jnp.asarray(is_image_BN),
        advantages=PerModality(adv_B, adv_B),
        row_mask_B=jnp.asarray(np.arange(samples) < samples - 1),
        ref_logp_BN=None if config.kl == "none" else near(),
        sampler_logp_BN=near(),
        entropy_BN=jnp.asarray(rng.uniform(0.5, 3.0, shape), jnp.float32),
        selected_BN=None if config.tokens is None else jnp.asarray(rng.uniform(size=shape) < 0.8),
    )

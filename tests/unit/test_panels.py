"""Matrices in panels: the same products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gotr1_jax.decoding import panels
from gotr1_jax.decoding.forward import project
from gotr1_jax.decoding.panels import Panels, as_panels, panels_help

RNG = np.random.default_rng(0)


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels of four outputs, for matrices of any size."""
    monkeypatch.setattr(panels, "_WIDTH", 4)
    monkeypatch.setattr(panels, "_SMALLEST", 1)


@pytest.mark.usefixtures("small")
def test_a_panel_holds_outputs_in_order() -> None:
    cut = as_panels(jnp.arange(24.0).reshape(8, 3), rows=2)
    assert isinstance(cut, Panels) and cut.out == (8,)
    np.testing.assert_array_equal(cut.w_PIn[1, 0], [12, 15, 18, 21])  # outputs 4 to 7 of input 0
    assert as_panels(cut, rows=2) is cut


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "lead, out, given", [((2,), (8,), (6,)), ((2, 3), (2, 2, 5), (6,)), ((3,), (12,), (2, 1, 4))]
)
def test_products_are_those_of_the_matrix(
    lead: tuple[int, ...], out: tuple[int, ...], given: tuple[int, ...]
) -> None:
    x, weight = drawn(*lead, *given), drawn(*out, *given)
    cut = as_panels(weight, 8, len(given))
    assert isinstance(cut, Panels)
    got = jax.jit(lambda x, w: project(x, w, len(given)))(x, cut)
    axes = tuple(range(-len(given), 0))
    np.testing.assert_allclose(got, np.tensordot(x, weight, (axes, axes)), atol=1e-5)


def test_where_panels_are_slower_a_matrix_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5})
    large = jnp.zeros((1024, 512))
    assert isinstance(as_panels(large, 32), Panels)
    assert as_panels(large, 33) is large  # the rows' inputs no longer fit
    for other in (jnp.zeros((64, 512)), jnp.zeros((1025, 512))):
        assert as_panels(other, 1) is other
    assert panels_help(large, 32) and not panels_help(large, 33)
    assert not panels_help(large.astype(jnp.bfloat16), 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    assert not panels_help(large, 1)

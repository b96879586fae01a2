"""Initial embeddings of number tokens: near numbers begin near, nothing else changes."""

from __future__ import annotations

import jax
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gotr1_jax.tokenizers.janus import SPECIAL_STRINGS, TextTokenizer
from gotr1_jax.trainer.number_features import number_features, with_number_features

KEY = jax.random.key(0)


def test_near_numbers_are_alike_and_far_ones_are_not() -> None:
    rows = np.asarray(number_features(np.arange(1000), 160, KEY))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)

    def alike(apart: int) -> np.ndarray:
        return (rows[:-apart] * rows[apart:]).sum(1)

    # The means of cos(2 pi apart / wavelength) over the twelve wavelengths; the random directions
    # add a little.
    for apart, mean in ((1, 0.989), (5, 0.781), (20, 0.453), (100, 0.168)):
        assert abs(alike(apart).mean() - mean) < 0.1, apart
    assert (rows[0] @ rows[999]) < 0.3
    # No two numbers begin at the same row.
    assert (rows @ rows.T - 2 * np.eye(1000)).max() < 0.996


def test_only_the_rows_of_numbers_change() -> None:
    table = 0.02 * jax.random.normal(KEY, (50, 32))
    ids = {7: 3, 8: 40}
    new = np.asarray(with_number_features(table, ids, KEY))
    others = [i for i in range(50) if i not in ids.values()]
    np.testing.assert_array_equal(new[others], np.asarray(table)[others])
    norm = np.sqrt(np.square(np.asarray(table)).sum(1).mean())
    np.testing.assert_allclose(np.linalg.norm(new[[3, 40]], axis=1), norm, rtol=1e-5)
    assert with_number_features(table, {}, KEY) is table


def test_numbers_are_found_by_their_strings() -> None:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_STRINGS.values()])
    assert TextTokenizer(raw.to_str()).number_ids == {}
    raw.add_tokens([AddedToken(t, normalized=False) for t in ("5", "017", "999", "1000", "x1")])
    found = TextTokenizer(raw.to_str()).number_ids
    assert found == {5: raw.token_to_id("5"), 999: raw.token_to_id("999")}

"""`loss.kind: "my_losses.py:loss"`: what it gets, what it may return, every mistake in a line."""

from __future__ import annotations

import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loss_kinds import random_batch

from gotr1_jax.errors import InputError
from gotr1_jax.grpo.losses import (
    LossStats,
    PolicyLossConfig,
    add_stats,
    count_normalisers,
    policy_loss,
)
from gotr1_jax.grpo.metrics import own_metrics
from gotr1_jax.grpo.own_loss import load_loss, try_loss
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.update import PolicyMetrics

DAPO = """
import jax.numpy as jnp
from gotr1_jax.grpo.losses import clipped_surrogate, log_ratios, token_advantages, token_mean

def loss(batch, config, normalisers):
    adv_BN = token_advantages(batch, config)
    loss_BN, clipped_BN = clipped_surrogate(log_ratios(batch), adv_BN, config)
    share = token_mean(clipped_BN, batch, config, normalisers)
    return token_mean(loss_BN, batch, config, normalisers), {
        "mine/clipped": share, "mine/logp_max": jnp.exp(batch.logp_BN).max(),
    }
"""


def own(folder: Path, source: str, name: str = "mine") -> PolicyLossConfig:
    file = folder / f"{name}.py"
    file.write_text(textwrap.dedent(source))
    return PolicyLossConfig(kind=f"{file}:loss")


def test_dapo_written_by_a_user_is_dapo(tmp_path):
    config = own(tmp_path, DAPO)
    assert list(try_loss(config)) == ["loss.kind"] and try_loss(PolicyLossConfig()) == {}
    batch, published = random_batch(4), PolicyLossConfig(kind="dapo")
    norm = count_normalisers(batch.mask_BN, batch.is_image_BN, batch.row_mask_B)

    @jax.jit
    def mine(rows):
        return policy_loss(rows, config, norm, load_loss(config))

    loss, stats = mine(batch)
    wanted, of_dapo = policy_loss(batch, published, norm)
    assert loss == pytest.approx(float(wanted), abs=1e-7)
    tokens = [float(norm.tokens.text), float(norm.tokens.image)]
    clipped = np.dot(tokens, [of_dapo.clip_frac.text, of_dapo.clip_frac.image]) / sum(tokens)
    assert stats.own["mine/clipped"] == pytest.approx(clipped, abs=1e-6)
    assert stats.clip_frac is None and stats.ratio_max == of_dapo.ratio_max
    # Values of micro-batches are added, maxima are not; of optimizer steps they are averaged.
    parts = [mine(jax.tree.map(lambda x, s=s: x[s], batch)) for s in (slice(2), slice(2, 4))]
    total = add_stats(parts[0][1], parts[1][1])
    for name in stats.own:
        assert total.own[name] == pytest.approx(float(stats.own[name]), abs=1e-6), name
    pair = PerModality(jnp.ones(()), jnp.ones(()))

    def result(clipped: float, highest: float) -> PolicyMetrics:
        values = {"mine/clipped": jnp.float32(clipped), "mine/logp_max": jnp.float32(highest)}
        stats = LossStats(pair, None, None, own=values)
        return PolicyMetrics(jnp.zeros(()), stats, pair, pair, jnp.zeros(()))

    found = own_metrics([result(0.25, 1.0), result(0.75, 0.5)])
    assert found == {"mine/clipped": 0.5, "mine/logp_max": 1.0}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return batch.logp_BN", r"returned an array of shape \(4, 12\) as a loss"),
        ("return None", "returned NoneType as a loss; return a scalar"),
        ("return 1", "returned int32 as a loss; return a float"),
        ("return 1.0", "gradient 0: it must depend on batch.logp_BN"),
        ("return batch.logp_BN.sum(), 3", "a loss and a mapping from name to number"),
        ("return batch.logp_BN.sum(), {'a': batch.logp_BN}", "as a; return a scalar"),
        ("return batch.logp_BN.sum(), {1: 2.0}", "a loss and a mapping from name to number"),
        ("return batch.logp_BN.sum() / 0", "gave -inf for its value"),
        ("return batch.logp_BN.sum(), {'kl': jnp.nan}", "gave nan for kl"),
        ("return jnp.sqrt(batch.logp_BN * 0).sum()", "gradient that is not finite"),
        ("return batch.nothing", r"raised AttributeError: .*nothing.*mine\w*.py, line 3\)"),
        (
            "return 1.0 if batch.logp_BN.sum() > 0 else 2.0",
            r"raised TracerBoolConversionError: .*mine\w*.py, line 3\)",
        ),
        ("return batch.ref_logp_BN.sum()", "raised AttributeError: 'NoneType'"),
        ("raise SystemExit(7)", "raised SystemExit: 7"),
    ],
)
def test_mistakes_are_one_line(tmp_path, body, said):
    source = f"import jax.numpy as jnp\ndef loss(batch, config, normalisers):\n    {body}\n"
    config = own(tmp_path, source, f"mine{abs(hash(body))}")
    with pytest.raises(InputError, match=said) as caught:
        try_loss(config)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("loss ")


def test_a_function_of_other_arguments_or_none_at_all(tmp_path):
    with pytest.raises(InputError, match="raised TypeError"):
        try_loss(own(tmp_path, "def loss(batch):\n    return 0.0", "short"))
    with pytest.raises(InputError, match="there is no file"):
        try_loss(PolicyLossConfig(kind="nothing.py:loss"))
    with pytest.raises(InputError, match="has no function"):
        try_loss(own(tmp_path, "x = 1", "empty"))
    with pytest.raises(InputError, match="of no_such_module:loss cannot be imported: ModuleNot"):
        try_loss(PolicyLossConfig(kind="no_such_module:loss"))


def test_an_edited_loss_is_another(tmp_path):
    first = try_loss(own(tmp_path, DAPO, "edited"))
    again = try_loss(own(tmp_path, DAPO, "edited"))
    other = try_loss(own(tmp_path, DAPO + "\n# edited\n", "edited"))
    assert first == again != other

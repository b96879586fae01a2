"""`gotr1 bench sample|update`: speed of this machine, alone or against `transformers`.

Both run the same random weights in float32, in one process, turn by turn, each warmed up (and so
compiled) before the clock starts. The model: 8 layers, 512 wide, mlp 1408, 8 heads of 64, text
vocabulary 1024, 16384 picture tokens, 576 of them a picture (about 35 M parameters in the decoder
and the picture head together); 4 captions of 32 tokens, guidance 5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.convert.checkpoint import out_tensors
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import DecoderConfig, JanusConfig, VQConfig
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.models.vq import VQModel
from gotr1_jax.sampling.replay import LogpSettings, replay_logps
from gotr1_jax.sampling.rows import PromptBatch, Rows
from gotr1_jax.sampling.sampler import Sampler, SamplerConfig, row_keys
from gotr1_jax.text import SpecialIds

AGAINST = "transformers"
SPECIALS = SpecialIds(bos=0, eos=1, pad=2, boi=3, eoi=4, image=5)
GUIDANCE = 5.0
MODEL = JanusConfig(
    DecoderConfig(
        vocab_size=1024, hidden_size=512, mlp_size=1408, num_layers=8, num_heads=8,
        num_kv_heads=8, head_dim=64,
    ),
    VQConfig(),
    image_size=384,
)  # fmt: skip


@dataclass(frozen=True)
class BenchResult:
    """One comparison.

    Attributes:
      what: `sample`, `sample+decode` or `update`.
      unit: of the rates.
      rate: ours, at the median time.
      seconds: ours, every repetition.
      against_rate, against_seconds: the same of the other side, or None.
      ratio, ratio_min, ratio_max: median and spread over repetitions of their time / our time.
      same_ids: fraction of equal picture tokens (greedy, same weights), or None.
    """

    what: str
    unit: str
    rate: float
    seconds: list[float]
    against_rate: float | None = None
    against_seconds: list[float] | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    same_ids: float | None = None

    def lines(self) -> list[str]:
        """For a person."""
        lines = [f"{self.what}: gotr1_jax {self.rate:.4g} {self.unit}"]
        if self.ratio is not None:
            lines.append(f"{self.what}: {AGAINST} {self.against_rate:.4g} {self.unit}")
            lines.append(
                f"{self.what}: {self.ratio:.2f} times as fast "
                f"({self.ratio_min:.2f} to {self.ratio_max:.2f} over {len(self.seconds)} turns)"
            )
        if self.same_ids is not None:
            lines.append(f"{self.what}: {100 * self.same_ids:.1f} % of the tokens are the same")
        return lines


def compare(
    what: str, unit: str, amount: float, ours: Callable[[], Any],
    theirs: Callable[[], Any] | None, repeats: int,
) -> BenchResult:  # fmt: skip
    """Time both turn by turn, after one warm-up each; `amount` is what one call gets done."""
    mine: list[float] = []
    other: list[float] = []
    for turn in range(repeats + 1):
        for run, times in ((ours, mine), (theirs, other)):
            if run is not None:
                start = time.perf_counter()
                run()
                if turn:
                    times.append(time.perf_counter() - start)
    rate = amount / statistics.median(mine)
    if theirs is None:
        return BenchResult(what, unit, rate, mine)
    ratios = [b / a for a, b in zip(mine, other)]
    return BenchResult(
        what, unit, rate, mine, amount / statistics.median(other), other,
        statistics.median(ratios), min(ratios), max(ratios),
    )  # fmt: skip


def transformers_janus(config: JanusConfig, states: dict[str, nnx.State]) -> Any:
    """`transformers`' JanusForConditionalGeneration with our weights, in float32, for evaluation.

    Parts that `states` ("policy", "vq") leaves out stay random; the vision tower is a stub.
    Raises InputError when torch or transformers is missing.
    """
    try:
        import torch
        from transformers import JanusConfig as TheirConfig
        from transformers import JanusForConditionalGeneration
    except ImportError as error:
        raise InputError(
            f"the comparison needs {error.name}; install the extra: pip install gotr1_jax[convert]"
        ) from error
    d, vq = config.decoder, config.vq
    theirs = TheirConfig(
        text_config={
            "model_type": "llama", "vocab_size": d.vocab_size, "hidden_size": d.hidden_size,
            "intermediate_size": d.mlp_size, "num_hidden_layers": d.num_layers,
            "num_attention_heads": d.num_heads, "num_key_value_heads": d.num_kv_heads,
            "head_dim": d.head_dim, "rms_norm_eps": d.norm_eps, "max_position_embeddings": 16384,
            "tie_word_embeddings": False, "rope_theta": d.rope_theta,
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": config.image_size, "patch_size": vq.downsampling,
            "projection_dim": d.hidden_size, "num_image_tokens": config.num_image_tokens,
        },
        vq_config={
            "embed_dim": vq.code_dim, "num_embeddings": vq.codebook_size,
            "latent_channels": vq.z_channels, "base_channels": vq.base_channels,
            "channel_multiplier": list(vq.decoder_multipliers),
            "num_res_blocks": vq.num_res_blocks, "projection_dim": d.hidden_size,
            "image_token_embed_dim": d.hidden_size,
        },
        tie_word_embeddings=False,
        image_token_id=SPECIALS.image,
    )  # fmt: skip
    model = JanusForConditionalGeneration(theirs).eval()
    ours = {t.name: torch.from_numpy(t.get().copy()) for t in out_tensors(states, "hf")}
    unknown = model.load_state_dict(ours, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"transformers has no tensors {unknown}")
    for name, value in (("bos", SPECIALS.bos), ("eos", SPECIALS.eos), ("pad", SPECIALS.pad)):
        setattr(model.generation_config, f"{name}_token_id", value)
    model.generation_config.generation_kwargs = {"boi_token_id": SPECIALS.boi}
    return model


def _prompts(captions: int, length: int) -> np.ndarray:
    """Random prompts (captions, length): BOS, then words."""
    words = np.random.default_rng(0).integers(8, MODEL.decoder.vocab_size, (captions, length))
    words[:, 0] = SPECIALS.bos
    return words.astype(np.int32)


def _policy() -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(JanusPolicy(MODEL, rngs=nnx.Rngs(0)))


def bench_sample(
    against: str | None = None, *, repeats: int = 3, captions: int = 4, prompt_tokens: int = 32,
    decode: bool = False,
) -> list[BenchResult]:  # fmt: skip
    """Pictures a second, greedy under guidance; a picture is done when its 576 ids are there.

    decode: also time both VQ decoders, and report pictures a second of ids and pixels together.
    """
    graphdef, state = _policy()
    config = SamplerConfig(max_plan_tokens=1, guidance=GUIDANCE, greedy=True, image_bucket=96)
    sampler = Sampler(graphdef, MODEL, SPECIALS, config)
    params = sampler.prepare(state)
    ids = _prompts(captions, prompt_tokens)
    prompts = PromptBatch(jnp.asarray(ids), jnp.full((captions,), prompt_tokens, jnp.int32))
    boi = jnp.full((captions, 1), SPECIALS.boi, jnp.int32)
    one = jnp.ones((captions,), jnp.int32)
    keys = row_keys(0, 0, jnp.arange(captions), 1)
    made: dict[str, np.ndarray] = {}

    def ours() -> None:
        rollout = sampler.paint(params, prompts, boi, one, keys)
        made["ours"] = np.asarray(rollout.rows.image_ids_BU)

    states = {"policy": state}
    vq = VQModel(MODEL.vq, rngs=nnx.Rngs(1)) if decode else None
    if vq is not None:
        states["vq"] = nnx.split(vq)[1]
    model = transformers_janus(MODEL, states) if _checked(against) else None

    def theirs() -> None:
        import torch

        rows = torch.from_numpy(np.concatenate([ids, np.asarray(boi)], axis=1).astype(np.int64))
        made["theirs"] = model.generate(
            rows, attention_mask=torch.ones_like(rows), generation_mode="image",
            guidance_scale=GUIDANCE, do_sample=False, max_length=rows.shape[1] + MODEL.num_image_tokens,
        ).numpy()  # fmt: skip

    unit = "pictures/s"
    both = compare("sample", unit, captions, ours, None if model is None else theirs, repeats)
    if model is not None:
        same = float(np.mean(made["ours"] == made["theirs"]))
        both = BenchResult(**{**asdict(both), "same_ids": same})
    if vq is None:
        return [both]
    return [both, _with_decoding(both, _bench_decode(vq, model, made["ours"][:1]), captions)]


def _checked(against: str | None) -> bool:
    if against not in (None, AGAINST):
        raise InputError(f"--against {against}: the only known one is {AGAINST}")
    return against is not None


def _bench_decode(vq: VQModel, model: Any, ids_1U: np.ndarray) -> BenchResult:
    """Time of one picture's VQ decoding, both sides."""
    graphdef, state = nnx.split(vq)
    decoder = jax.jit(lambda state, ids: nnx.merge(graphdef, state).decode_ids(ids, MODEL.grid))

    def ours() -> None:
        decoder(state, jnp.asarray(ids_1U)).block_until_ready()

    def theirs() -> None:
        import torch

        with torch.no_grad():
            model.decode_image_tokens(torch.from_numpy(ids_1U.astype(np.int64)))

    return compare("decode", "pictures/s", 1, ours, None if model is None else theirs, 1)


def _with_decoding(ids: BenchResult, decode: BenchResult, captions: int) -> BenchResult:
    """Rates of ids and pixels together, from the two timed apart."""
    mine = [t + captions * decode.seconds[0] for t in ids.seconds]
    rate = captions / statistics.median(mine)
    if ids.against_seconds is None or decode.against_seconds is None:
        return BenchResult("sample+decode", ids.unit, rate, mine)
    other = [t + captions * decode.against_seconds[0] for t in ids.against_seconds]
    ratios = [b / a for a, b in zip(mine, other)]
    return BenchResult(
        "sample+decode", ids.unit, rate, mine, captions / statistics.median(other), other,
        statistics.median(ratios), min(ratios), max(ratios),
    )  # fmt: skip


def bench_update(
    against: str | None = None, *, repeats: int = 3, captions: int = 4, prompt_tokens: int = 32
) -> list[BenchResult]:
    """Rows a second of forward and backward: mean log-probability of the picture's tokens."""
    graphdef, state = _policy()
    ids = _prompts(captions, prompt_tokens)
    image = np.random.default_rng(1).integers(
        0, MODEL.image_vocab, (captions, MODEL.num_image_tokens)
    )
    rows = Rows(
        prompt_ids_BC=jnp.asarray(ids),
        prompt_len_B=jnp.full((captions,), prompt_tokens, jnp.int32),
        plan_ids_BT=jnp.full((captions, 1), SPECIALS.boi, jnp.int32),
        plan_len_B=jnp.ones((captions,), jnp.int32),
        plan_mask_BT=jnp.zeros((captions, 1), bool),
        image_ids_BU=jnp.asarray(image, jnp.int32),
    )

    def loss(state: nnx.State) -> jax.Array:
        policy = nnx.merge(graphdef, state)
        logps = replay_logps(policy, rows, SPECIALS, LogpSettings("conditional"), chunk=96)
        return -logps.image_logp_BU.mean()

    step = jax.jit(jax.value_and_grad(loss))
    model = transformers_janus(MODEL, {"policy": state}) if _checked(against) else None
    losses: dict[str, float] = {}

    def ours() -> None:
        value, gradient = step(state)
        jax.block_until_ready(gradient)
        losses["ours"] = float(value)

    def theirs() -> None:
        losses["theirs"] = _their_update(model, ids, image)

    other = None if model is None else theirs
    result = compare("update", "rows/s (forward + backward)", captions, ours, other, repeats)
    if model is not None and abs(losses["ours"] - losses["theirs"]) > 1e-3:
        raise RuntimeError(f"the two losses differ: {losses}")
    return [result]


def _their_update(model: Any, prompts: np.ndarray, image: np.ndarray) -> float:
    """The same loss and its gradient by torch."""
    import torch

    text = np.concatenate([prompts, np.full((len(prompts), 1), SPECIALS.boi)], axis=1)
    tokens = torch.from_numpy(image.astype(np.int64))
    x = torch.cat(
        [
            model.get_input_embeddings()(torch.from_numpy(text.astype(np.int64))),
            model.prepare_embeddings_for_image_generation(tokens[:, :-1]),
        ],
        dim=1,
    )
    hidden = model.model.language_model(inputs_embeds=x, use_cache=False).last_hidden_state
    logits = model.model.generation_head(hidden[:, prompts.shape[1] :])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    model.zero_grad(set_to_none=True)
    loss.backward()
    return float(loss)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 bench`."""
    parser.add_argument("what", choices=("sample", "update"), help="which speed to measure")
    parser.add_argument("--against", choices=(AGAINST,), help="also time this, turn by turn")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns of each (default 3)")
    parser.add_argument("--captions", type=int, default=4, help="rows at once (default 4)")
    parser.add_argument(
        "--decode", action="store_true", help="sample: report ids and VQ decoding together, too"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(options: argparse.Namespace) -> None:
    """Measure and print; raises InputError for options that make no sense."""
    if options.repeats < 1 or options.captions < 1:
        raise InputError("--repeats and --captions must be 1 or more")
    sizes = {"repeats": options.repeats, "captions": options.captions}
    if options.what == "sample":
        results = bench_sample(options.against, decode=options.decode, **sizes)
    else:
        results = bench_update(options.against, **sizes)
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
    else:
        print("\n".join(line for result in results for line in result.lines()))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `gotr1 bench`."""
    parser = argparse.ArgumentParser(prog="gotr1 bench", description=__doc__.split("\n")[0])
    add_arguments(parser)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    main()

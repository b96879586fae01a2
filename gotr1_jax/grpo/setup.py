"""What a GRPO run is made of: policy, captions, judge, sampler and compiled updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.convert.checkpoint import Checkpoint
from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.data.captions import read_captions
from gotr1_jax.data.pipeline import AheadBatches, caption_batches
from gotr1_jax.grpo.config import (
    PLANS_AT_ONCE,
    CaptionsConfig,
    EvaluationConfig,
    GrpoConfig,
    GrpoLossConfig,
)
from gotr1_jax.grpo.entropy import new_entropy_state
from gotr1_jax.grpo.own_loss import load_loss, try_loss
from gotr1_jax.grpo.policy import SplitPolicy, load_policy
from gotr1_jax.grpo.prompts import Prompts, encode_captions
from gotr1_jax.grpo.rollout import RolloutWorker
from gotr1_jax.grpo.terms_file import check_run_functions
from gotr1_jax.grpo.update import Learner, make_policy_step, make_token_logps
from gotr1_jax.grpo.watched import WatchedJudge, make_watched
from gotr1_jax.io.digests import identify_weights
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.parallel.mesh import local_mesh, rollout_mesh, warm_up_collectives
from gotr1_jax.parallel.phases import phase
from gotr1_jax.parallel.placement import check_rows, move_to_mesh, train_state_shardings
from gotr1_jax.parallel.processes import (
    check_same_on_all_processes,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.parallel.sharding import placed_shapes, shardings_of, state_shardings
from gotr1_jax.rewards.base import Judge, introduce
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.sampler.sampler import Sampler
from gotr1_jax.shapes.dataset import shapes_captions
from gotr1_jax.tokenizers.janus import SpecialIds
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.trainer.resume import describe_texts
from gotr1_jax.trainer.run import Run
from gotr1_jax.trainer.state import TrainState, new_state


@dataclass(frozen=True)
class GrpoJob:
    """Everything that stays the same over the steps of a run.

    Attributes:
      policy: split into its trained and frozen arrays; `trained` is None once a state holds it.
      checkpoint: that the run starts from, without the policy.
      prompts, heldout: captions to train on, and to evaluate on.
      batches: the captions of each step, by index; its state is saved with a checkpoint.
      worker: samples and scores. learner: updates. optimizer: of the trained arrays.
      watched: judges of the evaluations alone.
      mesh: that trains.
      sampled: the policy on the mesh that samples, `trained` as shapes; None: that is the same.
    """

    config: GrpoConfig
    policy: SplitPolicy
    checkpoint: Checkpoint
    prompts: Prompts
    heldout: Prompts
    batches: AheadBatches
    worker: RolloutWorker
    learner: Learner
    optimizer: Any
    mesh: Mesh
    watched: tuple[WatchedJudge, ...] = ()
    sampled: SplitPolicy | None = None

    @property
    def evaluation_worker(self) -> RolloutWorker:
        """As `worker`, with the watched terms too."""
        return replace(self.worker, watched=self.watched)

    def initial_state(self) -> TrainState:
        """The state before the first update, sharded like the parameters; owns its arrays."""
        shardings = shardings_of(state_shapes(self.config, self.policy, self.optimizer, self.mesh))

        def copy(params: Any) -> TrainState:
            return _first_state(self.config, jax.tree.map(jnp.copy, params), self.optimizer)

        return jax.jit(copy, out_shardings=shardings)(self.policy.trained)

    def release_initial_weights(self) -> GrpoJob:
        """The job without the trained arrays that it was loaded with: the state has its own."""
        return replace(self, policy=replace(self.policy, trained=None))

    def reload_initial(self) -> TrainState:
        """`initial_state` again, once the initial weights were released."""
        policy, _ = load_policy(self.config.policy, self.config.seed, self.mesh)
        job = replace(self, policy=replace(self.policy, trained=policy.trained))
        return job.initial_state()

    def sampling_params(self, state: TrainState) -> Any:
        """Decode weights of a state. They live as long as the caller holds them."""
        return self._decode_weights(state.params)

    def rollout_params(self, state: TrainState) -> Any:
        """As `sampling_params`, of the weights that rollouts are drawn with."""
        stale = state.sampler_params
        return self._decode_weights(state.params if stale is None else stale)

    def _decode_weights(self, trained: Any) -> Any:
        policy = self.policy
        if self.sampled is not None:
            policy = self.sampled
            trained = move_to_mesh(trained, shardings_of(policy.trained))
        # The rollout waits for them anyway.
        return jax.block_until_ready(self.worker.sampler.prepare(policy.whole(trained)))

    def keep_older(self, state: TrainState) -> TrainState:
        """The state before an update, whose weights the next step is drawn with."""
        if not self.config.rollout.async_steps:
            return state
        return replace(state, sampler_params=jax.tree.map(jnp.copy, state.params))

    def refresh_sampler(self, state: TrainState, step: int) -> TrainState:
        """The state after `step`, whose rollouts have the newest weights where that is due."""
        rollout = self.config.rollout
        if state.sampler_params is None or rollout.async_steps or step % rollout.refresh_every:
            return state
        return replace(state, sampler_params=jax.tree.map(jnp.copy, state.params))


def make_job(config: GrpoConfig, run: Run) -> GrpoJob:
    """Load what the configuration names onto the run's mesh, and open the run directory.

    Raises InputError before the directory is made, RunError where processes read other data.
    """
    sampling = _sampling_mesh(config, run.mesh)
    with raise_on_all_processes():
        check_run_functions(config, run.resumed)  # before anything large is loaded
        own_loss = try_loss(config.loss)
    with phase("loading the policy"):
        policy, checkpoint = load_policy(config.policy, config.seed, run.mesh)
    with raise_on_all_processes():
        encode = partial(
            encode_captions, tokenizer=checkpoint.tokenizer, template=config.policy.prompt_template,
            limit=config.policy.max_prompt_tokens,
        )  # fmt: skip
        fits = partial(
            checkpoint.tokenizer.encode_prompt, template=config.policy.prompt_template,
            max_tokens=config.policy.max_prompt_tokens,
        )  # fmt: skip
        prompts = encode(train_captions(config.captions, config.seed, fits))
        heldout = encode(heldout_captions(config.evaluation, config.captions.unusable_limit, fits))
        inputs = {
            "captions.source": describe_texts(prompts.captions, "captions"),
            "evaluation.source": describe_texts(heldout.captions, "captions"),
            **own_loss,
        }
        if is_main_process():  # which alone compares them
            inputs |= identify_weights("policy.init", find_checkpoint(config.policy.init))
    check_same_on_all_processes(prompts.texts(), "set of captions, or tokenizer,")
    check_same_on_all_processes(heldout.texts(), "set of held-out captions")
    run.check_inputs(inputs, f"{inputs['captions.source']} {config.rollout.captions_per_step}")
    batches = AheadBatches(
        iter(caption_batches(prompts.captions, config.rollout.captions_per_step, config.seed))
    )
    run.open()
    with raise_on_all_processes():
        judge = _make_judge(config, run, sampling)
        watched = _watched_judges(config.evaluation, run, sampling)
    if not any(part.kind == "http" for part in (config.judge, *config.judge.also)):
        # What a server is may be unknown for a while; a judge of this process is what it is.
        run.check_inputs({"judge": judge.identity})
    optimizer = make_optimizer(config.optimizer, config.steps * config.update.updates_per_rollout)
    reference = policy.reference() if config.loss.kl != "none" else None
    return GrpoJob(
        config=config,
        policy=policy,
        checkpoint=checkpoint,
        prompts=prompts,
        heldout=heldout,
        batches=batches,
        worker=make_rollout_worker(config, policy, checkpoint, judge, sampling),
        learner=make_learner(
            config, policy, checkpoint.config, checkpoint.tokenizer.specials, optimizer, reference
        ),
        optimizer=optimizer,
        mesh=run.mesh,
        watched=watched,
        sampled=None if sampling is run.mesh else _copy_policy(policy, sampling),
    )


def _sampling_mesh(config: GrpoConfig, trains: Mesh) -> Mesh:
    """`mesh.rollout`, or the mesh that trains; InputError where the rollout does not divide."""
    mesh = rollout_mesh(config.mesh)
    if mesh is None:
        return trains
    for setting, count in sampled_rows(config).items():
        check_rows(count, mesh, setting)
    warm_up_collectives(mesh)
    return mesh


def sampled_rows(config: GrpoConfig) -> dict[str, int]:
    """What the mesh that samples must divide, by its setting."""
    return {
        "evaluation.captions x evaluation.samples": (
            config.evaluation.captions * config.evaluation.samples
        ),
        "the number of rows that are sampled at once": config.rollout.rows_at_once,
        PLANS_AT_ONCE: config.rollout.plans_at_once,
    }


def _copy_policy(policy: SplitPolicy, mesh: Mesh) -> SplitPolicy:
    """The frozen arrays of a policy on another mesh, and there the shapes of the trained ones."""

    def there(tree: Any) -> Any:
        return placed_shapes(tree, state_shardings(tree, mesh))

    frozen = move_to_mesh(policy.frozen, shardings_of(there(policy.frozen)))
    return replace(policy, trained=there(policy.trained), frozen=frozen)


def _make_judge(config: GrpoConfig, run: Run, mesh: Mesh) -> Judge:
    """The judge of the rewards; one on a server is asked a question, which must have an answer."""
    # Answers stay with the run: a resumed step does not ask twice.
    folder = run.dir.root / "judge_cache"
    with phase("making the judge"):
        judge = make_judge(config.judge, folder, local_mesh(mesh), config.reward.terms)
        introduce(judge)
    return judge


def _watched_judges(config: EvaluationConfig, run: Run, mesh: Mesh) -> tuple[WatchedJudge, ...]:
    needed = () if config.patience is None else (config.patience.term,)
    cache = run.dir.root / "judge_cache" / "watched"
    return make_watched(config.judges, cache, local_mesh(mesh), needed)


def train_captions(
    config: CaptionsConfig, seed: int, fits: Callable[[str], object]
) -> tuple[str, ...]:
    """The captions to train on; of files those that `fits` does not refuse by an InputError."""
    if config.source == "shapes":
        return shapes_captions("train", config.count, seed)
    limit = config.unusable_limit
    return read_captions(config.source, config.column, check=fits, unusable_limit=limit)


def heldout_captions(
    config: EvaluationConfig, unusable_limit: float, fits: Callable[[str], object]
) -> tuple[str, ...]:
    """The captions to evaluate on; of files those that `fits` does not refuse."""
    if config.source == "shapes":
        return shapes_captions("heldout", config.captions)
    return read_captions(
        config.source, config.column, config.captions, check=fits, unusable_limit=unusable_limit
    )


def make_rollout_worker(
    config: GrpoConfig, policy: SplitPolicy, checkpoint: Checkpoint, judge: Judge, mesh: Mesh
) -> RolloutWorker:
    """What samples and scores in a job; the checkpoint has the text and image tokenizers."""
    tokenizer = checkpoint.tokenizer
    sampler = make_sampler(config, policy, checkpoint.config, tokenizer.specials, mesh)
    grid, local = checkpoint.config.grid, local_mesh(mesh)
    decoder = ImageDecoder(checkpoint.vq_module(), grid, config.rollout.decode_batch, local)
    at_once = config.rollout.rows_at_once
    return RolloutWorker(sampler, decoder, judge, config.reward, tokenizer, mesh, at_once)


def make_sampler(
    config: GrpoConfig, policy: SplitPolicy, sizes: JanusConfig, specials: SpecialIds, mesh: Mesh
) -> Sampler:
    """The sampler of a job; the arrays of `policy` may be abstract."""
    # The sampler reads one tree, adapters and all.
    graphdef = nnx.split(nnx.merge(policy.graphdef, policy.trained, policy.frozen))[0]
    return Sampler(graphdef, sizes, specials, config.sampling, mesh)


def make_learner(
    config: GrpoConfig, policy: SplitPolicy, sizes: JanusConfig, specials: SpecialIds,
    optimizer: Any, reference: Any,
) -> Learner:  # fmt: skip
    """The compiled updates of a job; the arrays of `policy` may be abstract."""
    settings, loss = config.sampling.logp_settings, loss_settings(config, sizes.num_image_tokens)
    graphdef, micro = policy.graphdef, config.update.micro_batch
    own_loss, buckets = load_loss(loss), config.update.length_buckets
    return Learner(
        token_logps=make_token_logps(graphdef, specials, settings, micro, buckets),
        update=make_policy_step(
            graphdef, optimizer, specials, settings, loss, micro, config.entropy, own_loss, buckets
        ),
        reference=reference,
        tokens=loss.tokens,
    )


def loss_settings(config: GrpoConfig, image_tokens: int) -> GrpoLossConfig:
    """The job's loss, where max_tokens 0 is the most tokens that a sample has in it, and gspo has
    one ratio for tokens with one advantage.

    A BOI after `max_plan_tokens` tokens is forced and never in the loss.
    """
    whole = config.sampling.max_plan_tokens + image_tokens
    ratio = config.loss.gspo_ratio
    if ratio == "auto":
        ratio = "segment" if config.advantage.is_split else "sample"
    return replace(config.loss, max_tokens=config.loss.max_tokens or whole, gspo_ratio=ratio)


def state_shapes(config: GrpoConfig, policy: SplitPolicy, optimizer: Any, mesh: Mesh) -> TrainState:
    """The abstract state of a job with its shardings; the arrays of `policy` may be abstract."""
    abstract = jax.eval_shape(
        lambda params: _first_state(config, params, optimizer), policy.trained
    )
    return placed_shapes(abstract, train_state_shardings(abstract, policy.trained, mesh))


def _first_state(config: GrpoConfig, params: Any, optimizer: Any) -> TrainState:
    """The state before the first update; a sampler that lags behind has a copy of `params`."""
    stale = jax.tree.map(jnp.copy, params) if config.rollout.keeps_older_weights else None
    return new_state(params, optimizer, new_entropy_state(config.entropy), stale)

"""`gotr1 compile` end to end: on CPU devices, and for accelerators where a compiler is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny import grpo_values, sft_values, write_config, write_shapes
from tiny_qwen import TINY_QWEN

from gotr1_jax.aot import read_job
from gotr1_jax.aot.job import ModelSizes, Report
from gotr1_jax.aot.measure import Compiler, Program, ProgramCost
from gotr1_jax.aot.report import compile_job, to_json, to_text
from gotr1_jax.aot.sizes import judge_sizes, policy_sizes
from gotr1_jax.aot.suggest import suggest
from gotr1_jax.aot.target import Target, find_target
from gotr1_jax.config import load_config
from gotr1_jax.convert.find import EMBEDDED
from gotr1_jax.convert.qwen_json import qwen_config_to_json
from gotr1_jax.convert.qwen_vl import abstract_state
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig, UpdateConfig
from gotr1_jax.grpo.policy import load_policy
from gotr1_jax.models.config import JANUS_PRO_7B
from gotr1_jax.models.qwen_config import QWEN2_5_VL_3B
from gotr1_jax.parallel.config import SplitMeshConfig
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.sft.config import SftConfig
from gotr1_jax.tokenizers.janus import TextTokenizer

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "configs" / "shapes_grpo.yaml"


def compile_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: it sets up devices."""
    command = [sys.executable, "-m", "gotr1_jax.cli", "compile", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def shapes_json() -> dict[str, Any]:
    """What --json prints of the demo's configuration on 8 CPU devices."""
    done = compile_command(
        "--config", str(SHAPES), "--topology", "cpu:8", "--json", "--mesh.data", "2",
        "--mesh.fsdp", "4", "--evaluation.captions", "16",
        "--update.micro_batch", "64", "--update.length_buckets", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_json(shapes_json: dict[str, Any]) -> None:
    assert list(shapes_json)[:4] == ["topology", "chips", "hbm_bytes", "programs"]
    assert (shapes_json["topology"], shapes_json["chips"]) == ("cpu:8", 8)
    names = [program["name"] for program in shapes_json["programs"]]
    assert names == [
        "update", "old log-probabilities", "sampler's weights", "prefill", "plan loop, last bucket",
        "null context", "image loop, last bucket", "image decoder",
    ]  # fmt: skip
    for program in shapes_json["programs"]:
        assert list(program)[:7] == [
            "name", "argument_bytes", "temp_bytes", "peak_bytes", "fits", "flops", "collectives",
        ]  # fmt: skip
        assert program["fits"] is True and program["flops"] > 0
        total = program["argument_bytes"] + program["temp_bytes"] + program["output_bytes"]
        assert program["peak_bytes"] == total
        assert program["with_the_rest_bytes"] >= program["peak_bytes"]
    whole = shapes_json["whole_job"]
    assert whole["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1} and whole["fits"] is True
    assert whole["peak_bytes"] == max(p["with_the_rest_bytes"] for p in shapes_json["programs"])


def test_bytes_are_those_of_the_jobs_arrays(shapes_json: dict[str, Any]) -> None:
    config = load_config(GrpoConfig, SHAPES)
    policy, _ = load_policy(config.policy, config.seed, make_mesh(2, 4, 1))

    def on_first(tree: Any) -> int:
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    lasting = shapes_json["whole_job"]["lasting_bytes"]
    assert lasting["policy"] == on_first(policy.frozen)
    # Adapters and two moments of each, besides some counters.
    assert 0 <= lasting["train state"] - 3 * on_first(policy.trained) < 64
    update = shapes_json["programs"][0]
    B, T, C, U = 64 // 8, 61, 48, 64
    old = 2 * (T + U) * 4
    row = (C + T + U + 2) * 4 + T + (T + U) * 4 + old + 4 + 1
    held = lasting["policy"] + lasting["train state"]
    assert held + B * row == pytest.approx(update["argument_bytes"], rel=0.01)
    # Its two updates take half of the rollout each: three passes and one over 64 rows of 173
    # tokens, of which each costs two FLOPs a weight at least.
    weights = sum(x.size for x in jax.tree.leaves(policy.frozen["decoder"]["layers"]))
    assert update["flops"] * 8 > 2 * 2 * weights * 64 * (C + T + U - 1)


def test_gradients_cross_the_mesh(shapes_json: dict[str, Any]) -> None:
    update, replay = shapes_json["programs"][:2]
    # Adapters' gradients and some scalars, but no activations: each of those has 8 rows of 172
    # positions on a device, 128 wide, and there are dozens of products in a pass.
    assert 0 < update["collectives"]["all-reduce"]["bytes"] < 10 * 8 * 172 * 128 * 4
    assert "all-gather" in replay["collectives"], "parameters are split over fsdp"


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aot")
    values = sft_values(write_shapes(folder / "vq"), folder / "run")
    values |= {"batch_size": 64, "micro_batch": 64, "mesh": {"data": 8}}
    values["data"]["examples"] = 64
    return write_config(folder / "sft.yaml", values)


@pytest.fixture(scope="module")
def full_report(supervised: Path) -> Report:
    return compile_job(load_config(SftConfig, supervised), find_target("cpu:8"), ModelSizes())


def with_memory(size: float) -> Target:
    target = find_target("cpu:8")
    return replace(target, chip=replace(target.chip, hbm_bytes=int(size)))


def test_a_supervised_job(supervised: Path, full_report: Report) -> None:
    config = read_job(supervised, ["--batch_size", "64"])
    assert isinstance(config, SftConfig)
    (step,) = full_report.programs
    assert full_report.job_fits and step.program.name == "sft step"
    assert full_report.job.persistent["train state"] <= step.argument_bytes
    text = to_text(replace(full_report, target=with_memory(1000)))
    assert "DOES NOT FIT" in text and "NO" in text


def test_a_program_that_cannot_be_read_back(
    supervised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a libtpu that is newer than jaxlib: all but the collectives is known."""

    def unreadable(_: Any) -> str:
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nmore")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", unreadable)
    report = compile_job(load_config(SftConfig, supervised), find_target("cpu:8"), ModelSizes())
    (step,) = to_json(report)["programs"]
    assert step["collectives"] is None and step["peak_bytes"] > 0
    assert "unknown: compiler and jaxlib have different versions" in to_text(report)


def test_suggest_finds_what_fits(supervised: Path, full_report: Report) -> None:
    config = load_config(SftConfig, supervised)
    limit = 0.6 * full_report.peak_bytes
    found = suggest(config, with_memory(limit), ModelSizes())
    assert found is not None and found.attempts > 1
    assert found.report.job_fits and found.report.peak_bytes <= limit
    # What it prints gives that configuration, and the same experiment.
    again = load_config(SftConfig, supervised, found.overrides.split())
    assert again == found.config
    assert replace(again, mesh=config.mesh, remat=config.remat, micro_batch=64) == config
    # A setting that fits already stays.
    same = suggest(config, find_target("cpu:8"), ModelSizes())
    assert same is not None and same.attempts == 1 and same.config == config


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[GrpoConfig, Compiler, Report]:
    """A job of 4 captions x 16 samples whose rollout needs more memory than its update."""
    folder = tmp_path_factory.mktemp("rollouts")
    values = grpo_values(write_shapes(folder / "policy"), folder / "run")
    values["policy"] |= {"remat": "full"}
    values["rollout"] |= {"captions_per_step": 4, "samples_per_caption": 16, "max_plan_tokens": 99}
    values["update"] |= {"micro_batch": 1}
    values["evaluation"] |= {"captions": 16, "samples": 4}
    config = load_config(GrpoConfig, write_config(folder / "grpo.yaml", values))
    compiler = Compiler(find_target("cpu:1"))
    return config, compiler, compile_job(config, compiler.target, ModelSizes(), compiler)


def test_suggest_samples_fewer_captions_at_once(rollouts) -> None:
    """The update fits, all rows of the rollout together do not: half of them at a time."""
    config, compiler, whole = rollouts
    half = replace(config, rollout=replace(config.rollout, captions_at_once=2))
    halved = compile_job(half, compiler.target, ModelSizes(), compiler)
    assert halved.peak_bytes < 0.6 * whole.peak_bytes
    loops = [
        next(p for p in report.programs if p.program.name == "image loop, last bucket").program
        for report in (whole, halved)
    ]
    assert [loop.runs_per_step for loop in loops] == [
        loops[0].runs_per_step,
        2 * loops[0].runs_per_step,
    ]
    chip = replace(compiler.target.chip, hbm_bytes=halved.peak_bytes)
    found = suggest(config, replace(compiler.target, chip=chip), ModelSizes())
    assert found is not None and (found.config, found.attempts) == (half, 2)
    assert "--rollout.captions_at_once 2" in found.overrides


def test_images_that_share_plans_need_less_memory(rollouts) -> None:
    """Plans are sampled and cached once for 4 images; the evaluation samples a plan an image."""
    config, compiler, flat = rollouts
    rollout = replace(config.rollout, images_per_plan=4)
    tree = compile_job(replace(config, rollout=rollout), compiler.target, ModelSizes(), compiler)
    old, new = ({p.program.name: p for p in report.programs} for report in (flat, tree))
    loop, images = "plan loop, last bucket", "image loop, last bucket"
    # 2 layers of 32 + 32 numbers of 4 bytes a slot, of 64 and of 16 plans.
    slot = 2 * (32 + 32) * 4
    saved = old[images].argument_bytes - new[images].argument_bytes
    assert saved == (64 - 16) * 99 * slot
    assert new[loop].argument_bytes < 0.5 * old[loop].argument_bytes
    assert new[loop].program.runs_per_step == old[loop].program.runs_per_step
    assert new[f"{images}, eval"].argument_bytes > old[images].argument_bytes  # of 16 captions
    assert new[f"{images}, eval"].program.runs_per_step == 0
    assert f"{loop}, eval" not in old
    alone = replace(config.rollout, images_per_plan=16)
    bare = replace(config, rollout=alone, update=UpdateConfig(), mesh=SplitMeshConfig(data=8))
    with pytest.raises(InputError, match="4 captions of 16 samples, 16 a plan: their plans is 4"):
        compile_job(bare, find_target("cpu:8"), ModelSizes())


def test_suggest_gives_up(supervised: Path) -> None:
    assert suggest(load_config(SftConfig, supervised), with_memory(1000), ModelSizes()) is None


def test_bad_input_is_one_line() -> None:
    done = compile_command("--config", str(SHAPES), "--topology", "v9:2x2")
    assert done.returncode == 2 and done.stdout == ""
    assert "unknown topology 'v9:2x2'" in done.stderr and done.stderr.count("\n") == 1
    done = compile_command("--config", str(SHAPES), "--topology", "cpu:8", "--mesh.fdsp", "2")
    assert done.returncode == 2 and "did you mean 'mesh.fsdp'" in done.stderr
    vq = ROOT / "configs" / "shapes_vq.yaml"
    with pytest.raises(InputError, match="only grpo and sft"):
        read_job(vq, [])


@pytest.mark.parametrize("name", ["v5e:4x4", "h200:8"])
def test_compilers_that_are_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.aot.target.find_spec", lambda _: None)
    with pytest.raises(InputError, match=f"compiling for {name} needs .*: pip install"):
        find_target(name)


@pytest.mark.parametrize(
    "name, module, devices",
    [
        ("v5e:4x4", "libtpu", 16),
        ("v5e:2x2*2", "libtpu", 8),
        ("h200:8", "jax_cuda13_plugin", 8),
        ("h200:2*2", "jax_cuda13_plugin", 4),
    ],
)
def test_accelerators(name: str, module: str, devices: int, supervised: Path) -> None:
    """The whole job for chips that are not here, if their compiler is."""
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    target = find_target(name)
    assert len(target.devices) == devices
    config = read_job(supervised, ["--mesh.data", "2", "--mesh.fsdp", str(devices // 2)])
    report = compile_job(config, target, ModelSizes())
    (step,) = report.programs
    assert report.job_fits and step.flops > 0 and step.traffic
    assert step.seconds(target) > 0
    check_links(step, target)


def check_links(step: ProgramCost, target: Target) -> None:
    """Of two slices, `data` alone crosses: sums of gradients, of which each device has a part."""
    assert step.traffic is not None
    crossing = {kind: t for kind, t in step.traffic.items() if t.dcn_count}
    if target.slices == 1:
        assert not crossing
        return
    gathered = step.traffic["all-gather"]
    assert gathered.dcn_bytes < 0.5 * gathered.bytes, "parameters do not cross"
    gradients = step.argument_bytes / 3  # a third of parameters and two moments
    sums = [t.dcn_bytes for kind, t in crossing.items() if kind in ("all-reduce", "reduce-scatter")]
    assert 0.5 * gradients < sum(sums) < 3 * gradients, (step.traffic, gradients)


def test_links_of_two_groups_of_devices(supervised: Path) -> None:
    """CPU devices as two slices: collectives are assigned to links by their replica groups."""
    target = find_target("cpu:4*2")
    assert len(target.host_devices) == 8, "one process has them all"
    config = read_job(supervised, ["--mesh.data", "2", "--mesh.fsdp", "4"])
    report = compile_job(config, target, ModelSizes())
    (step,) = report.programs
    check_links(step, target)
    (one,) = to_json(report)["programs"]
    assert one["collectives"]["all-reduce"]["dcn_bytes"] > 0
    assert to_json(report)["whole_job"]["slices"] == 2
    assert "8 devices in 2 slices" in to_text(report) and "(DCN " in to_text(report)
    with pytest.raises(InputError, match="data does not divide over 2 slices"):
        whole = ["--mesh.data", "1", "--mesh.fsdp", "8", "--mesh.slices", "2"]
        compile_job(read_job(supervised, whole), target, ModelSizes())


def test_programs_keep_no_arguments(full_report: Report) -> None:
    assert all(
        isinstance(p.program, Program) and p.program.args == () for p in full_report.programs
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of random sizes that a Qwen2.5-VL judges, of which there is a config.json alone."""
    folder = tmp_path_factory.mktemp("judged")
    values = grpo_values(write_shapes(folder / "policy"), folder / "run")
    ids = dict.fromkeys(("image_token_id", "vision_start_token_id", "vision_end_token_id"), 1)
    (folder / "judge").mkdir()
    sizes = qwen_config_to_json(TINY_QWEN, ids, "bfloat16")
    (folder / "judge" / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    engine = {"checkpoint": str(folder / "judge"), "rows": 8, "tokens": 8192}
    values["judge"] = {"kind": "qwen_vl", "terms": ["sem", "ri"], "qwen_vl": engine}
    values["reward"] = {"rule": "sum", "terms": ["sem", "ri"]}
    values["loss"] = {"kl": "k3", "kl_weight": 0.01}
    values["mesh"] = {"data": 2, "fsdp": 1, "tensor": 2}
    return write_config(folder / "grpo.yaml", values)


def test_a_judge_in_the_process_is_part_of_the_job(judged: Path) -> None:
    config = load_config(GrpoConfig, judged)
    report = compile_job(config, find_target("cpu:4"), ModelSizes())
    names = [p.program.name for p in report.programs]
    assert names[-4:] == [
        "judge: weights", "judge: images", "judge: questions", "judge: answers, last bucket",
    ]  # fmt: skip
    lasting = report.job.persistent
    # Adapters switched off are as large as adapters switched on, which have two moments.
    assert 0 <= lasting["train state"] - 3 * lasting["reference"] < 64
    # bfloat16; embedding and vision are whole or halved over `tensor`.
    sizes = sum(x.size for x in jax.tree.leaves(abstract_state(TINY_QWEN)))
    units = 8192 * TINY_QWEN.text.hidden_size * 2
    assert sizes < lasting["judge"] - units < 2 * sizes
    by_name = {p.program.name: p for p in report.programs}
    assert by_name["old log-probabilities"].program.runs_per_step == 1, "those of the reference"
    # The judge lies in memory while the policy learns.
    assert report.total_bytes(by_name["update"]) >= lasting["judge"]


def test_sizes_that_names_tell() -> None:
    assert policy_sizes("deepseek-ai/Janus-Pro-7B", None)[0] == JANUS_PRO_7B
    assert policy_sizes("embedded", None)[1].pad == TextTokenizer.from_dir(EMBEDDED).specials.pad
    assert judge_sizes("nowhere/Qwen2.5-VL-3B-Instruct", None) == QWEN2_5_VL_3B
    assert judge_sizes("nowhere", "7b").text.num_kv_heads == 4
    assert judge_sizes("Qwen/Qwen3-VL-32B-Instruct", None) == judge_sizes("nowhere", "32b")
    assert judge_sizes("nowhere", "32b").text.num_layers == 64
    for name in ("Qwen/Qwen2.5-VL-32B-Instruct", "Qwen/Qwen3-VL-30B-A3B-Instruct"):
        with pytest.raises(InputError, match=f"judge {name} is unknown"):
            judge_sizes(name, None)
    with pytest.raises(InputError, match="judge nowhere/a13b is unknown.*--judge-size 3b or 7b"):
        judge_sizes("nowhere/a13b", None)

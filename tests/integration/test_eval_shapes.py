"""`gotr1 eval shapes` and `gotr1 eval understanding` as commands, on models of the shapes world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from report_pages import PageReader
from tiny import grpo_values, write_config, write_shapes

from gotr1_jax.cli import run
from gotr1_jax.config import load_config
from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.evaluate import Evaluation, evaluate
from gotr1_jax.grpo.policy import load_policy
from gotr1_jax.grpo.prompts import encode_captions
from gotr1_jax.grpo.setup import make_rollout_worker
from gotr1_jax.images import open_image
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.shapes.dataset import ShapesSource, shapes_captions
from gotr1_jax.shapes.render import render
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE, TextTokenizer
from gotr1_jax.trainer import samples as samples_module

pytestmark = pytest.mark.usefixtures("devices_as_they_are", "compiled_programs")

CAPTIONS, SAMPLES = 4, 2


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run of the embedded policy."""
    folder = tmp_path_factory.mktemp("job")
    values = grpo_values(Path("embedded"), folder / "run")
    sampling = {"guidance": 3.0, "text_temperature": 1.0, "image_temperature": 1.0}
    values["rollout"] |= {"max_plan_tokens": 60, **sampling}
    values["reward"] = {"rule": "v2"}
    values["evaluation"] |= {"captions": CAPTIONS, "samples": SAMPLES}
    return write_config(folder / "config.yaml", values)


@pytest.fixture(scope="module")
def own(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """What the run itself finds before its training."""
    config = load_config(GrpoConfig, job)
    mesh = make_mesh(data=1)
    policy, checkpoint = load_policy(config.policy, config.seed, mesh)
    worker = make_rollout_worker(config, policy, checkpoint, make_judge(config.judge), mesh)
    heldout = encode_captions(
        shapes_captions("heldout", CAPTIONS), checkpoint.tokenizer, config.policy.prompt_template,
        config.policy.max_prompt_tokens,
    )  # fmt: skip
    root = tmp_path_factory.mktemp("own")
    params = worker.sampler.prepare(policy.whole(policy.trained))
    what = config.evaluation, "eval_before", root
    return evaluate(worker, params, heldout, *what, rows=CAPTIONS * SAMPLES // 2)


def command(job: Path, out: Path, *more: str) -> list[str]:
    words = ["eval", "shapes", "--ckpt", "embedded", "--config", str(job), "--out", str(out)]
    return [*words, "--batch-size", str(2 * SAMPLES), *more]


def scores_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "scores.json").read_text())


@pytest.fixture(scope="module")
def whole(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a command that was not stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
        assert run(command(job, out, "--card", str(out.parent / "card.json"))) == 0
    return out


def check_card(card: Path, out: Path, *parts: str) -> dict[str, Any]:
    """That a card has the scores and facts of scores.json; its content."""
    made, stored = json.loads(card.read_text()), scores_of(out)
    assert made["card"] == "gotr1_jax result card 1" and made["seconds"] > 0
    assert made["versions"]["jax"] and made["hardware"]["devices"] >= 1
    for part in ("scores", *parts):
        assert made[part] == stored[part], part
    return made


def test_the_figures_of_a_run(own: Evaluation, whole: Path) -> None:
    found = scores_of(whole)
    again = Evaluation.from_json(found["by_caption"])
    np.testing.assert_array_equal(again.total, own.total)
    for term, values in own.terms.items():
        np.testing.assert_array_equal(again.terms[term], values)
    # Not an agreement of nothing with nothing.
    assert own.terms["sem"].mean() > 0.5 and 0 < own.total.mean() < 1
    assert set(again.terms) - set(own.terms) == {"verdict"}
    row = found["scores"]["total"]
    assert (row["captions"], row["pictures"], row["failed"]) == (CAPTIONS, CAPTIONS * SAMPLES, 0)
    assert row["value"] == pytest.approx(own.means["total"])
    assert row["low"] <= row["value"] <= row["high"]
    assert len((whole / "pictures.jsonl").read_text().splitlines()) == CAPTIONS * SAMPLES
    assert "| total |" in (whole / "scores.md").read_text()
    page = PageReader((whole / "gallery.html").read_text("utf-8"))
    assert [len(item["cards"]) for item in page.items("images")] == [SAMPLES] * CAPTIONS
    totals = [sample["values"]["total"] for sample in page.data["samples"]]
    assert np.mean(totals) == pytest.approx(row["value"], abs=1e-6)
    assert "verdict" in page.data["binary"]
    facts = ("sampling", "captions", "images", "training_judge")
    made = check_card(whole.parent / "card.json", whole, *facts)
    assert made["images"]["per_caption"] == SAMPLES and made["seed"] == found["sampling"]["seed"]
    text = (whole / "scores.md").read_text()
    assert f"{CAPTIONS} of the held-out captions of the shapes world, as they are" in text
    assert "of embedded; template gotr1, guidance" in text and f"seed {made['seed']}." in text


def test_a_command_that_was_stopped_goes_on(
    job: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", samples_module.write_samples
    written: list[str] = []

    def counting(folder: Path, step: int, records: Any, *, name: str) -> Path:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(name)
        return write(folder, step, records, name=name)

    monkeypatch.setattr(samples_module, "write_samples", counting)
    assert run(command(job, out)) == 130
    assert not (out / "scores.json").exists()
    (out / "samples" / ".00003.tmp1").mkdir()  # what a killed process leaves
    monkeypatch.setattr(samples_module, "write_samples", write)
    assert run(command(job, out)) == 0
    for name in ("scores.json", "scores.md"):
        assert (out / name).read_text() == (whole / name).read_text()
    assert sorted(p.name for p in (out / "samples").iterdir()) == [f"{i:05d}" for i in range(4)]


def test_images_that_are_there(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["eval", "shapes", "--images", str(whole), "--out", str(out)]) == 0
    assert scores_of(out)["by_caption"] == scores_of(whole)["by_caption"]
    assert "how they were sampled is not known" in (out / "scores.md").read_text()


def test_other_settings_are_refused(
    job: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounded = tmp_path / "int8.yaml"
    rounded.write_text(job.read_text().replace("rollout:\n", "rollout:\n  cache_dtype: int8\n"))
    for words, said in (
        (command(job, whole, "--cfg", "2"), "guidance 3.0, not 2.0"),
        (command(rounded, whole), "cache_dtype 'auto', not 'int8'"),
    ):
        assert run(words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--captions", "0"], "captions is 0"),
        (["--samples", "-1"], "samples is -1"),
        (["--seed", "-1"], "seed is -1"),
        (["--cfg", "0.5"], "guidance is 0.5"),
        (["--max-plan-tokens", "0"], "max_plan_tokens is 0"),
        (["--template", "nothing"], "nothing"),
    ],
)
def test_bad_settings(
    job: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(job, tmp_path / "out", *words)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_reward_that_the_exact_judge_lacks(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = job.read_text() + "\n"
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("rule: v2", "rule: sum\n  terms: [hps]") + "judge: {kind: hps, hps: {checkpoint: x}}\n")  # fmt: skip  # noqa: E501
    assert run(command(other, tmp_path / "out")) == 2
    assert "'hps'" in capsys.readouterr().err


def unpadded_nats(folder: Path, index: int) -> float:
    """Mean of -log p of the tokens of a true image, by one forward of its own row."""
    example = ShapesSource("heldout", 2)[index]
    checkpoint = load_checkpoint(folder)
    policy, tokenizer = checkpoint.policy_module(), checkpoint.tokenizer
    true = render(example.scene, checkpoint.config.image_size)[None] / np.float32(127.5) - 1
    ids_1U = checkpoint.vq_module().encode_ids(jnp.asarray(true))
    text = tokenizer.encode_prompt(example.caption, GOTR1_TEMPLATE)
    text += [*tokenizer.encode_plan(example.plan), tokenizer.specials.boi]
    parts = [policy.embed_text(jnp.array([text])), policy.embed_image(ids_1U)]
    x_1SD = jnp.concatenate(parts, axis=1)
    hidden_1SD = policy.hidden(x_1SD, jnp.arange(x_1SD.shape[1])[None])
    logits_UI = policy.image_logits(hidden_1SD[0, len(text) - 1 : -1])
    logp_UI = jax.nn.log_softmax(logits_UI, axis=-1)
    return -float(jnp.take_along_axis(logp_UI, ids_1U[0][:, None], axis=1).mean())


def test_images_of_given_plans(tmp_path: Path) -> None:
    """The image of a true plan is that of `gotr1 generate --plans`; the
    tokens of the true one are scored as in a forward without padding."""
    tiny, out = write_shapes(tmp_path / "tiny"), tmp_path / "out"
    common = ["--ckpt", str(tiny), "--batch-size", "2", "--cfg", "3"]
    words = ["eval", "given_plans", *common, "--captions", "2", "--edits", "1", "--out", str(out)]
    assert run([*words, "--card", str(tmp_path / "card.json")]) == 0
    made = check_card(tmp_path / "card.json", out, "sampling", "captions", "images")
    assert made["sampling"]["guidance"] == 3 and made["captions"]["number"] == 2
    text = (out / "scores.md").read_text()
    assert "guidance 3, temperature 1 of the image" in text and "of the plan" not in text
    lines = [json.loads(line) for line in (out / "pictures.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [
        "reconstructed/00000", "generated/00000", "edited/00000", "reconstructed/00001",
        "generated/00001",
    ]  # fmt: skip
    plans = tmp_path / "plans.jsonl"
    true = [line for line in lines if line["image"].startswith("generated")]
    plans.write_text(
        "".join(json.dumps({"prompt": x["caption"], "plan": x["plan"]}) + "\n" for x in true)
    )
    tokenizer = TextTokenizer.from_dir(tiny)
    every = [line["plan"] for line in lines]
    longest = max(len(tokenizer.encode_plan(plan)) for plan in every)
    again = ["generate", *common, "--plans", str(plans), "--out", str(tmp_path / "again")]
    assert run([*again, "--max-plan-tokens", str(longest)]) == 0
    for i in range(2):
        drawn = np.asarray(open_image(out / "generated" / f"{i:05d}" / "00_00.png"))
        given = np.asarray(open_image(tmp_path / "again" / f"{i:05d}" / "image_00.png"))
        np.testing.assert_array_equal(drawn, given)
    assert scores_of(out)["scores"]["nats"]["value"] == pytest.approx(
        np.mean([unpadded_nats(tiny, index) for index in range(2)]), rel=1e-4
    )


def test_understanding_of_two_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two random models; batches that do not divide the questions, then everything again."""
    tiny = write_shapes(tmp_path / "tiny")
    out = tmp_path / "out"
    words = [
        "eval", "understanding", "--ckpt", str(tiny), "--baseline", "embedded", "--out", str(out),
        "--questions", "5", "--batch", "3", "--max-tokens", "4",
    ]  # fmt: skip
    assert run([*words, "--card", str(tmp_path / "card.json")]) == 0
    assert "| all |" in capsys.readouterr().out
    made = check_card(tmp_path / "card.json", out, "questions")
    assert made["questions"]["number"] == 5 and made["questions"]["max_tokens"] == 4
    assert "answers greedy, of at most 4 tokens" in (out / "scores.md").read_text()
    before = [(out / name).read_bytes() for name in ("scores.json", "scores.md", "answers.jsonl")]
    lines = [json.loads(line) for line in before[2].splitlines()]
    assert len(lines) == 5 and all(len(line["ckpt"]["said"]) for line in lines)
    assert [(tmp_path / line["image"]).is_file() for line in lines] == [True] * 5
    # One question asked alone says the same: batches and fillers change nothing.
    asked = out / "asked" / "answers.jsonl"
    kept = asked.read_text().splitlines(keepends=True)
    assert len(kept) == 10
    asked.write_text("".join(kept[1:]))
    assert run(words) == 0
    after = [(out / name).read_bytes() for name in ("scores.json", "scores.md", "answers.jsonl")]
    assert after == before

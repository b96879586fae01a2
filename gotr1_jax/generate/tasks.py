"""Captions and given plans, read from their files one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gotr1_jax.data.captions import iter_captions
from gotr1_jax.errors import InputError
from gotr1_jax.generate.config import GenerateConfig
from gotr1_jax.io.reading import list_folder, parse_json, read_lines, read_text
from gotr1_jax.plan import Plan, parse_plan
from gotr1_jax.tokenizers.janus import SPECIAL_STRINGS, TextTokenizer, without_boi

JOINED_PLANS = "plans.jsonl"
"""File with all plans of a run that samples plans only."""


@dataclass(frozen=True)
class GivenPlan:
    """A given plan: its text, and its sampled token ids if known."""

    text: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class CaptionTask:
    """One caption and the samples of it.

    Attributes:
      index: of the caption in its file, from 0.
      caption: the caption.
      where: file and line, for messages; empty for a caption from the command line.
      count: number of samples (images, or plans).
      first: index of its first image, counted over the whole file.
      plans: given plans, each used `count / len(plans)` times; None: plans are sampled.
      stem: name without ending of the caption's file.
      line: the caption's whole line.
    """

    index: int
    caption: str
    where: str
    count: int
    first: int
    plans: tuple[GivenPlan, ...] | None = None
    stem: str = ""
    line: str = ""

    def at(self, message: object) -> InputError:
        """An error with the caption's file and line in front."""
        return InputError(f"{self.where}: {message}" if self.where else str(message))


@dataclass(frozen=True)
class _Caption:
    text: str
    where: str
    stem: str = ""
    line: str = ""


@dataclass(frozen=True)
class _CaptionPlans:
    prompt: str
    where: str
    plans: tuple[GivenPlan, ...]


def caption_tasks(
    captions: Sequence[str], plans: Sequence[str] | None = None, count: int = 1
) -> list[CaptionTask]:
    """`count` samples of each caption, of its given plan where there are plans."""
    given = [None] * len(captions) if plans is None else [(GivenPlan(text),) for text in plans]
    return [
        CaptionTask(i, caption, "", count, i * count, plan)
        for i, (caption, plan) in enumerate(zip(captions, given, strict=True))
    ]


def read_tasks(config: GenerateConfig) -> Iterator[CaptionTask]:
    """The captions of a run in order; files are read at each call, and not kept in memory.

    Raises InputError, naming file and line, for what cannot be read and for plans that do not
    belong to the captions.
    """
    captions = _captions(config)
    planned = None if config.plans is None else _plans(config.plans)
    first = 0
    for index, (caption, plan) in enumerate(_pairs(captions, planned)):
        count = config.samples * (1 if plan is None else len(plan.plans))
        yield CaptionTask(
            index, caption.text, caption.where, count, first,
            None if plan is None else plan.plans, caption.stem, caption.line,
        )  # fmt: skip
        first += count


def plan_ids(plan: GivenPlan, tokenizer: TextTokenizer, longest: int) -> list[int]:
    """Token ids of a given plan, BOI last.

    Its own ids are used if they still decode to its text, so that a sampled plan gives the same
    image again. Otherwise the text is encoded; only the marks of boxes and objects become control
    tokens, and a BOI at the end of the text is dropped.
    Raises InputError for a plan of more than `longest` tokens.
    """
    boi = tokenizer.specials.boi
    ids = list(plan.ids)
    known = all(0 <= i < tokenizer.vocab_size for i in ids)
    if not (known and ids[-1:] == [boi] and boi not in ids[:-1]
            and tokenizer.decode(ids, keep_special=True) == plan.text):  # fmt: skip
        text = plan.text.removesuffix(SPECIAL_STRINGS["boi"])
        ids = [*tokenizer.encode_plan(text), boi]
    if len(ids) - 1 > longest:
        raise InputError(
            f"the plan has {len(ids) - 1} tokens, more than the limit of {longest}; shorten it or "
            "raise --max-plan-tokens"
        )
    return ids


def read_plan(ids: Sequence[int], tokenizer: TextTokenizer) -> Plan:
    """The plan of token ids, without the token that begins the image."""
    return parse_plan(without_boi(tokenizer.decode(list(ids), keep_special=True)))


def _captions(config: GenerateConfig) -> Iterator[_Caption] | None:
    """The captions; None: they come with the plans."""
    if config.prompt is not None:
        return iter([_Caption(config.prompt, "")])
    path = config.prompts
    if path is None:
        return None
    if path.is_dir():
        if config.layout in ("t2i_compbench", "geneval"):
            raise InputError(f"--layout {config.layout} needs a file of prompts; {path} is none")
        return _prompt_files(path)
    if config.layout == "dpg":
        raise InputError(
            f"--layout dpg needs the benchmark's directory of prompt files, not {path}"
        )
    _check_regular(path)
    lines = iter_captions(path, json_lines=True if config.layout == "geneval" else None)
    return (_Caption(e.text, f"{path}, line {e.number}", line=e.line) for e in lines)


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file, and it is read more than once")


def _prompt_files(folder: Path) -> Iterator[_Caption]:
    """One caption a .txt file, in the order of their names."""
    files = [f for f in list_folder(folder, "captions") if f.suffix == ".txt"]
    if not files:
        raise InputError(f"{folder} holds no .txt file with a prompt")
    for file in files:
        yield _Caption(read_text(file, "captions").strip(), str(file), file.stem)


def _pairs(
    captions: Iterator[_Caption] | None, planned: Iterator[_CaptionPlans] | None
) -> Iterator[tuple[_Caption, _CaptionPlans | None]]:
    """Captions with their plans; both sources must have the same captions in the same order."""
    if planned is None:
        assert captions is not None
        yield from ((caption, None) for caption in captions)
        return
    if captions is None:
        yield from ((_Caption(plan.prompt, plan.where), plan) for plan in planned)
        return
    for caption, plan in zip_longest(captions, planned):
        if caption is None:
            raise InputError(f"{plan.where}: there are more plans than captions")
        if plan is None:
            raise InputError(f"{caption.where}: there are fewer plans than captions")
        if plan.prompt != caption.text:
            raise InputError(
                f"{plan.where} is a plan for {plan.prompt!r}, but {caption.where} is "
                f"{caption.text!r}; plans follow the order of the captions"
            )
        yield caption, plan


def _plans(path: Path) -> Iterator[_CaptionPlans]:
    """Plans of a .jsonl file, of one result.json, or of a whole output directory."""
    if path.is_dir():
        yield from _plans_of_directory(path)
        return
    _check_regular(path)
    if path.suffix == ".json":
        yield _plans_of_file(path)
    else:
        found = False
        for number, line in read_lines(path, "plans"):
            found = True
            yield _parse_plans(line, f"{path}, line {number}")
        if not found:
            raise InputError(f"{path} holds no plan; write one JSON object a line")


def _plans_of_directory(folder: Path) -> Iterator[_CaptionPlans]:
    if (folder / JOINED_PLANS).is_file():
        yield from _plans(folder / JOINED_PLANS)
        return
    files = [*folder.glob("[0-9]*/result.json"), *folder.glob("plans/[0-9]*.json")]
    files = files or [f for f in (folder / "result.json",) if f.is_file()]
    if not files:
        raise InputError(f"{folder} holds no plans: no {JOINED_PLANS} and no result.json")
    # By number: a run of more than 100000 captions has longer names.
    for file in sorted(files, key=lambda f: (len(f.relative_to(folder).as_posix()), f)):
        yield _plans_of_file(file)


def _plans_of_file(file: Path) -> _CaptionPlans:
    return _parse_plans(read_text(file, "plans"), str(file))


def _parse_plans(text: str, where: str) -> _CaptionPlans:
    """Plans of one caption: a JSON object with `plan`, or a result.json's `samples`."""
    record = parse_json(text, where)
    if not isinstance(record, dict):
        raise InputError(f"{where} is not an object with the keys 'prompt' and 'plan'")
    prompt = record.get("prompt", record.get("caption"))
    if not isinstance(prompt, str):
        raise InputError(f"{where} has no text under 'prompt'")
    if "plan" in record:
        found = [{"plan_text": record["plan"]}]
    else:
        found = record.get("samples", [])
    good = isinstance(found, list) and all(
        isinstance(s, dict) and isinstance(s.get("plan_text"), str) for s in found
    )
    if not found or not good:
        raise InputError(f"{where} has no text under 'plan', and no samples with 'plan_text'")
    plans = tuple(GivenPlan(sample["plan_text"], _ids(sample)) for sample in found)
    return _CaptionPlans(prompt.strip(), where, plans)


def _ids(sample: dict[str, Any]) -> tuple[int, ...]:
    ids = sample.get("plan_ids", ())
    good = isinstance(ids, list) and all(type(i) is int for i in ids)
    return tuple(ids) if good else ()

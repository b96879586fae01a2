"""What must travel with a number: how the images were sampled, of which captions, judged by whom.

They stand in scores.json, under `sampling`, `captions`, `images` and `training_judge`, and in words
at the foot of the table. An evaluation of answers has `questions` in their place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gotr1_jax.convert.find import RUN_CONFIG, RUN_MODEL
from gotr1_jax.errors import InputError
from gotr1_jax.generate.config import SAMPLING_NAMES
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.io.strict_yaml import read_yaml_file
from gotr1_jax.tokenizers.janus import TEMPLATES
from gotr1_jax.trainer.run_dir import CHECKPOINTS_NAME

_SHOWN = 120  # characters of a template in the table
_MOST_RUNS = 8  # that are followed from a model back to what it began from
_COMMON = (RUN_MODEL, "checkpoint", "weights")  # last parts of many paths
_NAMES = ("checkpoint", "model")  # keys of settings that name a judge's weights


def caption_facts(
    captions: Sequence[str], source: str, expanded_by: str | None = None
) -> dict[str, Any]:
    """The captions that images were sampled from: their source, number, length and digest."""
    words = sum(len(caption.split()) for caption in captions) / max(1, len(captions))
    return {
        "file": source,
        "number": len(captions),
        "mean_words": round(words, 1),
        "sha256": content_digest(list(captions)),
        "expanded_by": expanded_by,
    }


def sampling_facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How images were sampled, by the settings that `gotr1 generate` wrote beside them."""
    names = (*SAMPLING_NAMES, "cache_dtype")  # the last is there only where it was chosen
    return {name: settings[name] for name in names if name in settings}


def content_digest(values: Sequence[Any]) -> str:
    """What tells other captions, or questions, than these: of plain values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def image_facts(sizes: Iterable[tuple[int, int]], captions: int, source: str) -> dict[str, Any]:
    """The images: how many a caption, and their (height, width) in pixels, the commonest first."""
    counted = Counter(sizes)
    return {
        "per_caption": counted.total() / max(1, captions),
        "resolution": [f"{width}x{height}" for (height, width), _ in counted.most_common(3)],
        "of": source,
    }


def facts_lines(head: Mapping[str, Any]) -> list[str]:
    """The facts of `scores.json` in words, one paragraph each."""
    lines = []
    if "images" in head:
        lines += [f"Images: {_images(head['images'])}; {_sampling(head.get('sampling', {}))}."]
    if "captions" in head:
        lines.append(f"Captions: {_captions(head['captions'])}.")
    if "questions" in head:
        lines.append(f"Questions: {_questions(head['questions'])}.")
    if "training_judge" in head:
        lines.append(_training_judge(head["training_judge"]))
    return lines


def _images(facts: Mapping[str, Any]) -> str:
    sizes = " and ".join(facts["resolution"]) or "no size"
    return f"{facts['per_caption']:g} a caption, {sizes} pixels, of {facts['of']}"


def _sampling(facts: Mapping[str, Any]) -> str:
    if not facts:
        return "how they were sampled is not known (template, guidance, temperature)"
    known = {text: name for name, text in TEMPLATES.items()}
    template = facts.get("template")
    shown = known.get(template or "", json.dumps(template, ensure_ascii=False)[:_SHOWN])
    words = {
        "cfg": "guidance {}", "guidance": "guidance {}",
        "temperature": "temperature {} of the plan",
        "text_temperature": "temperature {} of the plan",
        "image_temperature": "{} of the image", "top_k": "top-k {}", "top_p": "top-p {}",
        "max_plan_tokens": "plans of at most {} tokens", "cache_dtype": "KV cache in {}",
        "seed": "seed {}",
    }  # fmt: skip
    if not facts.keys() & {"temperature", "text_temperature"}:  # given plans
        words["image_temperature"] = "temperature {} of the image"
    parts = [f"template {shown}"]
    parts += [text.format(_number(facts[name])) for name, text in words.items() if name in facts]
    return ", ".join([*parts, "greedy"] if facts.get("greedy") else parts)


def _captions(facts: Mapping[str, Any]) -> str:
    how = "as they are" if facts["expanded_by"] is None else f"expanded by {facts['expanded_by']}"
    return (
        f"{facts['number']} of {facts['file']}, {how}, {facts['mean_words']:g} words in the mean, "
        f"SHA-256 {facts['sha256']}"
    )


def _questions(facts: Mapping[str, Any]) -> str:
    system = facts["system"]
    line = f"after the line {json.dumps(system)[:_SHOWN]}" if system else "without a line before"
    return (
        f"{facts['number']} of {facts['file']}, SHA-256 {facts['sha256']}, {line}; answers greedy, "
        f"of at most {facts['max_tokens']} tokens, in {facts['dtype']}"
    )


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def training_judge(model: str | Path | None, scorers: Iterable[str]) -> dict[str, Any]:
    """Which of the scorers a model was trained on, as far as the run that made it says.

    Args:
        model: directory of a run or of a model in one; what it began from counts too. None and
            anything else: nothing is known.
        scorers: names or identities of what scores the benchmark.

    Returns:
        known: whether the model is of a run. trained_on: names of its judges, of all runs that led
        to it. same: the scorers among them.
    """
    trained: dict[str, None] = {}
    known = False
    for run in _runs(model):
        known = True
        trained |= dict.fromkeys(_judges(run))
    same = [scorer for scorer in dict.fromkeys(scorers) if _is_among(scorer, trained)]
    return {"known": known, "trained_on": [t for t in trained if "weights=" not in t], "same": same}


def _training_judge(facts: Mapping[str, Any]) -> str:
    if not facts["known"]:
        return "Whether the model was trained on what scores here is not known: no run says so."
    if facts["same"]:
        return (
            f"Reward and benchmark: the model was trained on {_short(facts['same'])}, which scores "
            "here too. A high score may be what that judge's mistakes reward; compare with "
            "another judge."
        )
    if not facts["trained_on"]:
        return "The run that made the model has no judge: nothing that scores here was trained on."
    trained = ", ".join(facts["trained_on"])
    return f"The model was trained on {trained}; that does not score here."


def _short(scorers: Iterable[str]) -> str:
    """Scorers without their settings."""
    return " and ".join(re.sub(r"\s\w+=.*", "", scorer) for scorer in scorers)


def _runs(model: str | Path | None) -> Iterator[Path]:
    """The run that made a model, then the run that made what this began from, and so on."""
    seen: set[Path] = set()
    while model is not None and len(seen) < _MOST_RUNS:
        run = _run_of(Path(model))
        if run is None or run.resolve() in seen:
            return
        seen.add(run.resolve())
        yield run
        policy = _settings(run).get("policy")
        model = policy.get("init") if isinstance(policy, Mapping) else None
        model = model if isinstance(model, str) else None


def _run_of(place: Path) -> Path | None:
    """The run that a directory is, or whose model or checkpoint it is."""
    path = place.absolute()
    folders = [path]
    folders += [path.parent] if path.name.startswith(RUN_MODEL) else []
    folders += [path.parent.parent] if path.parent.name == CHECKPOINTS_NAME else []
    return next((folder for folder in folders if (folder / RUN_CONFIG).is_file()), None)


def _settings(run: Path) -> Mapping[str, Any]:
    try:
        values = read_yaml_file(run / RUN_CONFIG)
    except InputError:
        return {}
    return values if isinstance(values, Mapping) else {}


def _judges(run: Path) -> list[str]:
    """Kinds, models and identities of a run's judges, those of its terms included."""
    settings = _settings(run)
    judge, reward = settings.get("judge"), settings.get("reward")
    terms = reward.get("terms") if isinstance(reward, Mapping) else None
    if not isinstance(judge, Mapping) and not isinstance(terms, Mapping):
        return []
    kinds = [part.get("kind") for part in (judge or {}, *_also(judge)) if isinstance(part, Mapping)]
    # A judge that has a model is known by it; of the exact judge there is nothing but the kind.
    exact = [kind for kind in kinds if kind == "shapes" or kind is None]
    found = ["the exact judge"] if exact and isinstance(judge, Mapping) else []
    return [*found, *_named(judge), *_named(terms), *_identities(run)]


def _also(judge: Any) -> list[Any]:
    also = judge.get("also") if isinstance(judge, Mapping) else None
    return also if isinstance(also, list) else []


def _named(value: Any) -> Iterator[str]:
    """All texts under a key that names a model, at any depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in _NAMES and isinstance(item, str) and item:
                yield item
            else:
                yield from _named(item)
    elif isinstance(value, list):
        for item in value:
            yield from _named(item)


def _identities(run: Path) -> Iterator[str]:
    """What the run stored of its judges' weights."""
    files = (("inputs.json", ("judge",)), ("eval_before.json", ("measured_under", "judge")))
    for name, keys in files:
        try:
            value: Any = read_json_object(run / name, missing_ok=True)
        except InputError:
            continue
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, str) and "weights=" in value:
            yield value


def _is_among(scorer: str, trained: Iterable[str]) -> bool:
    """By the digest of the weights, or the last part of the model's name."""
    digests = set(re.findall(r"weights=(\w+)", scorer))
    names = {_last(word.strip("()")) for word in (scorer, *scorer.split())} - {""}
    return any(
        _last(known) in names or digests & set(re.findall(r"weights=(\w+)", known))
        for known in trained
    )


def _last(name: str) -> str:
    """The last part of a name or path; of one that many have, the part before it too."""
    parts = name.rstrip("/").lower().split("/")
    return "/".join(parts[-2:] if parts[-1] in _COMMON else parts[-1:])

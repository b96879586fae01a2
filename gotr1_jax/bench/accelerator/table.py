"""The record as Markdown: one table for each kind of section."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from gotr1_jax.bench.accelerator.prediction import PROGRAMS
from gotr1_jax.bench.accelerator.record import MEASURED, BenchRecord
from gotr1_jax.io.markdown import markdown_table

_Values = dict[str, Any]


def to_markdown(record: BenchRecord) -> str:
    """Everything that is known."""
    machine, measured = record.machine, _by_kind(record)
    parts = [f"# {machine['device']}", _machine(machine)]
    if rollouts := measured.get("rollout"):
        parts += ["## Plan loop and image loop", _loops(record, rollouts), _LOOPS_NOTE]
    work = [pair for kind in ("update", "log-probs") for pair in measured.get(kind, [])]
    if work:
        parts += ["## Update and teacher-forced log-probs", _work(record, work), _WORK_NOTE]
    if after := [*measured.get("decode", []), *measured.get("judge", [])]:
        parts += ["## VQ decoder and judge", _after(record, after)]
    if differences := measured.get("difference"):
        parts += ["## Sampler against trainer", _differences(differences)]
    if steps := list(_steps(record, measured)):
        head = (
            "step",
            "rollout s",
            "decode s",
            "judge s",
            "update s",
            "all s",
            "samples/s",
            "judge",
        )
        parts += ["## A whole step", markdown_table(head, steps), _STEP_NOTE]
    if predicted := measured.get("predicted"):
        parts += ["## Predicted", _predictions(predicted)]
    if rest := [(n, s["status"], str(s.get("why", ""))) for n, s in _not_measured(record)]:
        parts += ["## Not measured", markdown_table(("section", "", "why"), rest)]
    return "\n\n".join(parts) + "\n"


_STEP_HEAD = (
    "step", "rollout s", "decode s", "judge s", "update s", "all s", "samples/s", "judge",
)  # fmt: skip
_LOOPS_NOTE = (
    "Share of bandwidth: the least bytes that a loop reads (weights once a token, the filled part "
    "of each cache, what rows share once) over its time and the peak bandwidth; prefill, sampling "
    "of tokens and growth of the caches are in its time."
)
_WORK_NOTE = (
    "MFU: FLOPs of one forward pass (of the update: two passes with adapters, three without), "
    "attention counted in full (by splash: the blocks of its grid), over time and peak FLOP/s; "
    "executed: with all that is recomputed."
)
_STEP_NOTE = (
    "A sum of parts is made of the sections above, scaled to a step's rows; a step was run as "
    "`gotr1 train grpo` runs it, all in one process. HPS is in neither."
)


def _machine(machine: _Values) -> str:
    lines = [
        f"jax {machine['jax']}, jaxlib {machine['jaxlib']}; {machine['driver']}",
        f"{machine['memory_bytes'] / 1e9:.1f} GB; peak numbers used: "
        + (
            f"{machine['peak_flops'] / 1e12:.1f} TFLOP/s (bfloat16), "
            f"{machine['peak_bandwidth'] / 1e9:.0f} GB/s"
            if machine["peak_flops"]
            else "none, this device is not in gotr1_jax/aot/chips.py"
        ),
        f"sizes: {machine['sizes']}, random weights, bfloat16",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _by_kind(record: BenchRecord) -> dict[str, list[tuple[str, _Values]]]:
    """Measured sections by their kind, with the name of what was measured."""
    found: dict[str, list[tuple[str, _Values]]] = {}
    for name, values in record.sections.items():
        if values["status"] == MEASURED:
            found.setdefault(kind_of(name), []).append((name, values))
    return found


def kind_of(name: str) -> str:
    """'7B rollout 64' -> 'rollout'; 'judge' -> 'judge'."""
    parts = name.split()
    return parts[1] if len(parts) > 1 else parts[0]


def _not_measured(record: BenchRecord) -> Iterator[tuple[str, _Values]]:
    for name, values in record.sections.items():
        if values["status"] != MEASURED:
            yield name, values


def _loops(record: BenchRecord, rollouts: list[tuple[str, _Values]]) -> str:
    head = (
        "section", "plan tokens/s", "of bandwidth", "images/s", "of bandwidth", "samples/s",
        "compile s", "peak GB", "predicted",
    )  # fmt: skip
    rows = []
    for name, v in sorted(rollouts, key=lambda pair: (pair[0].split()[0], pair[1]["rows"])):
        plan, image = v["plan"], v["image"]
        rows.append((
            name, _number(plan["tokens_per_second"]), _percent(plan["bandwidth_share"]),
            _number(image["images_per_second"]), _percent(image["bandwidth_share"]),
            _number(v["samples_per_second"]), _compile(v), *_peaks(record, name, v),
        ))  # fmt: skip
    return markdown_table(head, rows)


def _work(record: BenchRecord, sections: list[tuple[str, _Values]]) -> str:
    head = (
        "section", "micro-batch", "remat", "attention by", "rows/s", "MFU", "executed",
        "compile s", "peak GB", "predicted",
    )  # fmt: skip
    rows = [
        (
            name, str(v["micro_batch"]), v["remat"], v.get("attention", "xla"),
            _number(v["rows_per_second"]), _percent(v["mfu"]), _percent(v["executed_share"]),
            _compile(v), *_peaks(record, name, v),
        )
        for name, v in sorted(sections)
    ]  # fmt: skip
    return markdown_table(head, rows)


def _after(record: BenchRecord, sections: list[tuple[str, _Values]]) -> str:
    head = ("section", "samples/s", "questions/s", "compile s", "peak GB", "predicted")
    rows = [
        (
            name, _number(v.get("samples_per_second", v.get("images_per_second"))),
            _number(v.get("questions_per_second")), _compile(v), *_peaks(record, name, v),
        )
        for name, v in sections
    ]  # fmt: skip
    return markdown_table(head, rows)


def _differences(sections: list[tuple[str, _Values]]) -> str:
    head = ("policy", "modality", "mean", "median", "largest", "entropy")
    rows = [
        (name.split()[0], kind, *(f"{v[kind][key]:.2g}" for key in head[2:]))
        for name, v in sections
        for kind in ("text", "image")
        if kind in v
    ]
    return markdown_table(head, rows) + "\n\n|Δ log-probability| of the same tokens, in nats."


def _steps(
    record: BenchRecord, measured: dict[str, list[tuple[str, _Values]]]
) -> Iterator[tuple[str, ...]]:
    """Rows of the table of steps: the sum of parts of each policy, and steps that were run."""
    of_step = ("rollout", "decode", "judge", "update")
    names = dict.fromkeys(name.split()[0] for name, _ in measured.get("update", []))
    for name in names:
        parts = sum_of_parts(record, name)
        if parts is not None:
            yield _step_row(f"{name}, sum of parts", parts["seconds"], parts["rows"], of_step)
    for name, v in measured.get("step", []):
        yield _step_row(f"{name.split()[0]}, run", v["parts"], v["rows"], of_step)


def _step_row(
    name: str, parts: _Values, rows: int, of_step: tuple[str, ...]
) -> tuple[str, ...]:  # fmt: skip
    total = sum(parts.values())
    seconds = (f"{parts[part]:.2f}" for part in of_step)
    share = _percent(parts["judge"] / total)
    return (name, *seconds, f"{total:.2f}", _number(rows / total), share)


def sum_of_parts(record: BenchRecord, name: str) -> _Values | None:
    """Seconds of each part of a step of policy `name`, from what was measured of it.

    None: a part is missing. The rollout is the one with the rows that a step draws at once.
    """
    update, judge = record.measured(f"{name} update"), record.measured("judge")
    decode = record.measured("VQ decode")
    if update is None or judge is None or decode is None or "step_rows" not in update:
        return None
    rollout = record.measured(f"{name} rollout {update['rows_at_once']}")
    if rollout is None:
        return None
    rows = update["step_rows"]
    seconds = {
        "rollout": rows / rollout["samples_per_second"],
        "decode": rows / decode["images_per_second"],
        "judge": rows / judge["samples_per_second"],
        "update": rows / update["rows_per_second"],
    }
    return {"rows": rows, "seconds": seconds}


def _predictions(sections: list[tuple[str, _Values]]) -> str:
    rows = [
        (
            name.split()[0], f"{v['job_peak_bytes'] / 1e9:.1f}",
            _number(v["step_seconds_at_least"]), f"`{v['command']}`",
        )
        for name, v in sections
    ]  # fmt: skip
    return markdown_table(("policy", "whole job GB", "step s at least", "by"), rows)


def _peaks(record: BenchRecord, name: str, values: _Values) -> tuple[str, str]:
    """Measured and predicted peak of a section, in GB.

    What lies in memory and is no argument of the program is taken off the measured one. `~`: it
    was looked at every two milliseconds, and may have been more in between.
    """
    peak = values.get("peak_bytes")
    measured = "-"
    if peak is not None:
        sign = "" if values["peak_is_exact"] else "~"
        measured = f"{sign}{(peak - values.get('not_arguments_bytes', 0)) / 1e9:.1f}"
    policy, program = name.split()[0], PROGRAMS.get(kind_of(name))
    policies = [policy] if kind_of(name) != "decode" else ["7B", "1B"]
    for known in policies:
        found = record.measured(f"{known} predicted")
        if found and program in found["peak_bytes_of"] and _is_predicted(record, known, values):
            return measured, f"{found['peak_bytes_of'][program] / 1e9:.1f}"
    return measured, "-"


def _is_predicted(record: BenchRecord, policy: str, values: _Values) -> bool:
    """Whether `gotr1 compile` compiled the loops for the rows of a rollout."""
    update = record.measured(f"{policy} update")
    if "plan" not in values:
        return True
    return update is not None and values["rows"] == update.get("rows_at_once")


def _compile(values: _Values) -> str:
    cached = values["programs_from_cache"]
    return f"{values['compile_seconds']:.0f}" + (f" ({cached} from cache)" if cached else "")


def _optional(shown: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "-" if value is None else shown(value)


_number = _optional(lambda value: f"{value:.3g}")
_percent = _optional(lambda value: f"{100 * value:.0f} %")

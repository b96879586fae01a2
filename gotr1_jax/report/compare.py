"""Several runs on one page: `gotr1 report A B`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_write
from gotr1_jax.report.charts import LINE_COLOURS, Chart
from gotr1_jax.report.evaluations import add_evaluations, draw_evaluations
from gotr1_jax.report.galleries import side_by_side_gallery
from gotr1_jax.report.gallery import GalleryData
from gotr1_jax.report.load import RunData, load_run
from gotr1_jax.report.metrics import all_values
from gotr1_jax.report.page import MAX_RECORDS, TermRow, build_table, facts
from gotr1_jax.report.provenance import describe_provenance
from gotr1_jax.report.sections import draw_sections, section_specs
from gotr1_jax.report.settings import read_settings
from gotr1_jax.report.shell import render_shell

NAME = "comparison.html"
_LONGEST_NAME = 16  # characters of a run's name that its lines can be labelled with
_LONGEST_VALUE = 200  # characters of a setting that are shown


@dataclass(frozen=True)
class ComparedTerm:
    """A row of the table: a term's meaning and, of each run, its row there or None."""

    name: str
    meaning: str
    rows: tuple[TermRow | None, ...]


def write_comparison(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes a page of several runs and returns its path: `out`, else in the first run.

    The page needs no other file. Curves are drawn over each other; tables, settings that differ,
    and the held-out captions that the runs share stand side by side.

    Raises:
        InputError: one is no run directory, or they are more than the page has colours for, or
            one is given twice.
        RunError: the page cannot be written.
    """
    if len(run_dirs) > LINE_COLOURS:
        raise InputError(f"{len(run_dirs)} runs; a page compares {LINE_COLOURS} at most")
    resolved = [path.resolve() for path in run_dirs]
    for path in resolved:
        if resolved.count(path) > 1:
            raise InputError(f"{path} is given twice; give different runs")
    path = run_dirs[0] / NAME if out is None else out
    if path.is_dir():
        raise InputError(f"--out {path} is a directory; name a file")
    # Samples of training are not on the page.
    most = MAX_RECORDS // len(run_dirs)
    loaded = [load_run(root, 0, max_followed=most) for root in run_dirs]
    atomic_write(path, render_comparison(loaded))
    return path


def label_runs(runs: Sequence[RunData]) -> dict[str, RunData]:
    """The runs by what they are called on the page: their names, or letters if these are long or
    alike."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names) or max(map(len, names)) > _LONGEST_NAME:
        names = [chr(ord("A") + i) for i in range(len(runs))]
    return dict(zip(names, runs))


def render_comparison(loaded: Sequence[RunData]) -> bytes:
    """The page's HTML, UTF-8."""
    runs = label_runs(loaded)
    return render_shell(
        "compare.html.j2",
        " · ".join(run.name for run in loaded),
        galleries=GalleryData({"side_by_side": side_by_side_gallery(runs)}),
        runs=runs,
        facts={label: facts(run) for label, run in runs.items()},
        terms=compare_terms(runs),
        sections=compare_curves(runs),
        provenance=_side_by_side(
            {n: dict(describe_provenance(run.starts, run.config_text)) for n, run in runs.items()}
        ),
        settings=compare_settings(runs),
    )


def compare_terms(runs: Mapping[str, RunData]) -> list[ComparedTerm]:
    """A row for each term that any run has scores of before and after."""
    tables = [{row.name: row for row in build_table(r.summary, r.meanings)} for r in runs.values()]
    names = dict.fromkeys(name for table in tables for name in table)
    found = []
    for name in names:
        rows = tuple(table.get(name) for table in tables)
        meanings = dict.fromkeys(row.meaning for row in rows if row is not None and row.meaning)
        found.append(ComparedTerm(name, " / ".join(meanings), rows))
    return found


def compare_curves(runs: Mapping[str, RunData]) -> dict[str, list[Chart]]:
    """The charts of a run's page by section, each with a line for every run."""
    metrics = {label: run.metrics for label, run in runs.items()}
    meanings: dict[str, str] = {}
    for run in runs.values():
        meanings = {**run.meanings, **meanings}
    specs = section_specs(all_values(metrics.values()), {}, meanings)
    evaluated = draw_evaluations({n: (run.metrics, run.summary) for n, run in runs.items()})
    return add_evaluations(draw_sections(specs, metrics), evaluated)


def compare_settings(runs: Mapping[str, RunData]) -> dict[str, list[str]]:
    """The values of the settings that differ, by their dotted names; "" where a run has none."""
    settings = {
        label: {name: _show(value) for name, value in read_settings(run.config_text).items()}
        for label, run in runs.items()
    }
    return {
        name: values
        for name, values in _side_by_side(settings).items()
        if len(set(values)) > 1 and name != "run_dir"
    }


def _side_by_side(columns: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return {name: [column.get(name, "") for column in columns.values()] for name in names}


def _show(value: Any) -> str:
    """A setting's value as text, cut where it is long."""
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + " …"

"""What `gotr1 bench accelerator` has measured so far: one JSON file, written after every section.

A second call with the same folder goes on where the first one ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.io.reading import read_json_object

RESULTS, TABLE = "results.json", "results.md"
VERSION = 1
MEASURED, SKIPPED, RUNNING = "measured", "skipped", "running"
OUT_OF_MEMORY, TOO_LARGE, FAILED, ENDED = "out of memory", "too large", "failed", "ended"
"""What became of a section. The last two are tried once more, by a later call."""
_FINAL = (MEASURED, OUT_OF_MEMORY, TOO_LARGE)
_TRIES = 2


@dataclass
class BenchRecord:
    """The file of results.

    Attributes:
      folder: where it is.
      machine: the device and the versions that all sections were measured with.
      sections: by name, in the order of measurement: `status`, and the numbers or `why`.
    """

    folder: Path
    machine: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> BenchRecord:
        """Of an earlier call, else an empty one. InputError for a file that is none of ours."""
        path = folder / RESULTS
        if not path.exists():
            return cls(folder)
        found = read_json_object(path)
        machine: Any = found.get("machine")
        sections: Any = found.get("sections")
        good = found.get("version") == VERSION and isinstance(machine, dict)
        good = good and isinstance(sections, dict)
        if not good or not all(isinstance(s, dict) and "status" in s for s in sections.values()):
            raise InputError(f"{path} is no result of gotr1 bench accelerator; use another --out")
        return cls(folder, machine, sections)

    def check_machine(self, machine: dict[str, Any]) -> None:
        """Take over the machine of this call; InputError where the results are of another."""
        for name, value in machine.items():
            # Its memory is what other programs leave of it.
            if name == "memory_bytes" or name not in self.machine:
                continue
            if self.machine[name] != value:
                raise InputError(
                    f"{self.folder / RESULTS} was measured with {name} {self.machine[name]!r}, "
                    f"here it is {value!r}; use another --out"
                )
        self.machine = machine

    def is_done(self, name: str) -> bool:
        """Whether a section is not tried any more: there is a result, or it failed twice."""
        section = self.sections.get(name, {})
        if section.get("status") == SKIPPED:
            return False
        return section.get("status") in _FINAL or section.get("tries", 0) >= _TRIES

    def start(self, name: str, call: float) -> None:
        """Note that a section begins in a call; if the process is lost, that is what is left."""
        tries = self.sections.get(name, {}).get("tries", 0) + 1
        self.put(name, {"status": RUNNING, "tries": tries, "call": call})

    def put(self, name: str, values: dict[str, Any]) -> None:
        """Write the result of a section."""
        before = self.sections.pop(name, {})
        kept = {key: before[key] for key in ("tries", "call") if key in before}
        self.sections[name] = kept | values
        self.write()

    def end_running(self, why: str) -> list[str]:
        """Note what ended the sections whose process is gone; their names."""
        names = [n for n, s in self.sections.items() if s["status"] == RUNNING]
        for name in names:
            self.put(name, {"status": ENDED, "why": why})
        return names

    def write(self) -> None:
        """Write the file; RunError if that fails."""
        values = {"version": VERSION, "machine": self.machine, "sections": self.sections}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.folder / RESULTS, values)

    def measured(self, name: str) -> dict[str, Any] | None:
        """The numbers of a section; None: there are none."""
        section = self.sections.get(name)
        return section if section is not None and section["status"] == MEASURED else None

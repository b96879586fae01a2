"""The card of a result: what somebody with other weights or devices reports of an evaluation."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gotr1_jax import __version__
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.io.write_errors import raise_write_errors
from gotr1_jax.trainer.provenance import command_line, installed_versions

FORMAT = "gotr1_jax result card 1"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "torch", "spacy")


def write_card(
    path: Path, title: str, head: Mapping[str, Any], scores: Mapping[str, Any], seconds: float
) -> None:
    """Writes the card, JSON; RunError where that fails.

    scores: by name. seconds: of this command; not what an earlier one took that was stopped.
    """
    card = {
        "card": FORMAT,
        "title": title,
        **head,
        "scores": scores,
        "seed": head.get("sampling", {}).get("seed"),
        "versions": versions(),
        "hardware": hardware(),
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "command": command_line(["gotr1", *sys.argv[1:]]),
    }
    with raise_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, card)
    print(path)


def versions() -> dict[str, str]:
    """Of Python, this package, and the installed ones that numbers depend on."""
    own = {"python": platform.python_version(), "gotr1_jax": __version__}
    return own | installed_versions(_PACKAGES)


def hardware() -> dict[str, Any]:
    """The devices that jax sees, and torch's accelerator where torch was used; the host's cores."""
    import jax

    devices = jax.devices()
    found = {
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "platform": devices[0].platform,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["torch"] = torch.cuda.get_device_name()
    return found

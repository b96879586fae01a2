"""Which trackers a run reports to, and how it is called there. Imports none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import FilledText, Range

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow", "none"]
# Written with the metrics by `trainer.metrics`: a file of the run, and no package of its own.
TENSORBOARD, NONE = "tensorboard", "none"


@dataclass(frozen=True)
class TrackerConfig(CheckedConfig):
    """How a run appears in the trackers of `report_to`."""

    # Project (wandb, where ENTITY/PROJECT names a team too; trackio) or experiment (mlflow).
    project: FilledText = "gotr1"
    # Name of the run there; null: that of the run's folder.
    run_name: FilledText | None = None
    # Address of the tracker's server: wandb's base URL, trackio's server URL, mlflow's tracking
    # URI; null: as the package's own settings say.
    server: FilledText | None = None
    # Send nothing: wandb and mlflow write into the run directory (wandb/, for `wandb sync`, and
    # mlruns/, a file store), trackio into its own local folder.
    offline: bool = False
    # Sample images sent of a step that has samples; 0: none.
    images: Annotated[int, Range("[0, 1000]")] = 8

    def check(self) -> None:
        """A server belongs to what is sent."""
        if self.offline and self.server is not None:
            raise ConfigError(
                f"offline is true, and server is {self.server}; give one of them: nothing is sent"
            )


def tracker_names(report_to: str | Sequence[str]) -> tuple[str, ...]:
    """The trackers of a `report_to`, each once; "none" is none of them."""
    names = (report_to,) if isinstance(report_to, str) else tuple(report_to)
    return tuple(name for name in names if name != NONE)


def check_report_to(report_to: str | Sequence[str], tracker: TrackerConfig) -> None:
    """ConfigError, beginning with the field, for a list that contradicts itself."""
    names = (report_to,) if isinstance(report_to, str) else tuple(report_to)
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise ConfigError(f"report_to names {double[0]} more than once; name each once")
    if NONE in names and len(names) > 1:
        raise ConfigError(f"report_to is {', '.join(names)}; none stands alone: remove it")
    if not names:
        choices = ", ".join(get_args(TrackerName))
        raise ConfigError(f"report_to is empty; write none, or some of {choices}")
    sent = [name for name in names if name not in (TENSORBOARD, NONE)]
    if tracker.server is not None and len(sent) != 1:
        whose = " and ".join(sent) or "no tracker that has one"
        raise ConfigError(
            f"tracker.server is {tracker.server}, and report_to names {whose}; a server is that of "
            "one tracker: leave it to the packages' own settings"
        )

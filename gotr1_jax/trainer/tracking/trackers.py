"""The trackers: each a thin class over its package, which is imported when a run begins.

To add one: a class with the methods of `Tracker`, its name in `TRACKERS` and in
`config.TrackerName`, its package in setup.py's extras.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.trainer.tracking.config import TENSORBOARD, TrackerConfig, tracker_names

Outcome = Literal["done", "stopped", "failed"]


@dataclass(frozen=True)
class TrackedImage:
    """An image of a step. title: names it among the images of the step, the same in every step.
    pixels: uint8 (H, W, 3)."""

    title: str
    caption: str
    pixels: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class TrackedRun:
    """The run as a tracker is told of it.

    Attributes:
      name: shown there. folder: the run directory.
      settings: the configuration, as dotted names and single values.
      id: of the run there; a new run has one of our own, which the tracker may replace.
      is_new: whether the tracker does not know it yet.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    config: TrackerConfig
    id: str
    is_new: bool


class Tracker(Protocol):
    """One run in one tracker. Every method may raise anything: the training goes on."""

    # Of the package; checked before a run begins, so that no hour is lost to it.
    package: ClassVar[str]

    def __init__(self, run: TrackedRun) -> None:
        """Begins the run there, or goes on with it."""

    @classmethod
    def check(cls, config: TrackerConfig) -> None:
        """InputError where it is known before a run that nothing can be reported."""

    @property
    def id(self) -> str:
        """What the run is found by when it goes on."""

    def log(self, step: int, values: Mapping[str, float], images: Sequence[TrackedImage]) -> None:
        """A step's numbers, all finite, and images; steps ascend, and none comes twice."""

    def summarise(
        self, step: int, values: Mapping[str, float], images: Sequence[TrackedImage]
    ) -> None:
        """What the run ended with: numbers, all finite, and images."""

    def finish(self, outcome: Outcome) -> None:
        """Ends the run there; sends what is left."""


class Wandb:
    """Weights & Biases."""

    package: ClassVar[str] = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        config = run.config
        entity, _, project = config.project.rpartition("/")
        self._image = wandb.Image
        self.id = run.id
        server: dict[str, Any] = {} if config.server is None else {"base_url": config.server}
        self._run = wandb.init(
            entity=entity or None, project=project, name=run.name, id=run.id, resume="allow",
            dir=str(run.folder), mode="offline" if config.offline else None,
            config=dict(run.settings), allow_val_change=True,
            # The training's own output stays where it goes without a tracker.
            settings=wandb.Settings(console="off", **server),
        )  # fmt: skip

    @classmethod
    def check(cls, config: TrackerConfig) -> None:
        """Without a key the package would ask for one, in the middle of the training."""
        if config.offline:
            return
        import wandb

        if wandb.Settings().mode in ("offline", "disabled"):
            return
        server: dict[str, Any] = {} if config.server is None else {"host": config.server}
        if not wandb.login(prompt=False, verify=False, **server):
            raise InputError(
                "report_to is wandb, and wandb has no API key on this machine: run wandb login, "
                "set tracker.offline to true, or take wandb out of report_to"
            )

    def log(self, step: int, values: Mapping[str, float], images: Sequence[TrackedImage]) -> None:
        """One row; images of one kind are one gallery."""
        row: dict[str, Any] = dict(values)
        for image in images:
            gallery = row.setdefault(image.title.partition("/")[0], [])
            gallery.append(self._image(image.pixels, caption=image.caption))
        self._run.log(row, step=step, commit=True)

    def summarise(
        self, step: int, values: Mapping[str, float], images: Sequence[TrackedImage]
    ) -> None:
        """The run's summary there."""
        shown = {i.title: self._image(i.pixels, caption=i.caption) for i in images}
        self._run.summary.update({**values, **shown})

    def finish(self, outcome: Outcome) -> None:
        """A stopped run counts as preempted there until it goes on."""
        if outcome == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if outcome == "done" else 1)


class Trackio:
    """Trackio: a local store, or a server."""

    package: ClassVar[str] = "trackio"

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._image = trackio.Image
        self.id = run.id
        server: dict[str, Any] = {}
        if run.config.server is not None:
            server["server_url"] = run.config.server
        # A run there is found by its name alone, so the name must be this run's own.
        self._run = trackio.init(
            project=run.config.project, name=f"{run.name}-{run.id}", resume="allow",
            config=dict(run.settings), embed=False, auto_log_gpu=False, auto_log_cpu=False,
            **server,
        )  # fmt: skip

    @classmethod
    def check(cls, config: TrackerConfig) -> None:
        """Nothing is known before."""

    def log(self, step: int, values: Mapping[str, float], images: Sequence[TrackedImage]) -> None:
        """One row, with each image under its title."""
        shown = {i.title: self._image(i.pixels, caption=i.caption) for i in images}
        self._run.log({**values, **shown}, step=step)

    def summarise(
        self, step: int, values: Mapping[str, float], images: Sequence[TrackedImage]
    ) -> None:
        """Numbers of the last step, under names of their own."""
        self.log(step, {f"summary/{name}": value for name, value in values.items()}, images)

    def finish(self, outcome: Outcome) -> None:
        """It knows no outcome."""
        self._run.finish()


class Mlflow:
    """MLflow: a server, a database, or a file store."""

    package: ClassVar[str] = "mlflow"
    _MOST_PARAMS, _LONGEST = 100, 6000  # of one call; characters of a value
    _NO_NAME = re.compile(r"[^\w\-./: ]")

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        uri = run.config.server
        if run.config.offline:
            uri = (run.folder.resolve() / "mlruns").as_uri()
        if uri is not None and uri.partition(":")[0] in ("file", uri):
            # A file store is in maintenance mode there and must be asked for.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._metric, self._client = Metric, MlflowClient(tracking_uri=uri)
        if not run.is_new:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(run.config.project)
        experiment = (
            self._client.create_experiment(run.config.project)
            if known is None
            else known.experiment_id
        )
        self.id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [
            Param(self._name(name), str(value)[: self._LONGEST])
            for name, value in run.settings.items()
        ]
        for start in range(0, len(params), self._MOST_PARAMS):
            part = params[start : start + self._MOST_PARAMS]
            self._client.log_batch(self.id, params=part)

    @classmethod
    def check(cls, config: TrackerConfig) -> None:
        """Its default is a database, which the light package alone cannot write."""
        if config.offline:
            return
        import mlflow

        uri = config.server or mlflow.get_tracking_uri()
        if uri.startswith("sqlite:") and find_spec("sqlalchemy") is None:
            raise InputError(
                f"report_to is mlflow, which writes to {uri} and needs SQLAlchemy for it: set "
                "tracker.server to the URI of a server, set tracker.offline to true, or install "
                "the whole of mlflow"
            )

    @classmethod
    def _name(cls, name: str) -> str:
        """A name with only what names there may hold."""
        return cls._NO_NAME.sub("_", name)

    def log(self, step: int, values: Mapping[str, float], images: Sequence[TrackedImage]) -> None:
        """The numbers in one call, then each image."""
        now = int(time.time() * 1000)
        metrics = [self._metric(self._name(n), v, now, step) for n, v in values.items()]
        self._client.log_batch(self.id, metrics=metrics)
        for image in images:
            key = self._name(image.title)
            self._client.log_image(self.id, image.pixels, key=key, step=step)

    def summarise(
        self, step: int, values: Mapping[str, float], images: Sequence[TrackedImage]
    ) -> None:
        """Numbers of the last step, under names of their own."""
        self.log(step, {f"summary/{name}": value for name, value in values.items()}, images)

    def finish(self, outcome: Outcome) -> None:
        """Its states of a run."""
        status = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[outcome]
        self._client.set_terminated(self.id, status)


TRACKERS: Mapping[str, type[Tracker]] = {"wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow}


def chosen_trackers(report_to: str | Sequence[str]) -> dict[str, type[Tracker]]:
    """The trackers of a `report_to` that have a package of their own."""
    return {name: TRACKERS[name] for name in tracker_names(report_to) if name != TENSORBOARD}


def check_packages(report_to: str | Sequence[str]) -> None:
    """InputError for a tracker whose package is not installed; imports none, touches no device."""
    for name, tracker in chosen_trackers(report_to).items():
        if find_spec(tracker.package) is None:
            raise InputError(
                f"report_to is {name}, and the package {tracker.package} is not installed; install "
                f"the extra {name} (pip install 'gotr1_jax[{name}]'), or take it out of report_to"
            )

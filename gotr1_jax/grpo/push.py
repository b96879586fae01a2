"""`gotr1 push`: a run or checkpoint onto the Hugging Face hub, with a model card of the run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gotr1_jax.convert.find import EMBEDDED_NAME
from gotr1_jax.errors import InputError
from gotr1_jax.grpo import export
from gotr1_jax.io.hub import is_hub_id, upload_folder
from gotr1_jax.io.storage import local_path, writing
from gotr1_jax.io.write_errors import raise_write_errors

if TYPE_CHECKING:
    from gotr1_jax.report.model_card import CardFacts

_LICENSES = "mit, apache-2.0, other, ... (https://huggingface.co/docs/hub/repositories-licenses)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "Export as gotr1 export does, write a model card, and upload both. The token is that of "
        "`hf auth login` or HF_TOKEN."
    )
    parser.add_argument(
        "--ckpt", required=True, metavar="RUN_OR_DIR", help="run or checkpoint directory"
    )
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="repository of the hub")
    parser.add_argument("--format", choices=export.FORMATS, default="original", help="(original)")
    parser.add_argument("--license", required=True, metavar="ID", help=f"of the model: {_LICENSES}")
    parser.add_argument(
        "--base", metavar="ORG/NAME",
        help="hub id of the model that training began from, where the run has it from a directory",
    )  # fmt: skip
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", default="Upload by gotr1 push", help="of the commit")
    parser.add_argument("--dtype", help="as of gotr1 export")
    parser.add_argument(
        "--shard-size", default="5GB", metavar="SIZE", help="as of gotr1 export (5GB)"
    )
    parser.add_argument(
        "--to", type=Path, metavar="DIR",
        help="a new directory: write there what would be uploaded, and upload nothing",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Export, describe, upload; prints where it is."""
    # Imported late: --help does not wait for it.
    from gotr1_jax.report.model_card import CardFacts

    check_names(options.repo, options.base, options.license, prefix="--")
    if options.to is not None and options.to.exists():
        raise InputError(f"--to {options.to} is there already; choose another directory")
    run_dir = export.run_behind(local_path(options.ckpt))
    base = _find_base(run_dir, options)
    facts = CardFacts(options.repo.partition("/")[2], options.format, base, options.license)
    where = push_model(
        lambda folder: _export(options, base, folder), run_dir, options.repo, facts,
        private=options.private, message=options.message, to=options.to,
    )  # fmt: skip
    print(where if options.to is None else f"{where}: what would be uploaded to {options.repo}")


def push_model(
    write_model: Callable[[Path], None], run_dir: Path | None, repo: str, facts: CardFacts, *,
    private: bool, message: str, to: Path | None = None,
) -> str:  # fmt: skip
    """Writes a model and its card, and uploads both to `repo`.

    Args:
        write_model: writes the model into a folder, which it makes.
        run_dir: of the run that made the model; None where none did.
        repo: ORG/NAME on the hub.
        facts: what the card says besides the run's own numbers.
        private, message: as of `upload_folder`.
        to: a new directory, to which both are moved instead.

    Returns the address of the commit, or `to`.
    """
    from gotr1_jax.report.model_card import write_model_card

    parent = None
    if to is not None:
        parent = to.resolve().parent
        with raise_write_errors(to):
            parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gotr1_push_", dir=parent) as temporary:
        folder = Path(temporary) / "model"
        write_model(folder)
        write_model_card(folder, run_dir, facts)
        if to is None:
            return upload_folder(folder, repo, private, message)
        with writing(to):
            folder.rename(to)
    return str(to)


def check_names(repo: str, base: str | None, license: str, prefix: str = "") -> None:
    """InputError for ids that the hub cannot have; `prefix`: of the arguments' names."""
    for name, value in (("repo", repo), ("base", base)):
        if value is not None and not is_hub_id(value):
            raise InputError(f"{prefix}{name} is {value!r}; give an id of the hub as ORG/NAME")
    if not license.strip():
        raise InputError(f"{prefix}license is empty; give one of {_LICENSES}")


def base_on_hub(run_dir: Path | None) -> str | None:
    """The hub id of the model that a run of GRPO began from; None where it has none."""
    init = _init_of(run_dir)
    return init if init is not None and is_hub_id(init) and not Path(init).exists() else None


def _init_of(run_dir: Path | None) -> str | None:
    from gotr1_jax.grpo.run_weights import grpo_config

    config = None if run_dir is None else grpo_config(run_dir)
    return None if config is None else config.policy.init


def _find_base(run_dir: Path | None, options: argparse.Namespace) -> str | None:
    """The hub id of the model that training began from; InputError where adapters lack theirs."""
    base: str | None = options.base or base_on_hub(run_dir)
    if options.format == "peft" and base is None:
        init = _init_of(run_dir)
        raise InputError(
            f"the adapters' base is {init}, which others cannot load; name its id on the hub "
            "with --base ORG/NAME"
            + (" (push the embedded checkpoint first)" if init == EMBEDDED_NAME else "")
        )
    return base


def _export(options: argparse.Namespace, base: str | None, folder: Path) -> None:
    """As `gotr1 export` does; adapters name their base as the hub does."""
    export.run(
        argparse.Namespace(
            ckpt=options.ckpt, revision=None, format=options.format, to=folder,
            dtype=options.dtype, shard_size=options.shard_size,
        )
    )  # fmt: skip
    if options.format == "peft":
        from gotr1_jax.convert.peft import set_base

        assert base is not None
        set_base(folder, base)

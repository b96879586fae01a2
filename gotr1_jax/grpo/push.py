"""`gotr1 push`: a run or checkpoint onto the Hugging Face hub, with a model card of the run."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from gotr1_jax.convert.find import EMBEDDED_NAME
from gotr1_jax.errors import InputError
from gotr1_jax.grpo import export
from gotr1_jax.io.hub import is_hub_id, upload_folder
from gotr1_jax.io.storage import local_path, writing
from gotr1_jax.io.write_errors import raise_write_errors

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
    check_names(options.repo, options.base, options.license, prefix="--")
    if options.to is not None and options.to.exists():
        raise InputError(f"--to {options.to} is there already; choose another directory")
    run_dir = export.run_behind(local_path(options.ckpt))
    base = _find_base(run_dir, options)
    parent = None if options.to is None else options.to.resolve().parent
    if parent is not None:
        with raise_write_errors(options.to):
            parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gotr1_push_", dir=parent) as temporary:
        folder = Path(temporary) / "model"
        export.run(_export_options(options, folder))
        _describe(folder, run_dir, base, options)
        if options.to is not None:
            with writing(options.to):
                folder.rename(options.to)
            print(f"{options.to}: what would be uploaded to {options.repo}")
            return
        url = upload_folder(folder, options.repo, options.private, options.message)
    print(url)


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
    init = _init_of(run_dir)
    base: str | None = options.base or base_on_hub(run_dir)
    if options.format == "peft" and base is None:
        raise InputError(
            f"the adapters' base is {init}, which others cannot load; name its id on the hub "
            "with --base ORG/NAME"
            + (" (push the embedded checkpoint first)" if init == EMBEDDED_NAME else "")
        )
    return base


def _export_options(options: argparse.Namespace, target: Path) -> argparse.Namespace:
    return argparse.Namespace(
        ckpt=options.ckpt, revision=None, format=options.format, to=target, dtype=options.dtype,
        shard_size=options.shard_size,
    )  # fmt: skip


def _describe(
    folder: Path, run_dir: Path | None, base: str | None, options: argparse.Namespace
) -> None:
    from gotr1_jax.convert.peft import set_base
    from gotr1_jax.report.model_card import CardFacts, write_model_card

    if options.format == "peft":
        assert base is not None
        set_base(folder, base)
    name = options.repo.partition("/")[2]
    write_model_card(folder, run_dir, CardFacts(name, options.format, base, options.license))

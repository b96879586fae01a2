"""`gotr1 play`: write a caption, see the plan over the image, move boxes, paint again."""

from __future__ import annotations

import argparse

from gotr1_jax.errors import InputError
from gotr1_jax.generate.options import add_dtype_option

_HOST, _PORT = "127.0.0.1", 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 play`."""
    parser.description = (
        "Opens a page on which a caption is planned and painted, boxes are moved, renamed, added "
        "and deleted, and images painted again and judged."
    )
    parser.add_argument(
        "--ckpt", action="append", metavar="CKPT",
        help="checkpoint directory, finished run, hub id or embedded (the default); twice: both "
        "side by side",
    )  # fmt: skip
    parser.add_argument(
        "--judge", metavar="JUDGE",
        help="scores the images: shapes, a function as my_rewards.py:score, or none (shapes with "
        "the embedded checkpoint alone, else none)",
    )  # fmt: skip
    add_dtype_option(parser)
    parser.add_argument(
        "--host", default=_HOST, metavar="ADDRESS",
        help=f"where to serve ({_HOST}: this machine alone; anybody who reaches another address "
        "can use the page)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=_PORT, metavar="P", help=f"0: any ({_PORT})")


def run(options: argparse.Namespace) -> None:
    """Serves until it is interrupted."""
    # Imported late: --help does not wait for jax.
    from gotr1_jax.convert.find import EMBEDDED_NAME
    from gotr1_jax.generate.arguments import find_judge
    from gotr1_jax.generate.pipeline import Pipeline
    from gotr1_jax.play.server import PlayServer
    from gotr1_jax.play.studio import Studio

    names = options.ckpt or [EMBEDDED_NAME]
    if len(names) > 2:
        raise InputError(f"{len(names)} checkpoints; give one, or two to compare")
    if len(set(names)) < len(names):
        raise InputError(f"{names[0]} is given twice; give two checkpoints to compare")
    wanted = options.judge
    if wanted is None:
        wanted = "shapes" if names == [EMBEDDED_NAME] else "none"
    judge = None if wanted == "none" else find_judge(wanted)
    pipelines = {name: Pipeline.from_pretrained(name, dtype=options.dtype) for name in names}
    with PlayServer(options.host, options.port, Studio(pipelines, judge).actions) as server:
        print(f"open {server.url} in a browser; Ctrl-C ends it", flush=True)
        server.serve_forever()

"""`gotr1 <command>`: parses the command line, starts a job, prints errors as one line.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted. On SIGTERM or SIGINT training saves a
checkpoint and exits with 75; the same command resumes. A second SIGINT ends it at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gotr1_jax import __version__
from gotr1_jax.completion import CompletionAction
from gotr1_jax.config import to_plain
from gotr1_jax.errors import GotR1Error, InputError, Stopped
from gotr1_jax.io.storage import check_urls, local_path, name_urls, read_in_parts, session
from gotr1_jax.io.write_errors import find_write_failure, write_failure
from gotr1_jax.jobs import JOBS, add_command_help, add_job_help, jobs_of_file

# Command -> module with `add_arguments(parser)` and `run(options)`, line of help. The modules
# import jax only inside `run`.
COMMANDS = {
    "generate": ("gotr1_jax.generate.command", "captions in, plans and images out"),
    "describe": ("gotr1_jax.generate.describe", "ask the model about images"),
    "convert": ("gotr1_jax.convert.command", "any checkpoint into the released layout"),
    "export": ("gotr1_jax.grpo.export", "a run or checkpoint for transformers or peft"),
    "push": ("gotr1_jax.grpo.push", "a run or checkpoint on the hub, with a model card"),
    "tokenize-images": (
        "gotr1_jax.sft.tokenize_command",
        "images of records into token ids, once",
    ),
    "judge": ("gotr1_jax.rewards.command", "score plans and images that were drawn before"),
    "eval": ("gotr1_jax.evaluation.command", "benchmarks of papers, and what a model understands"),
    "strip": ("gotr1_jax.evaluation.strip", "one image of samples before and after training"),
    "play": ("gotr1_jax.play.command", "a page in the browser to plan, edit boxes and paint"),
    "ablate": ("gotr1_jax.ablate.command", "train variants in turn and compare them"),
    "compile": ("gotr1_jax.aot", "memory, work and traffic of a job on chips that are not here"),
    "bench": ("gotr1_jax.bench", "measure sampling and updates, also against torch"),
}


_INTERRUPTED = 130  # exit code of shells: 128 and the number of SIGINT
_LONGEST_LINE = 2000  # characters of an error that are printed


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; with the options of one alone, where it is named."""
    parser = argparse.ArgumentParser(
        prog="gotr1", description="Train and run image generators that plan before they paint."
    )
    parser.add_argument("--version", action="version", version=f"gotr1_jax {__version__}")
    parser.add_argument("--completion", action=CompletionAction, make_parser=build_parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train an image tokenizer (vq), a policy from examples (sft) or from rewards (grpo), "
        "a multimodal judge (judge)",
        description="Every key of the configuration can be given as --section.key VALUE; of grpo, "
        "--reward [NAME=]my_rewards.py:score multiplies the total by a term of your own.",
        allow_abbrev=False,
    )
    add_job_help(train)
    train.add_argument("job", choices=tuple(JOBS))
    train.add_argument(
        "--config", type=Path, required=True, metavar="FILE",
        help="YAML file, or the name of one that ships: gotr1_7b_grpo"
    )  # fmt: skip

    for name, (module, summary) in COMMANDS.items():
        # No option is abbreviated: --judge is a key of a configuration, not --judge-size.
        inner = commands.add_parser(name, help=summary, allow_abbrev=False)
        if command in (None, name):
            importlib.import_module(module).add_arguments(inner)
            add_command_help(inner, name)
    report = commands.add_parser("report", help="write the page of a run, or of several")
    report.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directory; several are compared"
    )
    report.add_argument(
        "--out", type=Path, metavar="FILE",
        help="the page (RUN/report.html; of several runs comparison.html in the first)",
    )  # fmt: skip
    report.add_argument(
        "--scores", type=Path, nargs="+", metavar="FILE",
        help="what gotr1 judge wrote about the run (RUN/scores*.jsonl)",
    )  # fmt: skip
    _refuse_empty_paths(parser)
    return parser


def _refuse_empty_paths(parser: argparse.ArgumentParser) -> None:
    """Path("") is the working directory; of a script it is a variable that was not set."""
    for action in parser._actions:
        if action.type is Path:
            action.type = _read_output if action.dest in ("out", "to") else _read_path
        elif isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _refuse_empty_paths(inner)


def _read_path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"a path must not be empty: {text!r}")
    return local_path(text)


def _read_output(text: str) -> Path:
    check_urls(text, written=(text,))
    return _read_path(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with a code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    trains = given[:1] == ["train"]
    try:
        code = run(given)
    except Exception:
        if not trains:
            raise
        traceback.print_exc()
        code = 1
    _end_output()
    if code and trains:
        from gotr1_jax.parallel.processes import exit_process

        exit_process(code)
    if code == _INTERRUPTED:
        # Python would wait for threads that a judge's function has left, whatever they wait for.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("gotr1_jax").setLevel(logging.INFO)
    try:
        with session():
            _dispatch(arguments)
            sys.stdout.flush()
    except Stopped as stop:
        print(f"gotr1: {stop}", file=sys.stderr)
        return stop.exit_code
    except GotR1Error as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        _end_output()  # whose reader has closed it
        return 1
    except OSError as error:
        if error.errno is None:
            raise
        where = error.filename
        if where is None:
            where = "a file or the output" if _end_output() else "the standard output"
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR):  # read or written
            return _fail(f"{where} is no name of a file: {error.strerror}", InputError.exit_code)
        return _fail(str(write_failure(where, error)), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except RuntimeError as error:
        from gotr1_jax.parallel.processes import describe_lost_process

        if (line := describe_lost_process(error)) is None:
            return _fail_on_disk(error)
        return _fail(line, 1)
    except Exception as error:
        return _fail_on_disk(error)
    return 0


def _end_output() -> bool:
    """Writes what the standard output still holds.

    False where that fails: the rest is dropped, or the flush at exit would fail as well.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _fail_on_disk(error: Exception) -> int:
    """The exit code after a line about the disk that caused `error`; any other error is raised."""
    failure = find_write_failure(error, Path("a file"))
    if failure is None:
        raise error
    return _fail(str(failure), failure.exit_code)


def _fail(message: str, code: int) -> int:
    line = name_urls(" ".join(message.split()))
    if len(line) > _LONGEST_LINE:  # a name or a text of any length stands in it
        line = f"{line[: _LONGEST_LINE // 2]} … {line[-_LONGEST_LINE // 2 :]}"
    print(f"gotr1: error: {line}", file=sys.stderr)
    return code


def _dispatch(arguments: Sequence[str]) -> None:
    # Only what the command needs is imported: others would take seconds.
    parser = build_parser(next((word for word in arguments if word[:1] != "-"), ""))
    options, rest = parser.parse_known_args(arguments)
    if hasattr(options, "overrides"):  # the command takes configuration keys
        options.overrides = rest
    elif rest and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "train":
        _train(options.job, options.config, rest)
    elif options.command == "report":
        _report(options.runs, options.scores, options.out)
    else:
        from gotr1_jax.parallel.startup import start_devices

        start_devices()
        importlib.import_module(COMMANDS[options.command][0]).run(options)


def _report(runs: Sequence[Path], scores: Sequence[Path] | None, out: Path | None) -> None:
    for run in runs:
        if not run.is_dir():
            raise InputError(f"no run at {run}: there is no such directory")
    if len(runs) == 1:
        from gotr1_jax.report.page import write_report

        print(write_report(runs[0], scores, out))
        return
    from gotr1_jax.report.compare import write_comparison

    if scores is not None:
        raise InputError("--scores is of one run; each run's own scores*.jsonl are read anyway")
    print(write_comparison(runs, out))


def _train(job: str, path: Path, overrides: Sequence[str]) -> None:
    from gotr1_jax.parallel.startup import start_devices, start_processes
    from gotr1_jax.trainer.tracking.trackers import check_packages

    module_name, schema, function = JOBS[job]
    module = importlib.import_module(module_name)
    try:
        # The one key that is a flag, too, as it is named in the text of a refused resume.
        words = ["--allow_changes=true" if w == "--allow-changes" else w for w in overrides]
        config: Any = getattr(module, schema).from_file(path, words)
    except InputError as error:
        raise _of_another_job(job, path) or error from None
    check_packages(config.report_to)  # before processes wait for each other
    check_urls(to_plain(config), written=[config.run_dir])
    processes = start_processes(config.distributed)
    if processes > 1:
        read_in_parts()
    start_devices(config.mesh.cpu_devices, config.compile_cache, processes)
    getattr(module, function)(config)


def _of_another_job(job: str, path: Path) -> InputError | None:
    """An error if the file is the configuration of another job; None: it is not."""
    found = jobs_of_file(path)
    if job in found:
        return None
    return InputError(
        f"{path} is a configuration of gotr1 train {' or '.join(found)}, not of {job}"
    )


if __name__ == "__main__":
    main()

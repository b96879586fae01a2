"""Lists of the command line without brackets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gotr1_jax.config import load_config
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig


def load(*words: str, path: Path | None = None) -> GrpoConfig:
    return load_config(GrpoConfig, path, ["--run_dir=x", *words])


@pytest.mark.parametrize(
    "path, word, value",
    [
        ("policy.lora.targets", "q,v, o", ("q", "v", "o")),
        ("policy.lora.targets", "q", ("q",)),
        ("judge.terms", "pi,sem,spa,ri", ("pi", "sem", "spa", "ri")),
        ("reward.terms.pi.clip", "0,1", (0.0, 1.0)),
        ("reward.terms", "pi,sem", {"pi": 1.0, "sem": 1.0}),
        # One text or a list of texts: a name of a file may have a comma.
        ("captions.source", "a,b.txt", "a,b.txt"),
        ("policy.lora.targets", "q,", "targets is 'q,'; expected a list, such as [a, b]"),
        ("policy.lora.targets", "q,,v", "targets is 'q,,v'; expected a list, such as [a, b]"),
        ("policy.lora.targets", "'q',v", "expected a list, such as [a, b]"),
        ("policy.lora.targets", "null", "targets is null; expected a list, such as [a, b]"),
        ("policy.lora.targets", "", "targets is ''; expected a list, such as [a, b]"),
        ("policy.lora.targets", "q,x", "targets[1] is 'x'; choose one of"),
        ("reward.terms", "pi,pi", "reward.terms holds 'pi' more than once"),
        ("judge.also", "shapes", "judge.also[0] is 'shapes'; expected a section"),
    ],
)
def test_words_that_are_lists_and_words_that_are_not(path: str, word: str, value: Any) -> None:
    if isinstance(value, str) and value != word:
        with pytest.raises(InputError) as caught:
            load(f"--{path}={word}")
        assert value in str(caught.value)
        return
    found: Any = load(f"--{path}={word}", "--reward.total=pi")
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    if isinstance(found, dict):
        found = {name: term.weight for name, term in found.items()}
    assert found == value


@pytest.mark.parametrize("names", ["pi,sem", "[pi, sem]"])
def test_a_named_section_of_such_a_list_can_be_changed_further(names: str) -> None:
    found = load(f"--reward.terms={names}", "--reward.terms.pi.weight=2").reward.terms
    assert {name: term.weight for name, term in found.items()} == {"pi": 2.0, "sem": 1.0}
    alone = load("--reward.terms=pi", "--reward.terms.pi.weight=2", "--reward.total=pi")
    assert {name: term.weight for name, term in alone.reward.terms.items()} == {"pi": 2.0}


def test_a_word_is_no_section() -> None:
    with pytest.raises(InputError, match="lora is a single value .4., not a section"):
        load("--policy.lora=4", "--policy.lora.rank=4")


def test_a_file_writes_its_lists_with_brackets(tmp_path: Path) -> None:
    path = tmp_path / "grpo.yaml"
    path.write_text("judge: {terms: pi}")
    with pytest.raises(InputError, match="judge.terms is 'pi'; expected a list"):
        load(path=path)

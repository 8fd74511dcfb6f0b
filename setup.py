"""Package `air_model` = this folder itself: the same flat files run installed, from a checkout and as remote code."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "configuration_air.py").read_text(), re.M)[1]
SUBPACKAGES = [
    "analysis",
    "datasets_builders",
    "metrics",
    "metrics.puzzle_accuracy",
    "publishing",
    "scripts",
    "spaces_demo",
    "training",
]

COMMANDS = {
    "air-train": "train_accelerate",
    "air-solve": "scripts.solve",
    "air-evaluate": "scripts.evaluate",
    "air-build-dataset": "scripts.build_dataset",
    "air-analyze": "scripts.analyze",
    "air-convert": "scripts.convert_checkpoint",
    "air-push": "scripts.push_to_hub",
}

EXTRAS = {
    # adam-atan2-pytorch is the optimizer of the published recipe; tensorboard the default tracker.
    "train": [
        "accelerate>=1.15,<2",
        "adam-atan2-pytorch>=0.1.18,<1",
        "datasets>=5.2,<6",
        "matplotlib>=3.9",
        "numba>=0.61",
        "pyyaml>=6",
        "submitit>=1.5",
        "tensorboard>=2.18",
        "tqdm>=4.66",
    ],
    "eval": [
        "accelerate>=1.15,<2",
        "datasets>=5.2,<6",
        "evaluate>=0.4.6,<0.5",
        "markdown-it-py>=3",
        "matplotlib>=3.9",
        "numba>=0.61",
        "tqdm>=4.66",
    ],
    "demo": ["gradio>=6.31,<7", "matplotlib>=3.9", "numba>=0.61"],
    "track": ["trackio", "wandb"],
    "flash": ["flash-attn; platform_system == 'Linux'"],
    "export": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"],
    "dev": [
        "build",
        "hypothesis>=6.100",
        "parameterized",
        "playwright>=1.50",
        "pytest>=9",
        "pytest-timeout",
        "pytest-xdist",
        "ruff>=0.14",
    ],
}


class BuildModules(build_py):
    """This file lies among the package's modules without being one."""

    def find_package_modules(self, package, package_dir):
        return [module for module in super().find_package_modules(package, package_dir) if module[1] != "setup"]


setup(
    name="air-model",
    version=VERSION,
    description="AIR: Asymmetric Input Recurrence, a two-state recursive reasoning model for puzzles, in transformers",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    package_dir={"air_model": "."},
    packages=["air_model", *(f"air_model.{name}" for name in SUBPACKAGES)],
    # Everything that the code reads at run time; tests and checkpoints stay out.
    package_data={
        "air_model": [
            "recipes/*.yaml",
            "recipes/shipped/*.yaml",
            "recipes/accelerate/*.yaml",
            "model_card.md",
            "LICENSE",
        ],
        "air_model.analysis": ["*.md", "*.html", "*.css"],
        "air_model.datasets_builders": ["*.md"],
        "air_model.metrics.puzzle_accuracy": ["*.md", "*.txt"],
        "air_model.scripts": ["*.sh", "*.slurm"],
        "air_model.spaces_demo": ["*.md", "*.txt", "static/*"],
    },
    cmdclass={"build_py": BuildModules},
    entry_points={"console_scripts": [f"{name} = air_model.{module}:main" for name, module in COMMANDS.items()]},
    install_requires=[
        # The upper bound picks a CPU wheel where one is at hand; unbounded, pip fetches gigabytes of CUDA packages.
        "torch>=2.10,<2.14",
        "transformers>=5.17,<6",
        "huggingface-hub>=1.31,<3",
        "safetensors>=0.5",
        "numpy>=1.26,<3",
    ],
    extras_require=EXTRAS,
)

"""Check the wheel and the sdist of `make release`: contents, and a first use in an empty environment.

python publishing/check_release.py dist                  # new environment, dependencies from the package index
python publishing/check_release.py dist --borrow         # new environment, dependencies borrowed from this one
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

FIRST_USE = """
import sys, tempfile
import air_model, torch
assert "site-packages" in air_model.__file__, air_model.__file__
from air_model import AirConfig, AirModel, AirProcessor, VARIANTS, save_release
model = AirModel(AirConfig(grid_height=4, hidden_size=16, num_attention_heads=2, num_hidden_layers=1))
processor = AirProcessor.from_config(model.config)
model.solve(**processor("1..." + 12 * "."), max_act_steps=1)
with tempfile.TemporaryDirectory() as folder:
    save_release(model, folder)
    AirModel.from_pretrained(folder)
print(air_model.__version__, len(VARIANTS))
"""
NEEDED = """LICENSE model_card.md modeling_air.py attempts_air.py pipeline_air.py recipes/quickstart.yaml
recipes/sudoku_extreme.yaml recipes/accelerate/8_gpus.yaml datasets_builders/data_card.md scripts/push_to_hub.py
spaces_demo/README.md spaces_demo/app.py spaces_demo/requirements.txt""".split()
UNWANTED = (
    "tests/", "checkpoints/", "results/", "benchmarks/", ".ci/", ".pyc", ".safetensors", "conftest",
)  # fmt: skip


def check_contents(dist: Path) -> Path:
    """The only wheel in `dist`, after a look into it and into the sdist.

    Raises:
        ValueError: something is missing, or something is there that no user needs.
    """
    wheels, archives = sorted(dist.glob("*.whl")), sorted(dist.glob("*.tar.gz"))
    if len(wheels) != 1 or len(archives) != 1:
        raise ValueError(f"{dist} must hold one wheel and one sdist, found {len(wheels)} and {len(archives)}.")
    with zipfile.ZipFile(wheels[0]) as archive:
        in_wheel = archive.namelist()
    with tarfile.open(archives[0]) as archive:
        in_sdist = [name.partition("/")[2] for name in archive.getnames()]
    if missing := [name for name in NEEDED if f"air_model/{name}" not in in_wheel or name not in in_sdist]:
        raise ValueError(f"Missing in wheel or sdist: {', '.join(missing)}. See package-data in pyproject.toml.")
    paths = [name.partition("/")[2] for name in in_wheel] + in_sdist
    if unwanted := [path for path in paths if path.startswith(UNWANTED) or path.endswith(UNWANTED)]:
        raise ValueError(f"These do not belong into a release: {', '.join(unwanted[:5])}. See MANIFEST.in.")
    return wheels[0]


def run(command: list[str], folder: Path) -> str:
    keep = {"PATH", "LANG", "NO_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "SSL_CERT_FILE", "TMPDIR"}
    environment = {k: v for k, v in os.environ.items() if k in keep or k.startswith("PIP_")}
    environment |= {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise ValueError(f"`{' '.join(command[:4])} …` failed: {(done.stderr or done.stdout).strip()[-1500:]}")
    return done.stdout


def check_first_use(wheel: Path, borrow: bool) -> None:
    """Install the wheel into a new environment and use it from an empty folder."""
    with tempfile.TemporaryDirectory(prefix="air-release-") as temporary:
        folder = Path(temporary)
        venv.create(folder / "env", with_pip=True)
        bin_folder = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        python = str(bin_folder / "python")
        run(
            [python, "-m", "pip", "install", "--quiet", *(["--no-deps"] if borrow else []), str(wheel.resolve())],
            folder,
        )
        if borrow:
            places = "import site; print(site.getsitepackages()[0])"
            target = Path(run([python, "-c", places], folder).strip()) / "borrowed.pth"
            # A plain path line: the editable air_model of this environment (a .pth of its own) stays out.
            target.write_text("\n".join(p for p in sys.path if "site-packages" in p) + "\n", encoding="utf-8")
        print("import and first use:", run([python, "-c", FIRST_USE], folder).strip())
        commands = sorted(p for p in bin_folder.iterdir() if p.name.startswith("air-"))
        if len(commands) < 7:
            raise ValueError(f"Only {[p.name for p in commands]} were installed as commands.")
        for command in commands:
            first = run([str(command), "--help"], folder).splitlines()[0]
            print(f"{command.name} --help: {first}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path, help="folder with one wheel and one sdist")
    parser.add_argument("--borrow", action="store_true", help="use this environment's dependencies (no downloads)")
    arguments = parser.parse_args(argv)
    try:
        wheel = check_contents(arguments.dist)
        check_first_use(wheel, arguments.borrow)
    except ValueError as error:
        print(f"check_release: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.dist}: the release works.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

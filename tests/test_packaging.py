"""What gets installed: packages, files beside the code, commands; and that every supported Python can read it."""

import ast
import fnmatch
import importlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from air_model.configuration_air import TRAVELLING_FILES

# Folders of the repository that are no part of the installed package.
ELSEWHERE = {"tests", "checkpoints", "results", "benchmarks", "workshop", "docs"}
ELSEWHERE |= {"runs", "data", "dist", "build", "quickstart"}


@pytest.fixture(scope="module")
def project():
    """pyproject.toml, read as setuptools reads it."""
    from setuptools.config.pyprojecttoml import load_file

    return load_file(ROOT / "pyproject.toml")


def tracked() -> list[str]:
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


def test_every_folder_is_a_package(project):
    """Also those of data alone: an installation warns of each that is none, forty lines long."""
    folders = {"/".join(name.split(".")[1:]) for name in project["tool"]["setuptools"]["packages"]}
    for name in tracked():
        folder = name.rpartition("/")[0]
        if folder.split("/")[0] not in ELSEWHERE | {".ci"}:
            assert folder in folders, f"{name}: add its folder to packages in pyproject.toml"
            assert not name.endswith(".py") or (ROOT / folder / "__init__.py").exists()


def test_every_file_beside_the_code_is_package_data(project):
    patterns = [
        "/".join([*package.split(".")[1:], pattern])
        for package, listed in project["tool"]["setuptools"]["package-data"].items()
        for pattern in listed
    ]
    for name in tracked():
        if "/" in name and name.split("/")[0] not in ELSEWHERE | {".ci"} and not name.endswith(".py"):
            assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), f"{name}: add it to package-data"


def test_text_files_are_utf_8_on_every_system():
    """Python before 3.15 takes a Windows machine's own encoding where it is told none: no card would be readable."""
    for name in tracked():
        if name.endswith(".py") and name.split("/")[0] not in ELSEWHERE:
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
                    assert any(given.arg == "encoding" for given in node.keywords), f"{name}:{node.lineno}"


def test_every_command_is_a_function_with_help_and_examples(project, capsys):
    commands = project["project"]["scripts"]
    assert set(commands) == {
        "air-train",
        "air-solve",
        "air-evaluate",
        "air-build-dataset",
        "air-analyze",
        "air-convert",
        "air-push",
    }
    for target in commands.values():
        module, function = target.split(":")
        with pytest.raises(SystemExit) as stopped:
            getattr(importlib.import_module(module), function)(["--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert re.search(r"^    (python|accelerate launch) ", text, re.M), f"{target} --help shows no example"


def test_the_travelling_files_import_only_each_other_and_what_transformers_brings():
    known = {"torch", "numpy", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    for name in TRAVELLING_FILES:
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in TRAVELLING_FILES, f"{name} imports .{node.module}"
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {module.split(".")[0] for module in names} <= known, f"{name} imports {names}"


# From the ground up: a room imports rooms below it, itself, and the travelling files; nothing imports scripts.
ROOMS = ("travelling", "records", "optim_air", "metrics", "datasets_builders", "training",
         "analysis", "spaces_demo", "publishing", "scripts")  # fmt: skip


def room_of(path: str) -> str:
    first = path.split("/")[0].removesuffix(".py").replace("train_accelerate", "scripts")
    return "travelling" if f"{first}.py" in TRAVELLING_FILES else first


def imported_rooms(name: str) -> set[str]:
    """Rooms of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module = node.module.removeprefix("air_model").strip(".")
            ours = node.module.split(".")[0] == "air_model"
            found |= {module} if ours and module else {alias.name for alias in node.names} if ours else set()
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("air_model.")}
    return {room_of(module.replace(".", "/")) for module in found} & set(ROOMS)


def test_no_import_climbs_to_a_room_above():
    for name in tracked():
        room = room_of(name)
        if name.endswith(".py") and room in ROOMS:
            for other in imported_rooms(name) - {room}:
                assert ROOMS.index(other) < ROOMS.index(room), f"{name} ({room}) imports {other}, which lies above it"


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13)])
def test_the_source_is_valid_in_every_supported_python(version):
    for name in tracked():
        if name.endswith(".py"):
            ast.parse((ROOT / name).read_text(), filename=name, feature_version=version)


def test_no_tracked_text_names_a_path_of_this_machine():
    pattern = re.compile(rf"(?<![\w.:/])({re.escape(str(ROOT))}|/(?:home|root|Users)/\w)")
    for name in tracked():
        if name.endswith((".py", ".md", ".yaml", ".json", ".html", ".js", ".txt", ".toml")) and "tests/" not in name:
            match = pattern.search((ROOT / name).read_text())
            assert match is None, f"{name} holds {match and match[0]!r}"


def test_the_licence_is_the_whole_apache_2_text():
    words = " ".join((ROOT / "LICENSE").read_text().split())
    assert words.startswith("Apache License Version 2.0, January 2004") and len(words) > 9_000
    assert "END OF TERMS AND CONDITIONS" in words


@pytest.mark.slow
def test_wheel_and_sdist_work_in_a_new_environment(tmp_path):
    """As `make release`, with this environment's dependencies; the build itself needs no network either."""
    source = tmp_path / "source"
    source.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    check = [sys.executable, str(ROOT / "publishing/check_release.py"), str(tmp_path / "dist"), "--borrow"]
    done = subprocess.run(check, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--help:") == 7


def test_doors_say_in_a_sentence_which_extra_brings_a_missing_package(tmp_path):
    code = f"""if True:
        import sys
        missing = "accelerate datasets gradio matplotlib numba onnx_ir onnxscript pyarrow submitit"
        sys.modules.update(dict.fromkeys(missing.split()))
        from air_model import train_accelerate
        from air_model.scripts import analyze, build_dataset, evaluate, export, make_tables, quickstart, run_grid
        model, out = {str(ROOT / "checkpoints" / "air-sudoku-6x6")!r}, {str(tmp_path)!r}
        from_data = ["--model", model, "--data", out]
        for door, arguments in [
            (analyze, ["rollout", *from_data, "--output-dir", out + "/a"]),
            (build_dataset, ["maze-hard", "--output-dir", out + "/b"]),
            (evaluate, from_data),
            (export, ["--model", model, "--output-dir", out + "/c"]),
            (make_tables, ["--check"]),
            (quickstart, ["--output-dir", out + "/d"]),
            (run_grid, ["--suite", "injection", "--task", "sudoku", "--launcher=slurm", "--output-dir", out + "/e"]),
            (train_accelerate, ["--recipe", "sudoku_6x6", "--smoke", "--output-dir", out + "/f"]),
        ]:
            assert door.main(arguments) == 1
        from air_model.spaces_demo import app
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert "Traceback" not in done.stderr
    extras = re.findall(r"(?m)\. Install what .* pip install 'air-model\[(\w+)\]'\.$", done.stderr)
    assert extras == "eval eval eval export eval train train train demo".split()

"""What a Hub repository of AIR holds: folders staged from an allow-list, completed, checked before anything leaves.

Staging copies only what belongs into a fresh folder; `refuse_unsafe` then reads every file of it as a stranger would
get it. Cards are `_cards.py`'s, sending is `_hub.py`'s.
"""

import json
import math
import os
import pickletools
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from air_model.configuration_air import TRAVELLING_FILES, AirConfig

PACKAGE = Path(__file__).resolve().parent.parent
# Where the Space finds the model code: the package travels inside it.
SPACE_PACKAGES = ["", "analysis", "datasets_builders", "metrics", "metrics/puzzle_accuracy", "spaces_demo"]

PICKLES = {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".distcp"}
SECRETS = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{16,}",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}",
    "an AWS key": r"(?:AKIA|ASIA)[0-9A-Z]{16}",
    "an API key": r"sk-[A-Za-z0-9_-]{20,}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    # name = value, where the value looks random: 16 characters or more with a digit among them
    "a credential": r"(?i)(?:api_?key|secret|passw(?:or)?d|access_?token|auth_?token|_token)\w*[\"']?\s*[=:]\s*[\"']?"
    r"(?=[\w+/-]*\d)[\w+/-]{16,}",
}
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~*-])(?:/(?:content|data|gpfs|home|lustre|media|mnt|net|nfs|opt|private|project|projects|root|scratch"
    r"|srv|tmp|Users|usr|var|work|workspace)/[\w.@+-]+[\w./@+-]*|file:///[\w./@+-]+)"
    r"|\b[A-Za-z]:\\+(?:[\w .@+-]+\\+)+[\w .@+-]*"
)
TEXT_LIMIT = 32 * 2**20  # bytes; no text of ours comes near it


class Refused(ValueError):
    """Something that must not be published; the message says what and where."""


@dataclass
class Staged:
    """A folder ready to be sent: its kind ("model", "dataset", "space"), and what the user should be told about it."""

    kind: str
    folder: Path
    notes: list[str] = field(default_factory=list)

    def files(self) -> list[str]:
        """Paths relative to the folder, sorted."""
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())


# ---- checks ---------------------------------------------------------------------------------------------------------


def looks_pickled(path: Path) -> bool:
    """By name, or by content: a pickle stream, or a zip archive with one inside (torch.save)."""
    if path.suffix.lower() in PICKLES:
        return True
    with path.open("rb") as file:
        start = file.read(4096)
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        try:
            return next(pickletools.genops(start))[0].name == "PROTO"
        except (ValueError, StopIteration):
            return False
    if start[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith(".pkl") for name in archive.namelist())
        except zipfile.BadZipFile:
            return False
    return False


def readable_text(path: Path) -> str:
    """What of a file is text: all of it, a safetensors header, or nothing."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
            return file.read(min(size, TEXT_LIMIT)).decode(errors="replace")
    if path.stat().st_size > TEXT_LIMIT:
        return ""
    data = path.read_bytes()
    return "" if b"\0" in data[:8192] else data.decode(errors="replace")


def find_secrets(text: str) -> Iterator[tuple[str, int]]:
    """(what it looks like, line number) of everything in a text that looks like a credential."""
    patterns = dict(SECRETS)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        if len(value := os.environ.get(name, "")) >= 8:
            patterns[f"the value of ${name}"] = re.escape(value)
    for kind, pattern in patterns.items():
        for match in re.finditer(pattern, text):
            yield kind, text.count("\n", 0, match.start()) + 1


def refuse_unsafe(folder: Path, source: Path | None = None) -> None:
    """Raise Refused, listing everything, if a staged folder holds pickles, secrets or paths of this machine.

    Args:
        folder: what would be uploaded.
        source: the folder it came from; pickles and secrets there are refused as well, even in files that would stay
            behind: whoever publishes a folder shall know what lies in it.
    """
    problems = []
    for place in [folder] if source is None else [folder, source]:
        for path in sorted(place.rglob("*")):
            name = path.relative_to(place).as_posix()
            if not path.is_file() or name.startswith(".git/") or "__pycache__" in name:
                continue
            if looks_pickled(path):
                problems.append(f"{name} is a pickle or may hold one (loading it can run code): remove it")
                continue
            text = readable_text(path)
            problems += [f"{name}, line {line}: looks like {kind}: remove it" for kind, line in find_secrets(text)]
            if place == folder:
                for match in MACHINE_PATH.finditer(text):
                    line = text.count("\n", 0, match.start()) + 1
                    problems.append(f"{name}, line {line}: {match[0]!r} is a path of this machine: remove it")
    if problems:
        listing = "".join(f"\n  {problem}" for problem in dict.fromkeys(problems))
        raise Refused(f"Nothing was sent: {len(dict.fromkeys(problems))} thing(s) must not be published.{listing}")


def shorten_paths(value: Any, found: list[str]) -> Any:
    """A JSON value whose machine paths are cut to their last part; `found` collects what was cut."""
    if isinstance(value, dict):
        return {key: shorten_paths(item, found) for key, item in value.items()}
    if isinstance(value, list):
        return [shorten_paths(item, found) for item in value]
    if isinstance(value, str) and (MACHINE_PATH.search(value) or os.path.isabs(value)):
        found.append(value)
        if os.path.isabs(value) and " " not in value:
            return Path(value).name
        return MACHINE_PATH.sub(lambda match: Path(match[0].replace("\\", "/")).name, value)
    return value


# ---- staging --------------------------------------------------------------------------------------------------------


def need_folder(folder: Path, what: str, needed: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give the {what} folder that you want to publish.")
    if not (folder / needed).exists():
        raise FileNotFoundError(f"{folder} holds no {needed}: it is no {what} folder.")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise Refused(f"{path} is no readable JSON ({error}): write it again, or remove it.") from None


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that the index names.

    Raises:
        Refused: no weights, or an incomplete set of shards.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        if not (folder / "model.safetensors").is_file():
            raise Refused(f"{folder} has no model.safetensors: save the model with save_pretrained first.")
        return [folder / "model.safetensors"]
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise Refused(f"{folder} lacks {missing[0]}, which model.safetensors.index.json names: save the model again.")
    return [index, *(folder / name for name in names)]


def check_weights(folder: Path, config: AirConfig) -> dict[str, int]:
    """Names, shapes and values of the weights against the config; returns parameters and tensors per dtype.

    Raises:
        Refused: damaged files, tensors that the config does not describe, NaN or infinite values.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from air_model.modeling_air import AirModel

    with torch.device("meta"):
        model = AirModel(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parameters = {name for name, _ in model.named_parameters()}
    counts = {"parameters": 0}
    for path in weight_files(folder):
        if path.suffix == ".json":
            continue
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    tensor = file.get_tensor(name)
                    if wanted.pop(name, None) != tuple(tensor.shape):
                        raise Refused(
                            f"{path.name} has {name} {tuple(tensor.shape)}, which config.json does not describe: "
                            "weights and config belong to different models."
                        )
                    if not torch.isfinite(tensor).all():
                        raise Refused(f"{path.name}: {name} holds NaN or infinite values; this model cannot work.")
                    counts["parameters"] += tensor.numel() if name in parameters else 0
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    counts[dtype] = counts.get(dtype, 0) + 1
        except (SafetensorError, OSError) as error:
            raise Refused(f"{path} cannot be read as safetensors ({error}): save the model again.") from None
    if wanted:
        raise Refused(f"The weights lack {sorted(wanted)[0]} and {len(wanted) - 1} more: save the model again.")
    return counts


def run_record(source: Path) -> dict[str, Any] | None:
    """run.json of the training run: in the model folder, or in the run folder around it (`runs/x/model`)."""
    for path in (source / "run.json", source.parent / "run.json"):
        if path.is_file():
            return read_json(path)
    return None


def find_evaluations(source: Path, given: list[Path]) -> list[tuple[str, dict[str, Any]]]:
    """(file name, contents) of the evaluation files: those given, else those that lie beside the model."""
    paths = list(given)
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: --evaluation takes files written by scripts/evaluate.py.")
    if not paths:
        # runs/x/model lies in a run's folder; anything else beside a model may belong to another one.
        around = [source.parent] if (source.parent / "run.json").is_file() else []
        for folder in (source, source / "results", *around):
            paths += sorted(folder.glob("*.json")) if folder.is_dir() else []
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if path.name in ("run.json", "config.json") or path.name.endswith("index.json"):
            continue
        contents = read_json(path)
        if isinstance(contents, dict) and {"n", "exact_accuracy"} <= set(contents):
            name = path.name
            while name in found and found[name] != contents:
                name = f"{path.parent.name}-{name}"
            found[name] = contents
        elif path in given:
            raise Refused(f"{path} has no `n` and `exact_accuracy`: it was not written by scripts/evaluate.py.")
    for name, contents in found.items():
        numbers = [contents["n"], contents["exact_accuracy"]]
        if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers) or contents["n"] < 1:
            raise Refused(f"{name} holds no measurement (n = {contents['n']}, exact = {contents['exact_accuracy']}).")
        if not 0 <= contents["exact_accuracy"] <= 1:
            raise Refused(f"{name}: exact_accuracy = {contents['exact_accuracy']} is no share between 0 and 1.")
    return sorted(found.items())


def stage_model(
    source: Path,
    folder: Path,
    *,
    repo_id: str,
    evaluations: list[Path] = (),
    datasets: list[str] = (),
    figures: bool = True,
) -> Staged:
    """Fill `folder` with a model repository made from a saved model.

    Weights as they are; config and processor rewritten by this release (older configs migrate); its source files;
    tokenizer files if there are any; the card, the run record, evaluations and figures.
    """
    from air_model.processing_air import AirProcessor
    from air_model.scripts._cards import model_card

    need_folder(source, "model", "config.json")
    model_type = read_json(source / "config.json").get("model_type")
    if model_type != AirConfig.model_type:
        raise Refused(f"{source}/config.json is of a {model_type!r} model, not an AIR model.")
    weights = weight_files(source)
    config = AirConfig.from_pretrained(source)
    counts = check_weights(source, config)
    staged = Staged("model", folder)
    for path in weights:
        shutil.copyfile(path, folder / path.name)
    dtypes = [name for name in counts if name != "parameters"]
    config.architectures = ["AirModel"]
    config.code_version = AirConfig.code_version
    config.dtype = max(dtypes, key=counts.__getitem__)
    config.auto_map = {"AutoConfig": "configuration_air.AirConfig", "AutoModel": "modeling_air.AirModel"}
    config.save_pretrained(folder)
    AirProcessor.from_config(config).save_pretrained(folder)
    for name in TRAVELLING_FILES:
        shutil.copyfile(PACKAGE / name, folder / name)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    shutil.copyfile(PACKAGE / "LICENSE", folder / "LICENSE")

    run, cut = run_record(source), []
    measured = find_evaluations(source, list(evaluations))
    for name, contents in measured:
        measured_size = (contents.get("settings") or {}).get("parameters")
        if measured_size not in (None, counts["parameters"]):
            raise Refused(
                f"{name} measured a model of {measured_size:,} parameters, this one has {counts['parameters']:,}:"
                " give the evaluation of this checkpoint with --evaluation."
            )
    if run is not None:
        run = shorten_paths(run, cut)
        write_json(folder / "run.json", run)
    shortened = []
    for name, contents in measured:
        contents = shorten_paths(contents, cut)
        (folder / "results").mkdir(exist_ok=True)
        write_json(folder / "results" / name, contents)
        shortened.append((name, contents))
    if cut:
        staged.notes.append(f"{len(cut)} machine path(s) in run.json and evaluations were cut to their last part.")
    pictures = model_figures(source, config, folder) if figures else []
    card = model_card(config, counts, run, shortened, pictures, repo_id, list(datasets))
    (folder / "README.md").write_text(card)
    staged.notes += left_behind(source, {p.name for p in folder.rglob("*") if p.is_file()})
    if not measured:
        staged.notes.append(
            "No evaluation file was found, and the card says so: give those of evaluate.py by --evaluation."
        )
    return staged


def model_figures(source: Path, config: AirConfig, folder: Path) -> list[tuple[str, str]]:
    """(file name, caption) of pictures made from this checkpoint: a roll-out, and the run's learning curve."""
    pictures = []
    (folder / "figures").mkdir(exist_ok=True)
    places = (source / "curve.png", source.parent / "curve.png", source / "figures" / "curve.png")
    curve = next((path for path in places if path.is_file()), None)
    example = example_puzzle(config)
    if example is not None:
        import torch

        from air_model.analysis.figures import draw_rollout
        from air_model.modeling_air import AirModel
        from air_model.processing_air import task_from_config

        task = task_from_config(config)
        model = AirModel.from_pretrained(source)
        tokens = torch.from_numpy(task.encode(example)).long()[None]
        solution = model.solve(tokens, return_rollout=True)
        draw_rollout(solution.rollout, example, task, folder / "figures/rollout.png", per_step=len(config.schedule))
        verdict = task.verdict(example, solution.predictions[0].cpu().numpy())
        caption = (
            f"Both states of this checkpoint after {int(solution.act_steps[0])} ACT steps on one generated puzzle; "
            f"its answer {'is valid' if verdict.valid else 'breaks the rules'}."
        )
        pictures.append(("figures/rollout.png", caption))
    if curve is not None:
        shutil.copyfile(curve, folder / "figures/curve.png")
        pictures.append(("figures/curve.png", "The training run that made this checkpoint."))
    if not pictures:
        (folder / "figures").rmdir()
    return pictures


def example_puzzle(config: AirConfig) -> str | None:
    """A puzzle of the model's size that nobody has to supply: one of the Space's, always the same one."""
    import numpy as np

    from air_model.processing_air import task_from_config
    from air_model.spaces_demo.examples import new_puzzle, usual_level

    task = task_from_config(config)
    # Larger Sudokus take minutes to generate.
    if task.name not in ("sudoku", "maze") or (task.name == "sudoku" and task.height > 16):
        return None
    return task.decode(new_puzzle(task, usual_level(task), np.random.default_rng(0)))


def stage_dataset(source: Path, folder: Path, *, repo_id: str) -> Staged:
    """Fill `folder` with a data set repository: parquet shards, the card, reports and plots of build_dataset.py."""
    need_folder(source, "data set", ".")
    shards = sorted(source.rglob("*.parquet"))
    if not shards:
        raise Refused(f"{source} holds no parquet files: build it with scripts/build_dataset.py first.")
    if not (source / "README.md").is_file():
        raise Refused(f"{source} has no README.md (the data card with its configs): build it with build_dataset.py.")
    staged = Staged("dataset", folder)
    kept = [*shards, source / "README.md"]
    for pattern in ("*.json", "*.png", "*.svg", "*.md", "LICENSE"):
        kept += [p for p in sorted(source.rglob(pattern)) if p not in kept]
    cut: list[str] = []
    for path in kept:
        target = folder / path.relative_to(source)
        if any(part.startswith((".", "_")) for part in path.relative_to(source).parts):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            write_json(target, shorten_paths(read_json(path), cut))
        else:
            shutil.copyfile(path, target)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("FOLDER_OR_HUB_ID", repo_id))
    if cut:
        staged.notes.append(f"{len(cut)} machine path(s) in JSON files were cut to their last part.")
    staged.notes += left_behind(source, {p.name for p in folder.rglob("*") if p.is_file()})
    return staged


def stage_space(source: Path, folder: Path, *, repo_id: str, model: str | None = None) -> Staged:
    """Fill `folder` with the Space: app, front matter, requirements, and this package, from which the app imports.

    Args:
        model: Hub id of the model that the Space shows (its variable AIR_MODEL), or a folder that travels along.
    """
    need_folder(source, "Space", "app.py")
    staged = Staged("space", folder)
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if not path.is_file() or "__pycache__" in inside.parts or inside.name == "__init__.py":
            continue
        # What the package brings along anyway is not needed twice.
        twin = PACKAGE / "spaces_demo" / inside
        twice = twin.is_file() and twin.read_bytes() == path.read_bytes()
        if not twice or inside.name in ("app.py", "README.md", "requirements.txt"):
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / inside)
    for package in SPACE_PACKAGES:
        target = folder / "air_model" / package
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted((PACKAGE / package).iterdir()):
            if path.is_file() and path.name != "setup.py" and path.suffix in (".py", ".css", ".js", ".html", ".md"):
                if package or path.suffix == ".py":
                    shutil.copyfile(path, target / path.name)
    static = PACKAGE / "spaces_demo" / "static"
    if static.is_dir():
        shutil.copytree(static, folder / "air_model/spaces_demo/static", dirs_exist_ok=True)
    shutil.copyfile(PACKAGE / "LICENSE", folder / "LICENSE")
    if model is None:  # the shipped ones
        travelling = [path.parent for path in sorted((PACKAGE / "checkpoints").glob("*/config.json"))]
    else:
        travelling = [Path(model)] if Path(model).is_dir() else []
    for checkpoint in travelling:
        target = folder / "air_model" / "checkpoints" / checkpoint.name
        target.mkdir(parents=True)
        stage_model(checkpoint, target, repo_id=f"checkpoints/{checkpoint.name}", figures=False)
    if model is not None and not travelling:
        set_front_matter(folder / "README.md", "models", [model])
    return staged


def set_front_matter(path: Path, key: str, value: Any) -> None:
    """Set one field of the YAML block on top of a card."""
    from huggingface_hub import RepoCard

    card = RepoCard(path.read_text(), ignore_metadata_errors=False)
    card.data[key] = value
    path.write_text(str(card))


def left_behind(source: Path, kept: set[str]) -> list[str]:
    """A note that names the files of the source folder that are not part of the repository."""
    expected = {"README.md", "training_args.json"}
    names = [
        p.relative_to(source).as_posix()
        for p in sorted(source.rglob("*"))
        if p.is_file() and p.name not in kept | expected and "__pycache__" not in p.parts
    ]
    return [f"Left behind: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}."] if names else []


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n")


def publish_folder(staged: Path, target: Path) -> None:
    """Move a staged folder to where --dry-run wants it; only an earlier dry run may be there.

    Raises:
        Refused: the target holds files that would not be part of the repository.
    """
    target = Path(target)
    new = {p.relative_to(staged) for p in staged.rglob("*") if p.is_file()}
    if target.exists():
        old = {p.relative_to(target) for p in target.rglob("*") if p.is_file()} if target.is_dir() else {Path(".")}
        if foreign := sorted(old - new):
            raise Refused(
                f"--dry-run {target} already holds {foreign[0]}, which does not belong to the repository: give an "
                "empty or new folder."
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    for name in sorted(new):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=(target / name).parent, prefix=".")
        os.close(handle)
        shutil.copyfile(staged / name, temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target / name)

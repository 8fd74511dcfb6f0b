"""What a Hub repository of AIR holds: fresh folders, filled from an allow-list and completed (`upload` sends them)."""

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import RepoCard
from safetensors import SafetensorError
from safetensors.torch import load_file

from air_model.configuration_air import TRAVELLING_FILES, AirConfig
from air_model.modeling_air import AirModel
from air_model.processing_air import task_from_config
from air_model.publishing.card import example_puzzle, model_card
from air_model.publishing.safety import Refused, files_below, shorten_paths
from air_model.records import model_name, read_evaluations, read_json, run_record, setting, write_json, write_text

PACKAGE = Path(__file__).resolve().parent.parent
# What the Space imports: the package travels inside it.
SPACE_PACKAGES = ("analysis", "datasets_builders", "metrics", "spaces_demo")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass
class Staged:
    """A folder ready to be sent: its kind ("model", "dataset", "space"), and what the user should be told about it."""

    kind: str
    folder: Path
    notes: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)  # machine paths that were shortened

    def files(self) -> list[str]:
        """Paths relative to the folder, sorted."""
        return sorted(path.as_posix() for path in files_below(self.folder))

    def add(self, files: Iterable[Path], root: Path | None = None) -> None:
        """Copy those of the files that there are: to the top of the folder, or where they lie below `root`."""
        for path in files:
            if path.is_file():
                target = self.folder / (path.relative_to(root) if root else path.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    def add_json(self, name: str, contents: Any) -> Any:
        """Write JSON without machine paths; returns what was written."""
        contents = shorten_paths(contents, self.cut)
        write_json(self.folder / name, contents)
        return contents

    def finish(self, source: Path) -> "Staged":
        """Note what was shortened and what of the source is not part of the repository."""
        if self.cut:
            self.notes.append(f"{len(self.cut)} machine path(s) in JSON files were cut to their last part.")
        kept = {path.rpartition("/")[2] for path in self.files()} | {"README.md", "training_args.json"}
        left = (p for p in files_below(source) if p.name not in kept and "__pycache__" not in p.parts)
        if names := list(map(Path.as_posix, left)):
            self.notes.append(f"Left behind: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}.")
        return self


def need_folder(folder: Path, what: str, needed: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give the {what} folder that you want to publish.")
    if not (folder / needed).exists():
        raise FileNotFoundError(f"{folder} holds no {needed}: it is no {what} folder.")


# ---- models ---------------------------------------------------------------------------------------------------------


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

    Weights as they are; config and processor rewritten by this release; its source files;
    tokenizer files if there are any; the card, the run record, evaluations and figures.
    """
    staged = Staged("model", folder)
    need_folder(source, "model", "config.json")
    model_type = read_json(source / "config.json").get("model_type")
    if model_type != AirConfig.model_type:
        raise Refused(f"{source}/config.json is of a {model_type!r} model, not an AIR model.")
    config, weights = AirConfig.from_pretrained(source), weight_files(source)
    counts = check_weights(weights, config)
    # As a stranger needs them: classes named by the files beside them.
    config.architectures, config.code_version = ["AirModel"], AirConfig.code_version
    config.auto_map = {"AutoConfig": "configuration_air.AirConfig", "AutoModel": "modeling_air.AirModel"}
    config.dtype = max((name for name in counts if name != "parameters"), key=counts.__getitem__)
    config.save_pretrained(folder)  # and the processor
    staged.add([*weights, *(source / name for name in TOKENIZER_FILES)])
    staged.add(PACKAGE / name for name in (*TRAVELLING_FILES, "LICENSE"))
    if (run := run_record(source)) is not None:
        run = staged.add_json("run.json", run)
    found = evaluations_of(source, evaluations, counts["parameters"])
    measured = {name: staged.add_json(f"results/{name}.json", contents) for name, contents in found.items()}
    if not measured:
        text = "No evaluation was found: at most the training run's own is on the card. Give files of evaluate.py "
        staged.notes.append(text + "(--evaluation).")
    pictures = model_figures(source, config, staged) if figures else []
    card = model_card(config, counts, run, measured, pictures, repo_id, list(datasets))
    write_text(folder / "README.md", card)
    return staged.finish(source)


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that the index names, after it.

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


def check_weights(files: list[Path], config: AirConfig) -> Counter[str]:
    """Names, shapes and values of the weights against the config; returns parameters and tensors per dtype.

    Raises:
        Refused: damaged files, tensors that the config does not describe, NaN or infinite values.
    """
    with torch.device("meta"):
        model = AirModel(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parameters = {name for name, _ in model.named_parameters()}
    counts: Counter[str] = Counter()
    for path in (path for path in files if path.suffix == ".safetensors"):
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise Refused(f"{path} cannot be read as safetensors ({error}): save the model again.") from None
        for name, tensor in tensors.items():
            if wanted.pop(name, None) != tuple(tensor.shape):
                raise Refused(
                    f"{path.name} has {name} {tuple(tensor.shape)}, which config.json does not describe: "
                    "weights and config belong to different models."
                )
            if not torch.isfinite(tensor).all():
                raise Refused(f"{path.name}: {name} holds NaN or infinite values; this model cannot work.")
            counts["parameters"] += tensor.numel() if name in parameters else 0
            counts[str(tensor.dtype).removeprefix("torch.")] += 1
    if wanted:
        raise Refused(f"The weights lack {sorted(wanted)[0]} and {len(wanted) - 1} more: save the model again.")
    return counts


def evaluations_of(source: Path, given: list[Path], parameters: int) -> dict[str, dict[str, Any]]:
    """The evaluation files given, else those that lie beside the model.

    Raises:
        FileNotFoundError, Refused: a given file is not there, or holds no evaluation, or one of another model.
    """
    for path in given:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: --evaluation takes files written by scripts/evaluate.py.")
        if not read_evaluations([path]):
            raise Refused(f"{path} has no `n` and `exact_accuracy`: it was not written by scripts/evaluate.py.")
    found = read_evaluations(given or source)
    for name, contents in found.items():
        if (size := setting(contents, "parameters")) not in (None, parameters):
            raise Refused(
                f"{name} measured a model of {size:,} parameters, this one has {parameters:,}: give the evaluation of "
                "this checkpoint with --evaluation."
            )
    return found


def model_figures(source: Path, config: AirConfig, staged: Staged) -> list[tuple[str, str]]:
    """(file name, caption) of pictures made from this checkpoint: a roll-out, and the run's learning curve."""
    pictures = []
    if (example := example_puzzle(config)) is not None:
        from air_model.analysis.figures import draw_rollout

        task, file = task_from_config(config), "figures/rollout.png"
        tokens = torch.from_numpy(task.encode(example)).long()[None]
        solution = AirModel.from_pretrained(source).solve(tokens, return_rollout=True)
        draw_rollout(solution.rollout, example, task, staged.folder / file, per_step=len(config.schedule))
        verdict = task.verdict(example, solution.predictions[0].cpu().numpy())
        caption = (
            f"Both states of this checkpoint after {int(solution.act_steps[0])} ACT steps on one generated puzzle; "
            f"its answer {'is valid' if verdict.valid else 'breaks the rules'}."
        )
        pictures.append((file, caption))
    curves = (source / "curve.png", source.parent / "curve.png", source / "figures" / "curve.png")
    if (curve := next(filter(Path.is_file, curves), None)) is not None:
        target = staged.folder / "figures/curve.png"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(curve, target)
        pictures.append(("figures/curve.png", "The training run that made this checkpoint."))
    return pictures


# ---- data sets and the Space ----------------------------------------------------------------------------------------


def stage_dataset(source: Path, folder: Path, *, repo_id: str) -> Staged:
    """Fill `folder` with a data set repository: parquet shards, the card, reports and plots of build_dataset.py."""
    need_folder(source, "data set", ".")
    if not any(source.rglob("*.parquet")):
        raise Refused(f"{source} holds no parquet files: build it with scripts/build_dataset.py first.")
    if not (source / "README.md").is_file():
        raise Refused(f"{source} has no README.md (the data card with its configs): build it with build_dataset.py.")
    staged = Staged("dataset", folder)
    for path in files_below(source):
        if any(part.startswith((".", "_")) for part in path.parts):
            continue
        if path.suffix == ".json":
            staged.add_json(path.as_posix(), read_json(source / path))
        elif path.suffix in (".parquet", ".png", ".svg", ".md") or path.name == "LICENSE":
            staged.add([source / path], source)
    card = folder / "README.md"
    write_text(card, card.read_text(encoding="utf-8").replace("FOLDER_OR_HUB_ID", repo_id))
    return staged.finish(source)


def stage_space(source: Path, folder: Path, *, model: str | None = None) -> Staged:
    """Fill `folder` with the Space: app, front matter, requirements, and this package, from which the app imports.

    Args:
        model: Hub id of the model that the Space shows (its variable AIR_MODEL), or a folder that travels along.
    """
    need_folder(source, "Space", "app.py")
    staged = Staged("space", folder)
    without = shutil.ignore_patterns("__pycache__", ".*", "*.pyc")
    if source.samefile(PACKAGE / "spaces_demo"):  # the package brings the rest along
        staged.add(source / name for name in ("app.py", "README.md", "requirements.txt"))
    else:
        mine = shutil.ignore_patterns("__pycache__", ".*", "*.pyc", "air_model")  # a dry run's copy is made anew
        shutil.copytree(source, folder, ignore=mine, dirs_exist_ok=True)
    package = folder / "air_model"
    for name in SPACE_PACKAGES:
        shutil.copytree(PACKAGE / name, package / name, ignore=without)
    for path in PACKAGE.glob("*.py"):
        shutil.copyfile(path, package / path.name)
    staged.add([PACKAGE / "LICENSE"])
    shipped = [path.parent for path in sorted((PACKAGE / "checkpoints").glob("*/config.json"))]
    travelling = shipped if model is None else [Path(model)] if Path(model).is_dir() else []
    for checkpoint in travelling:
        target = package / "checkpoints" / model_name(checkpoint)
        target.mkdir(parents=True)
        stage_model(checkpoint, target, repo_id=f"checkpoints/{target.name}", figures=False)
    if model is not None and not travelling:
        card = RepoCard((folder / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=False)
        card.data["models"] = [model]
        write_text(folder / "README.md", str(card))
    return staged


def publish_folder(staged: Path, target: Path) -> None:
    """Copy a staged folder to where --dry-run wants it; only an earlier dry run may be there.

    Raises:
        Refused: the target holds files that would not be part of the repository.
    """
    new, old = (set(files_below(place)) for place in (staged, target))
    if foreign := sorted(old - new) or ([Path(".")] if target.is_file() else []):
        raise Refused(
            f"--dry-run {target} already holds {foreign[0]}, which does not belong to the repository: give an "
            "empty or new folder."
        )
    target.mkdir(parents=True, exist_ok=True)
    mode = target.stat().st_mode  # rather than a temporary folder's, which is for one user
    shutil.copytree(staged, target, dirs_exist_ok=True)
    target.chmod(mode)

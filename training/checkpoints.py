"""Checkpoints: a folder of safetensors and JSON, written beside and renamed, with a manifest of sizes and hashes."""

import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


class DamagedCheckpoint(ValueError):
    """A checkpoint folder that does not hold what its manifest says."""


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """safetensors wants contiguous tensors that share no memory, and lives on the CPU."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)


class CheckpointStore:
    """The folder `checkpoints/` of a run: checkpoint_N after N optimizer steps.

    A checkpoint is complete when its folder has its final name: it is written as `.checkpoint_N.tmp` and renamed last.
    """

    def __init__(self, folder: Path, total_limit: int = 2) -> None:
        self.folder, self.total_limit = Path(folder), total_limit

    def found(self) -> list[tuple[int, Path]]:
        """(step, folder) of all checkpoints under their final names, oldest first."""
        paths = self.folder.glob("checkpoint_*") if self.folder.is_dir() else []
        named = ((re.fullmatch(r"checkpoint_(\d+)", path.name), path) for path in paths)  # copies have other names
        return sorted((int(match[1]), path) for match, path in named if match)

    def sweep(self) -> None:
        """Remove what a kill left half written or half deleted."""
        for left in self.folder.glob(".checkpoint_*"):
            shutil.rmtree(left, ignore_errors=True)

    def begin(self, step: int) -> Path:
        """An empty temporary folder for checkpoint `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sweep()
        temporary = self.folder / f".checkpoint_{step}.tmp"
        temporary.mkdir()
        return temporary

    def finish(self, temporary: Path, step: int) -> Path:
        """Write the manifest, flush to the disk, rename, and delete the oldest beyond `total_limit`."""
        files = sorted(p for p in temporary.iterdir() if p.name != "manifest.json")
        manifest = {p.name: {"bytes": p.stat().st_size, "sha256": _hash(p)} for p in files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in [*files, temporary / "manifest.json"]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        target = self.folder / f"checkpoint_{step}"
        if target.exists():  # damaged since: `holds` said no
            shutil.rmtree(target)
        os.replace(temporary, target)
        self.prune(self.total_limit)
        return target

    def prune(self, keep: int) -> None:
        for _, path in self.found()[: -keep or None]:
            doomed = path.with_name(f".{path.name}.old")  # renamed first: a kill meanwhile leaves no half checkpoint
            shutil.rmtree(doomed, ignore_errors=True)
            os.replace(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def holds(self, step: int) -> bool:
        """Whether the step is saved already: to write it again would risk the good one for nothing."""
        path = self.folder / f"checkpoint_{step}"
        try:
            self.verify(path)
        except DamagedCheckpoint:
            return False
        return True

    def set_aside(self, after: int) -> None:
        """Rename the checkpoints after that step, which no run goes on from: they must not count for `total_limit`."""
        for step, path in self.found():
            if step > after:
                aside = path.with_name(f"unused_{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(path, aside)

    @staticmethod
    def verify(path: Path) -> None:
        """Raises DamagedCheckpoint unless every file of the manifest is there, with its size and hash."""
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            for name, entry in manifest.items():
                file = path / name
                if not file.is_file():
                    raise DamagedCheckpoint(f"{name} is missing")
                if file.stat().st_size != entry["bytes"]:
                    raise DamagedCheckpoint(f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}")
                if _hash(file) != entry["sha256"]:
                    raise DamagedCheckpoint(f"{name} was changed since it was written")
            if "state.json" not in manifest:
                raise DamagedCheckpoint("state.json is missing")
        except DamagedCheckpoint:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedCheckpoint(f"manifest.json cannot be read ({error})") from error

    def newest(self) -> Path | None:
        """The newest complete checkpoint; damaged ones are passed over with a warning."""
        for _, path in reversed(self.found()):
            try:
                self.verify(path)
                return path
            except DamagedCheckpoint as error:
                warnings.warn(f"Checkpoint {path} is damaged ({error}); trying the one before it.", stacklevel=2)
        return None


def read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / "state.json").read_text())


def read_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.is_file() else {}

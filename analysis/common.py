"""What every analysis shares: the puzzles it looks at, a resumable loop over them, statistics, and result files."""

import functools
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from air_model.configuration_air import AirConfig
from air_model.modeling_air import AirModel
from air_model.processing_air import task_from_config
from air_model.records import whole

CHUNK = 32  # puzzles that one entry of the cache holds, at least


@dataclass
class Study:
    """A model and the puzzles it is studied on.

    inputs, labels: (N, S) int64 on the CPU; labels PAD where an answer is not known. puzzle_ids: (N,) or None.
    """

    model: AirModel
    inputs: Tensor
    labels: Tensor
    puzzle_ids: Tensor | None = None
    batch_size: int | None = None
    dtype: torch.dtype | None = None
    cache_dir: Path | None = None
    progress: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        self.config: AirConfig = self.model.config
        self.task = task_from_config(self.config)
        self.updates = list(self.config.schedule) * self.config.halt_max_steps  # "l" or "h" for each, all ACT steps
        for name in ("inputs", "labels", "puzzle_ids"):
            if (values := getattr(self, name)) is not None:
                setattr(self, name, torch.as_tensor(values).cpu().long())
        for name, grids in (("inputs", self.inputs), ("labels", self.labels)):
            if grids.shape != (len(self.inputs), self.task.seq_len):
                raise ValueError(
                    f"{name} of {self.task!r} must be ({len(self.inputs)}, {self.task.seq_len}), got "
                    f"{tuple(grids.shape)}: give data of the model's task and size."
                )
        self.model.eval()

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def device(self) -> torch.device:
        return self.model.lm_head.weight.device

    def slots(self) -> int:
        """Puzzles computed at once."""
        if self.batch_size is not None:
            return min(self.batch_size, len(self))
        # Queries and keys of two updates are kept beside the activations: 2**17 positions stay well below 16 GB.
        most = max(1, 2**17 // self.config.num_stack_positions)
        return min(self.model.default_batch_size(), len(self), 512, most)

    def part(self, rows: slice) -> "Study":
        """The same study of some of its puzzles."""
        ids = None if self.puzzle_ids is None else self.puzzle_ids[rows]
        own = {"batch_size": self.slots(), "dtype": self.dtype}
        return Study(self.model, self.inputs[rows], self.labels[rows], ids, **own)

    def solve(self, **kwargs: Any) -> Any:
        """`AirModel.solve` of all puzzles, with this study's batch size and precision."""
        own = {"batch_size": self.slots(), "dtype": self.dtype, "return_logits": False}
        return self.model.solve(self.inputs, self.puzzle_ids, **own, **kwargs)

    def fingerprint(self, **settings: Any) -> str:
        """Hash of weights, config, puzzles and settings: names a cache that may be reused."""
        digest = hashlib.sha256()
        add_model(digest, self.model)
        for part in (self.inputs, self.labels, self.puzzle_ids):
            digest.update(b"-" if part is None else part.contiguous().numpy().tobytes())
        digest.update(json.dumps([str(self.dtype), self.device.type, settings], sort_keys=True, default=str).encode())
        return digest.hexdigest()[:24]


def add_model(digest: Any, model: AirModel) -> None:
    """Add weights and config to a hash, wherever the model's folder lies and whatever the library's release."""
    for name, weight in sorted(model.state_dict().items()):
        # Sums of the bits as whole numbers: nothing large leaves a GPU, and unlike sums of floats they do not depend
        # on the number of threads, which `torchrun` changes.
        kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = weight.detach().contiguous().view(-1).view(kinds[weight.element_size()]).long()
        place = torch.arange(1, len(bits) + 1, device=bits.device)
        digest.update(repr((name, int(bits.sum()), int((bits * place).sum()))).encode())
    passing = ("dtype", "transformers_version", "_name_or_path")
    config = {k: v for k, v in model.config.to_dict().items() if k not in passing}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())


class Filled:
    """Arrays filled place by place: `put("norm", values, rows, at)` sets [rows, at] of "norm", which is (N, U, ...).

    Args: lead, the first axes of all arrays, such as N and U; an array has as many of them as it has places.
    """

    def __init__(self, *lead: int) -> None:
        self.lead, self.tensors = lead, {}

    def put(self, name: str, values: Tensor, *place: Any) -> None:
        if name not in self.tensors:
            self.tensors[name] = values.new_zeros((*self.lead[: len(place)], *values.shape[1:]))
        self.tensors[name][place] = values

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: tensor.cpu().numpy() for name, tensor in self.tensors.items()}


def over_puzzles(
    study: Study, name: str, compute: Callable[[Study, int], dict[str, np.ndarray]], **settings: Any
) -> dict[str, Any]:
    """The arrays of `compute(part, first)`, called a chunk of puzzles at a time and joined along their first axis.

    `first` is the number of the part's first puzzle. With `study.cache_dir` every finished chunk is written there, and
    a later run with the same model, puzzles and settings starts behind the last one.

    Returns:
        {name: array}; names with "|" are nested: what compute calls "norm|h" is result["norm"]["h"].
    """
    slots = study.slots()
    size = slots * math.ceil(CHUNK / slots)
    folder, parts = None, []
    if study.cache_dir is not None:
        folder = Path(study.cache_dir) / f"{name}-{study.fingerprint(chunk=size, layout=2, **settings)}"
    with logging.tqdm(total=len(study), unit="puzzle", desc=name, disable=not study.progress) as bar:
        for first in range(0, len(study), size):
            part, file = study.part(slice(first, first + size)), folder and folder / f"{first:07d}.npz"
            if file and file.exists():
                with np.load(file, allow_pickle=False) as stored:
                    parts.append(dict(stored))
            else:
                parts.append(compute(part, first))
                if file:
                    with whole(file) as partial, open(partial, "wb") as stream:
                        np.savez(stream, **parts[-1])
            bar.update(len(part))
    nested: dict[str, Any] = {}
    for key in parts[0]:
        *outer, last = key.split("|")
        place = functools.reduce(lambda at, level: at.setdefault(level, {}), outer, nested)
        place[last] = np.concatenate([part[key] for part in parts])
    return nested


# ---- statistics ----------------------------------------------------------------------------------------------------


def mean_std_sem(values: Any, keys: Sequence[str] = ("n", "mean", "std", "sem")) -> dict[str, Any]:
    """n, mean, std (n - 1; 0 where n = 1) and standard error along the first axis; None where n = 0."""
    values = np.asarray(values, np.float64)
    n = len(values)
    stats: dict[str, Any] = {"n": n}
    if n:
        std = values.std(0, ddof=1) if n > 1 else np.zeros_like(values[0])
        stats |= {"mean": values.mean(0), "std": std, "sem": std / math.sqrt(n)}
    return {key: stats.get(key) for key in keys}


def right_grids(grids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(...) bool: grids (..., S) that are right in all cells with a label (PAD is none); without any none is."""
    return ((grids == labels) | (labels <= 0)).all(-1) & (labels > 0).any(-1)


def interval(values: np.ndarray, share_positive: bool = False) -> dict[str, float | None]:
    """{"mean", "ci95"} of a sample (N,): 1.96 standard errors; None where it is empty."""
    n, mean, _, sem = mean_std_sem(values).values()
    out = {"mean": mean, "ci95": 1.96 * sem if n else None}
    if share_positive:
        out["share_positive"] = np.mean(values > 0) if n else None
    return out


def summary(values: Sequence[float]) -> str:
    """Percentages as mean ± sample standard deviation; one value stands alone, none is an empty cell."""
    if not values:
        return ""
    mean = share(statistics.mean(values))
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


# ---- tables --------------------------------------------------------------------------------------------------------


def long_table(axes: dict[str, Sequence[Any]], **values: Any) -> dict[str, np.ndarray]:
    """Arrays of one shape as columns, a line per element: a column per axis with its labels, then the values."""
    places = zip(axes, np.meshgrid(*axes.values(), indexing="ij"))
    return {name: np.asarray(column).reshape(-1) for name, column in (*places, *values.items())}


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 2) -> str:
    """A table in Markdown, its first `left` columns left-aligned, the others right-aligned; None is an empty cell."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    cells = [["" if cell is None else str(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def share(percent: float) -> str:
    """A percentage with one decimal, or as many as keep 99.97 from being 100."""
    texts = [f"{percent:.{digits}f}" for digits in (1, 2, 3)]
    return next((t for t in texts if float(t) not in (0.0, 100.0) or percent in (0.0, 100.0)), texts[-1])


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; an empty cell for None."""
    return "" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def plus_minus(mean: float | None, spread: float | None, digits: int = 3, scale: float = 1) -> str:
    """Both times `scale`; an empty cell without a mean, the mean alone without a spread."""
    ends = [number(scale * value, digits) for value in (mean, spread) if value is not None]
    return "" if mean is None else " ± ".join(ends)

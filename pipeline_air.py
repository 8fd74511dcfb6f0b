"""The `puzzle-solving` pipeline, puzzles of mixed sizes, and saving a release.

    pipe = transformers.pipeline("puzzle-solving", model=folder, trust_remote_code=True)
    pipe("53..7....6..195...…")                      # {"solution": ..., "solved": True, "confidence": 0.99, ...}
    pipe(list_or_generator, attempts=8)              # symmetric views; stops at the first answer that the rules accept

This file travels to the Hub: it needs numpy, torch and transformers, nothing else.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor, Pipeline, PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from .attempts_air import Answers, solve_puzzles
from .configuration_air import AirConfig
from .modeling_air import AirModel, seen_by_heads
from .processing_air import AirProcessor, GridTask, make_task, task_from_config

logger = logging.get_logger(__name__)

TASK = "puzzle-solving"
PUZZLE_KEYS = ("question", "puzzle", "text", "input_ids", "inputs")  # where a data set's row may hold its puzzle


class OtherSizeError(ValueError):
    """A well-formed puzzle, of a size that no model at hand can take."""


def tasks_of(tasks: list[GridTask], puzzle: Any) -> list[GridTask]:
    """The tasks that a puzzle may be of: those of `tasks`, else the same kinds in the size it is written in.

    Raises:
        ValueError: it is of none; the message is about the first, or about a drawing as large as it is drawn.
    """
    own, other, errors, drawn = [], [], [], []
    for task in tasks:
        try:
            task.as_tokens(puzzle)
            own.append(task)
        except ValueError as error:
            errors.append(error)
            other += _resized_tasks(task, puzzle, drawn)
    if not own and not other:
        raise (drawn or errors)[0]
    return own + other


def _resized_tasks(task: GridTask, puzzle: Any, drawn: list[ValueError]) -> list[GridTask]:
    lines = len(puzzle.splitlines()) if isinstance(puzzle, str) and task.name != "sudoku" else 0
    for height, width in _sizes_of(task, puzzle):
        try:
            other = make_task(task.name, height, width, vocab_size=task.vocab_size if task.name == "grid" else None)
            other.as_tokens(puzzle)
        except ValueError as error:
            if 1 < lines == height != task.height:  # so it is no puzzle of the model's size that lacks a cell
                drawn.append(error)
            continue
        return [other]
    return []


def _sizes_of(task: GridTask, puzzle: Any) -> Iterator[tuple[int, int]]:
    """Rows and columns that a puzzle may have by what it is written as."""
    if not isinstance(puzzle, str):
        shape = np.shape(puzzle)
        count = shape[0] if len(shape) == 1 else 0
        if len(shape) == 2:
            yield shape
    elif task.name == "sudoku":
        # Drawn lines and white space are no cells, so the text's own length says little: every size is tried.
        yield from ((side, side) for side in range(4, 36))
        return
    else:
        lines = [line for line in puzzle.splitlines() if line]
        count = len(lines[0]) if len(lines) == 1 else 0
        if len(lines) > 1:
            yield len(lines), len(lines[0])
            yield len(lines) - 2, len(lines[0]) - 2  # a drawn frame
    if count and math.isqrt(count) ** 2 == count:
        yield math.isqrt(count), math.isqrt(count)


def takes_size(config: AirConfig, task: GridTask) -> bool:
    """Whether a model of this config can compute puzzles of that task.

    Its own size always. Another one where no weight belongs to a cell and the rules are the same: mazes (and generic
    grids), by a model with attention whose position code is a formula. One-dimensional RoPE knows how far a row is
    from the next only for its own width. A Sudoku of another size has other digits and boxes: that is another task.
    """
    own = task_from_config(config)
    if own == task or (own.name, own.vocab_size) != (task.name, task.vocab_size) or own.name == "sudoku":
        return own == task
    free = config.position_embedding == "rope2d" or config.position_embedding == "rope" and own.width == task.width
    return free and config.token_mixer == "attention" and not config.cell_embedding


def in_size(model: AirModel, task: GridTask) -> AirModel:
    """The same weights (shared, not copied) for grids of another size; see `takes_size`."""
    if task_from_config(model.config) == task:
        return model
    own = task_from_config(model.config)
    logger.warning_once(
        f"A model that was made for {own.height}x{own.width} computes {task.name}s of {task.height}x{task.width}: its "
        "position code takes them; whether it has learned them is another matter. The rules judge the answers."
    )
    fields = {k: v for k, v in model.config.to_dict().items() if k not in ("transformers_version", "architectures")}
    config = type(model.config)(**fields | {"grid_height": task.height, "grid_width": task.width})
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        other = type(model)(config)
    other.load_state_dict(model.state_dict(), assign=True)
    for name, table in other.rotary.tables(config).items():
        setattr(other.rotary, name, table.to(model.device))
    if config.head_relations:
        other.seen_by_heads = seen_by_heads(config).to(model.device)
    return other.train(model.training)


def models_for(models: list[AirModel], task: GridTask) -> list[AirModel]:
    """The models that were made for a task; if there are none, those that can take its size."""
    return [m for m in models if task_from_config(m.config) == task] or [
        in_size(m, task) for m in models if takes_size(m.config, task)
    ]


def sort_by_size(
    models: list[AirModel], puzzles: Iterable[Any], check: bool = True
) -> tuple[dict[GridTask, tuple[list[int], np.ndarray]], dict[int, ValueError]]:
    """Puzzles of mixed sizes, by the task that each is of.

    Returns:
        {task: (places in the list, tokens (n, S) uint8)}, and what is refused: {place: ValueError}, an OtherSizeError
        where only the size is at fault.
    """
    tasks = list(dict.fromkeys(task_from_config(m.config) for m in models))
    groups: dict[GridTask, tuple[list[int], list]] = {}
    refused: dict[int, ValueError] = {}
    for place, puzzle in enumerate(puzzles):
        try:
            found = tasks_of(tasks, puzzle)
            task = next((t for t in found if any(takes_size(m.config, t) for m in models)), None)
            if task is None:
                made = " or ".join(f"{t.height}x{t.width}" for t in tasks)
                raise OtherSizeError(
                    f"This {found[0].name} is {found[0].height}x{found[0].width}; the model was made for {made} and "
                    "takes no other size."
                )
            tokens = task.as_tokens(puzzle)
            if check:
                task.check_puzzle(tokens)
        except ValueError as error:
            refused[place] = error
            continue
        places, rows = groups.setdefault(task, ([], []))
        places.append(place)
        rows.append(tokens)
    return {task: (places, np.stack(rows)) for task, (places, rows) in groups.items()}, refused


class PuzzleSolvingPipeline(Pipeline):
    """`pipeline("puzzle-solving")`: puzzles in, checked answers out.

    Call it with a puzzle (text or S tokens), a list of them, a generator, or a data set (rows: puzzles, or dicts with
    a "question", "puzzle" or "text"). A list gives a list; generators and data sets are read and answered lazily.
    Puzzles of mixed sizes are grouped by size and solved where the model can take them (see `takes_size`); one that it
    cannot take gets an entry whose `error` says so, while the others are solved. An ill-formed puzzle is a ValueError.
    Options, at construction or per call, are those of `solve_puzzles`, with halt="rules" by default; batch_size is the
    number of puzzles computed together and changes no answer.

    Each answer is a dict: solution (text), solved and valid (the rules accept it), complete, consistent (with the
    clues), message (a sentence, naming the first wrong cell), confidence (sigmoid of q_halt), act_steps (spent, over
    all attempts), attempts; with return_rollout=True also rollout: {"updates": [...], "z_h": [texts], "z_l": [texts]}.
    """

    _load_processor = None  # used where the folder has one; the model's config can stand in for it
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: AirModel, processor: AirProcessor | None = None, **kwargs: Any) -> None:
        super().__init__(model=model, processor=processor, **kwargs)
        if self.processor is None:
            self.processor = AirProcessor.from_config(self.model.config)
        if self.device.type == "cpu":
            # bfloat16 products are hundreds of times slower on processors without such instructions.
            self.model.float()
        self.model.eval()

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        known = ("attempts", "max_act_steps", "halt", "noise", "selection", "symmetries", "seed", "return_rollout")
        known += ("progress", "puzzle_ids", "dtype")
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"The pipeline has no option {unknown}. Options: batch_size, {', '.join(known)}.")
        return {}, options, {}

    def __call__(
        self, inputs: Any, *, batch_size: int | None = None, num_workers: int | None = None, **options: Any
    ) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        options = {**self._forward_params, **self._sanitize_parameters(**options)[1]}
        options["batch_size"] = batch_size or self._batch_size
        if isinstance(inputs, Tensor):
            inputs = inputs.detach().cpu().numpy()
        if hasattr(inputs, "columns") and hasattr(inputs, "to_dict"):  # a pandas table: its rows, not its columns
            inputs = inputs.to_dict("records")
        if isinstance(inputs, Mapping):  # a row of a data set, or a batch of them: one column holds the puzzles
            inputs = _puzzle_of(inputs)
            inputs = inputs.detach().cpu().numpy() if isinstance(inputs, Tensor) else inputs
        if isinstance(inputs, np.ndarray) and not inputs.ndim:
            inputs = inputs.item()
        one = isinstance(inputs, str) or self._is_one_grid(inputs)
        if one or isinstance(inputs, (list, tuple, np.ndarray)):
            inputs = [inputs] if one else inputs
            found = list(self._stream(inputs, options, at_once=max(len(inputs), 1)))
            if found and all("error" in answer for answer in found):
                raise OtherSizeError(found[0]["error"])  # the wrong model, rather than a mixed list
            return found[0] if one else found
        if isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"):
            return self._stream(inputs, options)
        raise ValueError(
            f"Pass a puzzle as text, a list of them, a generator or a data set; got {type(inputs).__name__}."
        )

    def _is_one_grid(self, inputs: Any) -> bool:
        """S tokens, flat or as rows."""
        task = self.processor.grid_task
        try:
            shape = np.shape(inputs) if isinstance(inputs, (list, tuple, np.ndarray)) and _is_numeric(inputs) else ()
        except ValueError:  # grids of several sizes
            return False
        if len(shape) == 2:  # rows and columns, of another size as well; (S, S) are S puzzles of S tokens
            if shape == (task.height, task.width) or shape[0] == shape[1] != task.seq_len:
                return True
            return shape[1] != task.seq_len and math.isqrt(shape[1]) ** 2 != shape[1]  # no row is a puzzle by itself
        return len(shape) == 1 and shape != (0,)

    def _stream(self, inputs: Any, options: dict[str, Any], at_once: int | None = None) -> Iterator[dict[str, Any]]:
        """Answers in order, `at_once` puzzles read ahead; by default a few batches, then more at a time.

        The first answers come soon, and later the drain of a batch at the end of each part counts for little.
        """
        slots = options["batch_size"] or self.model.default_batch_size()
        at_once, done, waiting = at_once or 4 * slots, 0, []
        most = max(at_once, 100 * slots)
        for puzzle in _rows(inputs):
            waiting.append(puzzle)
            if len(waiting) == at_once:
                yield from self._solve(waiting, done + 1, options)
                done, waiting, at_once = done + len(waiting), [], min(most, 4 * at_once)
        if waiting:
            yield from self._solve(waiting, done + 1, options)

    def _solve(self, puzzles: list, first: int, options: dict[str, Any]) -> list[dict[str, Any]]:
        model_inputs = self.preprocess(puzzles, first=first)
        return self.postprocess(self.forward(model_inputs, **options))

    # Pipeline's three stages, each for a list of puzzles.

    def preprocess(self, puzzles: Any, first: int = 1) -> dict[str, Any]:
        """Tokens by size, and a sentence for each puzzle whose size the model cannot take; counted from `first`."""
        puzzles = [puzzles] if isinstance(puzzles, (str, dict)) else puzzles
        groups, errors = sort_by_size([self.model], (_puzzle_of(puzzle) for puzzle in puzzles))
        refused = {}
        for place, error in errors.items():
            refused[place] = f"Puzzle {first + place}: {error}" if len(puzzles) > 1 or first > 1 else str(error)
            if not isinstance(error, OtherSizeError):
                raise ValueError(refused[place]) from None
        return {"groups": groups, "refused": refused, "first": first}

    def _forward(self, model_inputs: dict[str, Any], puzzle_ids: Any = None, **options: Any) -> dict[str, Any]:
        outputs = []
        for task, (places, tokens) in model_inputs["groups"].items():
            options["halt"] = options.get("halt") or ("q" if task.name == "grid" else "rules")
            ids = None
            if puzzle_ids is not None:
                ids = np.asarray(puzzle_ids)
                if ids.ndim and len(ids) < (needed := max(places) + model_inputs["first"]):
                    raise ValueError(
                        f"puzzle_ids must have one number per puzzle: got {len(ids)} for {needed} or more."
                    )
                ids = ids[np.array(places) + model_inputs["first"] - 1] if ids.ndim else np.full(len(places), ids)
            model = in_size(self.model, task)
            answers = solve_puzzles(model, task, tokens, check=False, puzzle_ids=ids, **options)
            outputs.append({"task": task, "places": places, "puzzles": tokens, "answers": answers})
        return {"groups": outputs, "refused": model_inputs["refused"]}

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        found = {place: refusal(sentence) for place, sentence in outputs["refused"].items()}
        for group in outputs["groups"]:
            for i, place in enumerate(group["places"]):
                found[place] = describe(group["task"], group["puzzles"][i], group["answers"], i)
        return [found[place] for place in sorted(found)]

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        return inputs  # numpy in, numpy out: `AirModel.solve` moves what it needs

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write a folder that loads everywhere (see `save_release`)."""
        save_release(self.model, save_directory, self.processor)


def describe(task: GridTask, puzzle: np.ndarray, answers: Answers, i: int) -> dict[str, Any]:
    """Answer i as a dict of texts and numbers, ready for JSON."""
    tokens = answers.tokens[i]
    complete, consistent, valid = (bool(f[i]) for f in answers.verdict[:3])
    result = {
        "solution": task.decode(tokens),
        "solved": valid,
        "valid": valid,
        "complete": complete,
        "consistent": consistent,
        "message": task.verdict(puzzle, tokens).message,
        "confidence": float(answers.confidence[i]),
        "act_steps": int(answers.act_steps[i]),
        "attempts": int(answers.attempts[i]),
    }
    if answers.rollout is not None:
        z_h, z_l, updates = answers.rollout
        result["rollout"] = {
            "updates": list(updates),
            "z_h": [task.decode(grid) for grid in z_h[i]],
            "z_l": [task.decode(grid) for grid in z_l[i]],
        }
    return result


def refusal(sentence: str) -> dict[str, Any]:
    """The entry of a puzzle that was not computed: the fields of `describe`, and `error`."""
    verdict = dict.fromkeys(("solved", "valid", "complete", "consistent"), False)
    spent = {"confidence": 0.0, "act_steps": 0, "attempts": 0}
    return {"solution": None, **verdict, "message": sentence, **spent, "error": sentence}


def _is_numeric(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu"
    while isinstance(value, (list, tuple)) and len(value):
        value = value[0]
    return isinstance(value, (int, np.integer))


def _rows(inputs: Any) -> Iterator[Any]:
    """The rows of a list, generator, array, data set or map-style data set."""
    if isinstance(inputs, Iterable):
        yield from inputs
    else:
        yield from (inputs[i] for i in range(len(inputs)))


def _puzzle_of(row: Any) -> Any:
    """The puzzle of a data set's row: the row itself, or one of its columns."""
    if not isinstance(row, Mapping):
        return row
    for key in PUZZLE_KEYS:
        if key in row:
            return row[key]
    raise ValueError(f"A row with the columns {sorted(row)} has no puzzle; expected one of {', '.join(PUZZLE_KEYS)}.")


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """A model of one file needs no progress bar."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_release(model: AirModel, folder: str | os.PathLike, processor: AirProcessor | None = None) -> None:
    """Write a model folder that AutoModel, AutoProcessor and pipeline() load anywhere with trust_remote_code=True.

    It holds model.safetensors, config.json, processor_config.json and the travelling source files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        with _without_bars():
            model.save_pretrained(temporary)
        if processor is not None:
            processor.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir()):
            os.replace(path, folder / path.name)


def device_of(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; without one the GPU if there is one.

    Raises:
        ValueError: torch does not know it, or has no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has no common error for this
        raise ValueError(f"There is no device {str(name)!r} here ({str(error).splitlines()[0]}). Try cpu.") from None
    return device


def load_model(
    source: str | os.PathLike, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> AirModel:
    """The AirModel of a folder or a Hub id, in eval(), on the GPU if there is one; in float32 on a CPU.

    Raises:
        FileNotFoundError: no such folder, or nothing in it. ValueError: damaged, incomplete, or not an AIR model.
    """
    folder, name = Path(source).expanduser(), str(source)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{source} holds no config.json: give a folder that save_pretrained or convert_checkpoint.py wrote, "
                "or a Hub id USER/NAME."
            )
        name = str(folder)
    device = device_of(device)
    if dtype is None and device.type == "cpu":
        dtype = torch.float32
    try:
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
        if kind != AirConfig.model_type:
            raise ValueError(f"its config.json is of a {kind!r} model, not of AIR")
        with _without_bars():
            model, report = AirModel.from_pretrained(name, dtype=dtype or "auto", output_loading_info=True)
    except Exception as error:  # safetensors, the Hub's client and transformers have no common error
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        where = "" if folder.exists() else " There is no folder of that name here either."
        raise ValueError(f"{source} cannot be loaded as an AIR model: {reason}{where}") from error
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(f"{source} cannot be loaded as an AIR model: its weights lack {', '.join(lacking[:3])}.")
    return model.to(device).eval()


def register() -> None:
    """Make AutoConfig, AutoModel, AutoProcessor and pipeline("puzzle-solving") find the installed classes.

    The package does this when it is imported; the folders that it saves then need no trust_remote_code here.
    """
    AutoConfig.register(AirConfig.model_type, AirConfig, exist_ok=True)
    AutoModel.register(AirConfig, AirModel, exist_ok=True)
    AutoProcessor.register(AirConfig, AirProcessor, exist_ok=True)
    AirConfig.pipeline_is_registered = True
    register_pipeline()


def register_pipeline() -> None:
    """Make pipeline("puzzle-solving", model=MODEL) find its class, also for a model that brought its own code."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(TASK, PuzzleSolvingPipeline, pt_model=AutoModel, type="text")


__all__ = ["PuzzleSolvingPipeline", "load_model", "register", "save_release"]

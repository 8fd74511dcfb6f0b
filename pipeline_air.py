"""The `puzzle-solving` pipeline, puzzles of mixed sizes, and saving a release.

pipe = transformers.pipeline("puzzle-solving", model=folder, trust_remote_code=True)
pipe("53..7....6..195...…")                      # {"solution": ..., "solved": True, "confidence": 0.99, ...}
pipe(list_or_generator, attempts=1)              # a single pass; the default goes on where the rules refuse it
"""

import contextlib
import itertools
import math
import os
import sys
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

from .answers_air import Answers
from .attempts_air import solve_puzzles
from .blocks_air import forward_flops
from .configuration_air import AirConfig
from .modeling_air import AirModel
from .processing_air import AirProcessor, GridTask, Verdict, make_task, task_from_config
from .reading_air import PUZZLE_KEYS, as_text, is_one_grid, maze_lines, most_like, puzzle_of, without_margin

logger = logging.get_logger(__name__)

TASK = "puzzle-solving"
MOST_SIDE = 100  # of a grid in another size than the model's own
FLOPS = 4e10  # operations a second of one CPU thread in solving, measured at 9x9 to 60x60 (results/maze_sizes.md)
SHORT, LONG = 16_000, 100_000  # effort of a search for further solutions, and for one where none was found


class OtherSizeError(ValueError):
    """A well-formed puzzle, of a size that no model at hand can take."""


def readings(tasks: list[GridTask], puzzle: Any, values: str | None = None) -> list[tuple[GridTask, np.ndarray]]:
    """The tasks that a puzzle may be of, with its tokens: those of `tasks`, else the same kinds in the size it is
    written in.

    Raises:
        ValueError: it is of none; the message is about the likeliest, or about a drawing as large as it is drawn.
    """
    found, errors, drawn = [], [], []
    for task in tasks:
        try:
            found.append((task, task.as_tokens(puzzle, values)))
        except ValueError as error:
            errors.append(error)
    # Every size of Sudoku is tried, whatever the task's own: once is enough.
    kinds = {task.name if task.name == "sudoku" else task: task for task in tasks}
    likely = 0 if found else most_like(tasks, puzzle)
    for task in () if found else kinds.values():
        lines = len(maze_lines(puzzle, task.letters)) if isinstance(puzzle, str) and task.name != "sudoku" else 0
        vocab_size = task.vocab_size if task.name == "grid" else None
        for height, width in _sizes_of(task, puzzle):
            try:
                other = make_task(task.name, height, width, vocab_size=vocab_size)
                found.append((other, other.as_tokens(puzzle, values)))
                break
            except ValueError as error:
                # So it is no puzzle of the model's size that lacks a cell.
                if task.name == tasks[likely].name and 1 < lines == height != task.height:
                    drawn.append(error)
    if not found:
        raise drawn[0] if drawn else errors[likely]
    return found


def _sizes_of(task: GridTask, puzzle: Any) -> Iterator[tuple[int, int]]:
    """Rows and columns that a puzzle may have by what it is written as."""
    if (text := as_text(puzzle)) is None:
        shape = np.shape(puzzle)
        count = shape[0] if len(shape) == 1 else 0
        if len(shape) == 2:
            yield shape
    elif task.name == "sudoku":
        # Drawn lines and white space are no cells, so the text's own length says little: every size is tried.
        yield from ((side, side) for side in range(4, 36))
        return
    else:
        lines = maze_lines(text, task.letters)
        count = len(lines[0]) if len(lines) == 1 else 0
        if len(lines) > 1:
            lines = without_margin(lines)
            yield len(lines), len(lines[0])
            yield len(lines) - 2, len(lines[0]) - 2  # a drawn frame
    if count and (side := math.isqrt(count)) ** 2 == count:
        yield side, side


def takes_size(config: AirConfig, task: GridTask) -> bool:
    """Whether a model of this config can compute puzzles of that task.

    Its own size always. Another one where no weight belongs to a cell and the rules are the same: mazes (and generic
    grids), by a model with attention whose position code is a formula. One-dimensional RoPE knows how far a row is
    from the next only for its own width. A Sudoku of another size has other digits and boxes: that is another task.
    """
    own = task_from_config(config)
    if own == task or (own.name, own.vocab_size) != (task.name, task.vocab_size) or own.name == "sudoku":
        return own == task
    if max(task.height, task.width) > MOST_SIDE:
        return False
    free = config.position_embedding == "rope2d" or config.position_embedding == "rope" and own.width == task.width
    return free and config.token_mixer == "attention" and not config.cell_embedding


def in_size(model: AirModel, task: GridTask) -> AirModel:
    """The same weights (shared, not copied) for grids of another size; see `takes_size`."""
    if (own := task_from_config(model.config)) == task:
        return model
    fields = {k: v for k, v in model.config.to_dict().items() if k not in ("transformers_version", "architectures")}
    config = type(model.config)(**fields | {"grid_height": task.height, "grid_width": task.width})
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        other = type(model)(config)
    other.load_state_dict(model.state_dict(), assign=True)
    logger.warning_once(
        f"A model that was made for {own.height}x{own.width} computes {task.name}s of {task.height}x{task.width}: its "
        "position code takes them; whether it has learned them is another matter. The rules judge the answers. "
        + forecast(config, other.default_batch_size(1))
    )
    return other.to(model.device).train(model.training)  # weights lie there; the tables of the new size follow


def forecast(config: AirConfig, puzzles: int = 1) -> str:
    """A sentence: what an ACT step of so many puzzles takes on this CPU, in seconds and memory, roughly."""
    threads = torch.get_num_threads()
    seconds = puzzles * forward_flops(config) * len(config.schedule) / (FLOPS * threads)
    # What an update holds at once, in float32: both states and their sum, queries, keys and values, the wide layer.
    numbers = puzzles * config.num_stack_positions * (8 * config.hidden_size + 3 * config.intermediate_size)
    return (
        f"An ACT step takes about {seconds:.2g} s on {threads} thread{'s' if threads > 1 else ''} of a CPU and "
        f"{math.ceil(4 * numbers / 1e6):,} MB; an attempt has up to {config.halt_max_steps} of them."
    )


def sort_by_size(
    models: list[AirModel], puzzles: Iterable[Any], values: str | None = None
) -> tuple[dict[GridTask, tuple[list[int], np.ndarray]], dict[int, ValueError]]:
    """Puzzles of mixed sizes, or rows of a data set that hold them, by the task that each is of.

    Args:
        values: "digits" or "tokens": what numbers are; as for `GridTask.as_tokens`.

    Returns:
        {task: (places in the list, tokens (n, S) uint8)}, and what is refused: {place: ValueError}, an OtherSizeError
        where only the size is at fault.
    """
    tasks = list(dict.fromkeys(task_from_config(m.config) for m in models))
    groups: dict[GridTask, tuple[list[int], list]] = {}
    refused: dict[int, ValueError] = {}
    for place, puzzle in enumerate(puzzles):
        try:
            found = readings(tasks, *puzzle_of(puzzle, values))
            chosen = next((r for r in found if any(takes_size(m.config, r[0]) for m in models)), None)
            if chosen is None:
                made = " or ".join(f"{t.height}x{t.width}" for t in tasks)
                own = found[0][0]
                other = own.name == "maze" and any(takes_size(m.config, make_task("maze", MOST_SIDE)) for m in models)
                limit = f"no side above {MOST_SIDE}" if other else "no other size"
                raise OtherSizeError(
                    f"This {own.name} is {own.height}x{own.width}; the model was made for {made} and takes {limit}."
                )
        except ValueError as error:
            refused[place] = error
            continue
        places, rows = groups.setdefault(chosen[0], ([], []))
        places.append(place)
        rows.append(chosen[1])
    good: dict[GridTask, tuple[list[int], np.ndarray]] = {}
    for task, (places, rows) in groups.items():
        tokens = np.stack(rows)
        bad = task.ill_formed(tokens)
        for index in np.flatnonzero(bad).tolist():
            try:
                task.check_puzzle(tokens[index])
            except ValueError as error:
                refused[places[index]] = error
        if not bad.all():
            good[task] = [places[index] for index in np.flatnonzero(~bad)], tokens[~bad]
    return good, dict(sorted(refused.items()))


class PuzzleSolvingPipeline(Pipeline):
    """`pipeline("puzzle-solving")`: puzzles in, checked answers out.

    Call it with a puzzle (text, rows, digits or tokens), a list of them, a generator, a pandas column, or a data set
    (rows: puzzles, or dicts with a "question", "puzzle" or "text"). A list gives a list; generators and data sets are
    read and answered lazily. Numbers that may be digits as well as tokens need values="digits" or values="tokens";
    tensors and input_ids hold tokens.
    Puzzles of mixed sizes are grouped by size and solved where the model can take them (see `takes_size`); one that it
    cannot take gets an entry whose `error` says so, while the others are solved. An ill-formed puzzle is a ValueError.
    Options, at construction or per call, are those of `solve_puzzles`. By default a puzzle is worked on until the
    rules accept an answer (halt="rules", attempts=None: a search of up to 256 nodes for a Sudoku, 64 for a maze), with
    a bar on a terminal, and Ctrl-C returns the best answers so far; attempts=1 is the single pass.
    batch_size is the number of puzzles computed together and changes no answer; count_solutions=False spares the
    search for further solutions, milliseconds a puzzle.

    Each answer is a dict: solution (text), solved and valid (the rules accept it), complete, consistent (with the
    clues), message (a sentence, naming the first wrong cell), confidence (sigmoid of q_halt; 0 where no solution is
    known to exist), solutions (of the puzzle: 0, 1, "several", or None where a short search did not tell; a maze's
    are its shortest paths), act_steps (spent, over all attempts), attempts; after a search pins: the guesses that
    led to the answer, in order, as {"row", "column", "digit"} (of a maze cells walled up: "letter" is "#"). With
    return_rollout=True also rollout: {"updates": [...], "z_h": [texts], "z_l": [texts]}, and after a search tree:
    its nodes in the order of judging (parent: place in the list, pin, cost, accepted, act_steps, answer).
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
        known = ("attempts", "retry", "max_act_steps", "halt", "noise", "selection", "symmetries", "seed")
        known += ("return_rollout", "progress", "puzzle_ids", "dtype", "values", "count_solutions")
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"The pipeline has no option {unknown}. Options: batch_size, {', '.join(known)}.")
        stages: tuple[dict, dict, dict] = ({}, {}, {})
        for name, value in options.items():
            stages[{"values": 0, "count_solutions": 2}.get(name, 1)][name] = value
        return stages

    def __call__(
        self, inputs: Any, *, batch_size: int | None = None, num_workers: int | None = None, **options: Any
    ) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        defaults = (self._preprocess_params, self._forward_params, self._postprocess_params)
        stages = [default | given for default, given in zip(defaults, self._sanitize_parameters(**options))]
        stages[1]["batch_size"] = self._batch_size if batch_size is None else batch_size
        inputs, stages[0]["values"] = self._opened(inputs, stages[0].get("values"))
        one = is_one_grid(self.processor.grid_task, inputs)
        if one or isinstance(inputs, (list, tuple, np.ndarray)):
            inputs = [inputs] if one else inputs
            found = list(self._stream(inputs, *stages, at_once=max(len(inputs), 1)))
            if found and all("error" in answer for answer in found):
                raise OtherSizeError(found[0]["error"])  # the wrong model, rather than a mixed list
            return found[0] if one else found
        if isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"):
            return self._stream(inputs, *stages)
        raise ValueError(
            f"Pass a puzzle as text, a list of them, a generator or a data set; got {type(inputs).__name__}."
        )

    def _opened(self, inputs: Any, values: str | None) -> tuple[Any, str | None]:
        """Tables, columns and tensors as lists and arrays, and what numbers in them are."""
        task = self.processor.grid_task
        if hasattr(inputs, "columns") and hasattr(inputs, "to_dicts"):  # a polars table
            inputs = inputs.to_dicts()
        elif hasattr(inputs, "columns") and hasattr(inputs, "to_dict"):  # a pandas table: its rows, not its columns
            grid = inputs.shape == (task.height, task.width) and not {*PUZZLE_KEYS} & {*map(str, inputs.columns)}
            inputs = inputs.to_numpy() if grid else inputs.to_dict("records")
        if isinstance(inputs, Mapping):  # a row of a data set, or a batch of them: one column holds the puzzles
            inputs, values = puzzle_of(inputs, values)
        for method in ("to_list", "to_pylist"):  # a column of pandas, polars or arrow; data sets are read as they go
            if hasattr(inputs, method) and not hasattr(inputs, "with_format"):
                inputs = getattr(inputs, method)()
        if isinstance(inputs, Tensor):
            inputs = inputs.detach().cpu().numpy()
            values = values or task.values_of(inputs, tensor=True)
        if isinstance(inputs, np.ndarray):
            values = values or (task.values_of(inputs) if inputs.dtype.kind in "iu" else None)
            inputs = inputs if inputs.ndim else inputs.item()
        return inputs, values

    def _stream(
        self, inputs: Any, reading: dict, solving: dict, telling: dict, at_once: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Answers in order, `at_once` puzzles read ahead; by default a few batches, then more at a time.

        The first answers come soon, and later the drain of a batch at the end of each part counts for little.
        """
        slots = solving["batch_size"] or self.model.default_batch_size()
        at_once, first, self.interrupted = at_once or 4 * slots, 1, False
        most = max(at_once, 100 * slots)
        # A map-style data set may know no end of its own.
        puzzles = iter(inputs) if isinstance(inputs, Iterable) else (inputs[i] for i in range(len(inputs)))
        while part := list(itertools.islice(puzzles, at_once)):
            if self.interrupted:  # the answers so far have been handed on; who reads a stream wants it to end here
                raise KeyboardInterrupt
            yield from self.run_single(part, reading | {"first": first}, solving, telling)
            first, at_once = first + len(part), min(most, 4 * at_once)

    # Pipeline's three stages, each for a list of puzzles.

    def preprocess(self, puzzles: Any, first: int = 1, values: str | None = None) -> dict[str, Any]:
        """Tokens by size, and a sentence for each puzzle whose size the model cannot take; counted from `first`."""
        puzzles = [puzzles] if isinstance(puzzles, (str, dict)) else puzzles
        groups, errors = sort_by_size([self.model], puzzles, values=values)
        refused = {}
        for place, error in errors.items():
            refused[place] = f"Puzzle {first + place}: {error}" if len(puzzles) > 1 or first > 1 else str(error)
            if not isinstance(error, OtherSizeError):
                raise ValueError(refused[place]) from None
        return {"groups": groups, "refused": refused, "first": first}

    def _forward(self, model_inputs: dict[str, Any], puzzle_ids: Any = None, **options: Any) -> dict[str, Any]:
        outputs = []
        for task, (places, tokens) in model_inputs["groups"].items():
            options["halt"] = options.get("halt") or ("rules" if task.has_rules else "q")
            options.setdefault("attempts", None)
            options.setdefault("progress", sys.stderr is not None and sys.stderr.isatty())
            ids = puzzle_ids
            if ids is not None:
                at, ids = np.array(places) + model_inputs["first"] - 1, np.asarray(ids)
                if ids.ndim and len(ids) <= (last := at.max()):
                    raise ValueError(
                        f"puzzle_ids must have one number per puzzle: got {len(ids)} for {last + 1} or more."
                    )
                ids = ids[at] if ids.ndim else np.full(len(places), ids)
            model = in_size(self.model, task)
            answers = solve_puzzles(model, task, tokens, check=False, puzzle_ids=ids, interruptible=True, **options)
            outputs.append({"task": task, "places": places, "puzzles": tokens, "answers": answers})
            if answers.stats.get("interrupted"):
                self.interrupted, options["attempts"] = True, 1  # other sizes in the list: one pass each
        return {"groups": outputs, "refused": model_inputs["refused"]}

    def postprocess(self, outputs: dict[str, Any], count_solutions: bool = True) -> list[dict[str, Any]]:
        found = {place: refusal(sentence) for place, sentence in outputs["refused"].items()}
        for group in outputs["groups"]:
            for i, place in enumerate(group["places"]):
                found[place] = describe(group["task"], group["puzzles"][i], group["answers"], i, count_solutions)
        return [found[place] for place in sorted(found)]

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        return inputs  # numpy in, numpy out: `AirModel.solve` moves what it needs

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write a folder that loads everywhere (see `save_release`)."""
        save_release(self.model, save_directory, self.processor)


def describe(
    task: GridTask, puzzle: np.ndarray, answers: Answers, i: int, count_solutions: bool = True
) -> dict[str, Any]:
    """Answer i to a puzzle (tokens) as a dict of texts and numbers, ready for JSON.

    "solved" and "valid" are None of a generic grid, which no rule judges.
    """
    tokens = answers.tokens[i]
    verdict = Verdict(*(bool(f[i]) for f in answers.verdict[:3]))
    message, confidence = task.explain(puzzle, tokens, verdict), float(answers.confidence[i])
    solutions = task.solutions(puzzle, SHORT if verdict.valid else LONG) if count_solutions else None
    if task.name == "sudoku" and solutions == "several":
        message += " This is one of several solutions." if verdict.valid else " The puzzle has several solutions."
    elif task.name == "sudoku" and solutions == 0:
        message = f"The puzzle has no solution. {message}"
    if not (verdict.valid or solutions or not task.has_rules):
        confidence = 0.0  # nothing that may be right is known
    result = {
        "solution": task.decode(tokens),
        "solved": verdict.valid,
        **verdict._replace(message=message)._asdict(),
        "confidence": confidence,
        "solutions": solutions,
        "act_steps": int(answers.act_steps[i]),
        "attempts": int(answers.attempts[i]),
    }
    if not task.has_rules:
        result["solved"] = result["valid"] = None
    if answers.pins is not None:
        result["pins"] = [_pin(task, *pin) for pin in answers.pins[i]]
    if answers.trees is not None:
        result["tree"] = [
            {name: getattr(node, name) for name in ("parent", "cost", "accepted", "act_steps")}
            | {"pin": _pin(task, node.cell, node.token) if node.parent >= 0 else None}
            | {"answer": task.decode(node.answer)}
            for node in answers.trees[i]
        ]
    if answers.rollout is not None:
        z_h, z_l, updates = answers.rollout
        states = {name: [task.decode(grid) for grid in grids] for name, grids in (("z_h", z_h[i]), ("z_l", z_l[i]))}
        result["rollout"] = {"updates": list(updates), **states}
    return result


def _pin(task: GridTask, cell: int, token: int) -> dict[str, Any]:
    name = "digit" if task.name == "sudoku" else "letter"
    return {"row": cell // task.width + 1, "column": cell % task.width + 1, name: task.alphabet[token]}


def refusal(sentence: str) -> dict[str, Any]:
    """The entry of a puzzle that was not computed: the fields of `describe`, and `error`."""
    verdict = dict.fromkeys(("solved", "valid", "complete", "consistent"), False)
    spent = {"confidence": 0.0, "solutions": None, "act_steps": 0, "attempts": 0}
    return {"solution": None, **verdict, "message": sentence, **spent, "error": sentence}


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
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        with _without_bars():
            model.save_pretrained(temporary)  # also writes the processor that follows from its config
        if processor is not None:
            processor.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir()):
            path.chmod(folder.stat().st_mode & 0o666)  # safetensors 0.8 lets the owner alone read weights
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
            what = "a folder that save_pretrained or convert_checkpoint.py wrote, or a Hub id USER/NAME"
            if (folder / "model" / "config.json").is_file():
                what = f"the model of this run, {folder / 'model'}"
            raise FileNotFoundError(f"{source} holds no config.json: give {what}.")
        name = str(folder)
    device = device_of(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else "auto")
    try:
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
        if kind != AirConfig.model_type:
            raise ValueError(f"its config.json is of a {kind!r} model, not of AIR")
        with _without_bars():
            model, report = AirModel.from_pretrained(name, dtype=dtype, output_loading_info=True)
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

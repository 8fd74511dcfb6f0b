"""The `evaluate` module puzzle_accuracy: exact, cell and blanks-only accuracy, validity, per rating, with intervals.

metric = evaluate.load("metrics/puzzle_accuracy")        # or the Hub id of this folder
metric.compute(predictions=tokens, references=labels)
metric.compute(predictions=tokens, references=labels, inputs=puzzles, task="sudoku", rating=ratings)
metric.compute(predictions=digits, references=solutions, inputs=puzzles, task="sudoku", values="digits")
metric.compute(predictions=["53467…"], references=["53467…"], inputs=["53..7…"], task="sudoku")
"""

import datasets
import evaluate
import numpy as np

from .scores import MAZE_EDGES, SUDOKU_EDGES, score

_DESCRIPTION = """Accuracy of grid puzzles such as Sudoku and mazes. The headline is exact_accuracy: the share of grids
with every labelled cell right. valid_accuracy asks the rules of the puzzle instead of the label: of a maze's many
shortest paths any counts."""

_INPUTS = """
Args:
    predictions: (N, S) tokens or digits, or N texts. references: likewise; cells with -100 or 0 (PAD) do not count.
    inputs: the puzzles, likewise, for blank_cell_accuracy and valid_accuracy.
    values: "tokens" or "digits" (of a Sudoku; 0 where there is none): what numbers are, where they may be either.
    task: "sudoku" or "maze"; needed with inputs, texts and digits (as is the package air-model). height, width,
        box_height, box_width: of the grid, where it is not square or its boxes are not the squarest.
    rating: (N,) difficulty, for by_rating.
Returns:
    n, exact_accuracy, cell_accuracy, blank_cell_accuracy, valid_accuracy, by_rating; 95 % intervals as ..._ci95.
"""

_CITATION = """@article{shen2026air,
  title   = {One Model, Two Roles: Emergent Specialization in a Shared Recurrent Transformer},
  author  = {Shen, Jucheng and Su, Wenyi and Kyrillidis, Anastasios},
  journal = {arXiv preprint arXiv:2605.17811},
  year    = {2026}
}"""


class PuzzleAccuracy(evaluate.Metric):
    """See _INPUTS."""

    def _info(self):
        grid, text = datasets.Sequence(datasets.Value("int64")), datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[datasets.Features({"predictions": kind, "references": kind}) for kind in (grid, text)],
        )

    def _compute(
        self, predictions, references, inputs=None, task=None, rating=None, ignored=(-100, 0), values=None, **shape
    ):
        options = {"ignored": ignored}
        if rating is not None:
            options |= {"rating": np.asarray(rating), "edges": MAZE_EDGES if task == "maze" else SUDOKU_EDGES}
        given = {"predictions": predictions, "references": references}
        given |= {} if inputs is None else {"inputs": inputs}
        if inputs is None and values is None and not _texts(given):
            return score(*(_grids(name, rows) for name, rows in given.items()), **options)
        if task is None:
            raise ValueError("inputs, texts and digits need their task: pass task='sudoku' or task='maze' as well.")
        rules = _rules(task, references, **shape)
        tokens = {name: _tokens(name, rows, rules, values) for name, rows in given.items()}
        if inputs is not None:
            options |= {"inputs": tokens["inputs"], "blank_token": rules.blank_token}
            options["valid"] = rules.verdicts(tokens["inputs"], np.maximum(tokens["predictions"], 0)).valid
        return score(tokens["predictions"], tokens["references"], **options)


def _texts(given):
    return any(isinstance(row, str) for rows in given.values() for row in rows[:1])


def _tokens(name, rows, rules, values):
    """Texts, tokens or digits as tokens; cells without a digit are blank in a puzzle, PAD in an answer."""
    if _texts({name: rows}):
        tokens = np.stack([rules.encode(row) for row in rows]).astype(np.int64)
        is_open = (tokens == rules.blank_token) & (rules.name == "sudoku") & (name != "inputs")
        return np.where(is_open, 0, tokens)
    tokens = _grids(name, rows)
    if rules.name == "sudoku" and values is None and tokens.size:
        # A digit is never n + 1, and the blank of a puzzle in digits is 0.
        if tokens.min() < 1 if name == "inputs" else tokens.max() != rules.height + 1:
            raise ValueError(
                f"The {name} may be digits (0 for none) or tokens (1 for a blank, digit d is d + 1): say which, with "
                "values='digits' or values='tokens'."
            )
    if values == "digits":
        if rules.name != "sudoku" or tokens.max(initial=0) > rules.height:
            raise ValueError(f"The {name} are no digits of a {rules.name} (0 for none, up to {rules.height}).")
        return np.where(tokens > 0, tokens + 1, rules.blank_token if name == "inputs" else np.minimum(tokens, 0))
    return tokens


def _grids(name, rows):
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(f"{name} hold grids of different sizes, {sorted(lengths)} cells: score each size by itself.")
    return np.asarray(rows, dtype=np.int64).reshape(len(rows), *lengths or (0,))


def _rules(task, rows, height=None, width=None, box_height=None, box_width=None):
    """The task, in the size that the first text is written in, or whose cells the grids have."""
    try:
        from air_model.pipeline_air import readings
        from air_model.processing_air import make_task
    except ImportError as error:
        raise ImportError("The rules of the puzzles come with the package: pip install air-model.") from error
    if len(rows) and isinstance(rows[0], str):
        if not (height and width):
            found = readings([make_task(task, height, width)], rows[0])[0][0]
            height, width = found.height, found.width
        return make_task(task, height, width, box_height, box_width)
    cells = _grids("references", rows).shape[1]
    if height is None and width is None and round(cells**0.5) ** 2 != cells:
        raise ValueError(f"inputs have {cells} cells, which is no square grid: pass height and width.")
    height = height or (cells // width if width else round(cells**0.5))
    rules = make_task(task, height, width or cells // height, box_height, box_width)
    if rules.seq_len != cells:
        raise ValueError(f"inputs have {cells} cells, not {rules.height} x {rules.width}: check height and width.")
    return rules

"""The `evaluate` module puzzle_accuracy: exact, cell and blanks-only accuracy, validity, per rating, with intervals.

metric = evaluate.load("metrics/puzzle_accuracy")        # or the Hub id of this folder
metric.compute(predictions=tokens, references=labels)
metric.compute(predictions=tokens, references=labels, inputs=puzzles, task="sudoku", rating=ratings)
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
    predictions: (N, S) tokens. references: (N, S) tokens; cells with -100 or 0 (PAD) do not count.
    inputs: (N, S) puzzle tokens, for blank_cell_accuracy and valid_accuracy.
    task: "sudoku" or "maze"; needed with inputs. height, width, box_height, box_width: of the grid, where it is not
        square or its boxes are not the squarest. Validity needs the package air-model.
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
        grid = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": grid, "references": grid}),
        )

    def _compute(self, predictions, references, inputs=None, task=None, rating=None, ignored=(-100, 0), **shape):
        predictions, references = (_grids(name, rows) for name, rows in
                                   (("predictions", predictions), ("references", references)))  # fmt: skip
        options = {"ignored": ignored}
        if rating is not None:
            options |= {"rating": np.asarray(rating), "edges": MAZE_EDGES if task == "maze" else SUDOKU_EDGES}
        if inputs is not None:
            if task is None:
                raise ValueError("inputs were given without their task: pass task='sudoku' or task='maze' as well.")
            inputs = _grids("inputs", inputs)
            rules = _rules(task, inputs.shape[1], **shape)
            options |= {"inputs": inputs, "blank_token": rules.blank_token}
            options["valid"] = rules.verdicts(inputs, np.maximum(predictions, 0)).valid
        return score(predictions, references, **options)


def _grids(name, rows):
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(f"{name} hold grids of different sizes, {sorted(lengths)} cells: score each size by itself.")
    return np.asarray(rows, dtype=np.int64).reshape(len(rows), *lengths or (0,))


def _rules(task, cells, height=None, width=None, box_height=None, box_width=None):
    try:
        from air_model.processing_air import make_task
    except ImportError as error:
        raise ImportError("The rules of the puzzles come with the package: pip install air-model.") from error
    if height is None and width is None and round(cells**0.5) ** 2 != cells:
        raise ValueError(f"inputs have {cells} cells, which is no square grid: pass height and width.")
    height = height or (cells // width if width else round(cells**0.5))
    rules = make_task(task, height, width or cells // height, box_height, box_width)
    if rules.seq_len != cells:
        raise ValueError(f"inputs have {cells} cells, not {rules.height} x {rules.width}: check height and width.")
    return rules

"""Solve puzzles and check the answers by the rules.

    python scripts/solve.py --model checkpoints/air-sudoku-9x9 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79
    python scripts/solve.py --model DIR puzzle.txt more.csv pack.zip    # files: drawn grids, one puzzle a line, tables
    cat maze.txt | python scripts/solve.py --model DIR -                # standard input
    python scripts/solve.py --model DIR --attempts 1 --json puzzle.txt  # a single pass, nothing tried again
    python scripts/solve.py --model SIX NINE mixed.txt                  # puzzles of each size to the model made for it

A puzzle is worked on until the rules accept an answer: a search of up to 256 nodes for a Sudoku, of 64 for a maze;
Ctrl-C prints the best so far. Prints the puzzle beside its answer (what the model filled in is coloured on a terminal),
the verdict of the rules, the confidence (sigmoid of q_halt) and the ACT steps spent. Ill-formed puzzles, and sizes that
no model takes, are refused, naming the cell or size, the others solved, and the exit status is then 1; an answer that
the rules do not accept is printed as such, with status 0.
"""  # noqa: E501

import argparse
import io
import json
import os
import re
import sys
from typing import Any

if not __package__:
    import _checkout  # noqa: F401

import numpy as np

from air_model.attempts_air import solve_puzzles
from air_model.pipeline_air import describe, in_size, load_model, refusal, sort_by_size, takes_size
from air_model.processing_air import GridTask, task_from_config
from air_model.reading_air import puzzle_of
from air_model.scripts.door import add_solving_options, in_sentences

OPTIONS = ("attempts", "retry", "max_act_steps", "noise", "seed", "batch_size", "dtype")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("puzzles", nargs="*", metavar="PUZZLE", help="text, a file, or - for standard input")
    text = "folder or Hub id; several of a size are tried in turn"
    add("--model", nargs="+", action="append", required=True, help=text)
    add("--attempts", type=int, help="at most; default: 256 nodes for a Sudoku, 64 for a maze; 1: a single pass")
    text = "rules (default): stop at the first answer that they accept; q: when the model says so; max: all steps"
    add("--halt", choices=["max", "q", "rules"], help=text)
    add_solving_options(parser)
    add("--json", action="store_true", help="an object for one puzzle, a list for several")
    add("--rollout", action="store_true", help="with --json: also both states after every update")
    add("--color", choices=["auto", "always", "never"], default="auto")
    # `--model DIR PUZZLE` would swallow the puzzle: of the words after the first only folders and ids are models.
    args = parser.parse_args(argv)
    words = [word for group in args.model for word in group[1:]]
    args.puzzles = [word for word in words if not _is_model(word)] + args.puzzles
    args.model = [word for group in args.model for word in (group[0], *filter(_is_model, group[1:]))]
    return args


def _is_model(word: str) -> bool:
    """A model folder, or USER/NAME that is no file: no puzzle is written so."""
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z][\w.-]*", word) and not os.path.isfile(word)
    return bool(is_id) or os.path.isfile(os.path.join(word, "config.json"))


def read_puzzles(word: str, tasks: list[GridTask]) -> list[Any]:
    """The puzzles of one argument."""
    from air_model.datasets_builders.files import puzzles_in

    if word == "-":
        return puzzles_in(io.BytesIO(sys.stdin.buffer.read()), "standard input", tasks)
    if os.path.isfile(word):  # False for a puzzle that is too long for a file's name
        with open(word, "rb") as file:
            return puzzles_in(file, word, tasks)
    is_folder = os.path.isdir(word)
    if is_folder or re.search(r"\.(txt|csv|tsv|gz|zip|jsonl?|parquet|sd[kmx]|ss)$", word, re.IGNORECASE):
        raise ValueError(f"{word} is {'a folder' if is_folder else 'no file here'}: give a file of puzzles, or text.")
    # Mostly letters, and such as no puzzle of this length has: a file's name with a slip in it.
    letters = re.findall("[a-z]", word.lower())
    if 2 * len(letters) > len(word) < 256 and set(letters) & set("hijklmnpqrtuvwyz"):
        raise ValueError(f"{word!r} is no file here, and no puzzle. Examples: --help.")
    return puzzles_in(io.BytesIO(word.encode()), "The argument", tasks)


def board(task: GridTask, puzzle: np.ndarray, answer: np.ndarray, color: bool) -> str:
    """A puzzle beside its answer."""
    left, right = task.format(puzzle).split("\n"), task.format(answer, puzzle, ansi=color).split("\n")
    width = max(map(len, left))
    return "\n".join(f"{a:<{width}}    {b}" for a, b in zip(left, right))


def verdict(found: dict[str, Any]) -> str:
    """What `describe` found, in one line."""
    steps, attempts, said = found["act_steps"], found["attempts"], found["message"].rstrip(".")
    cost = f"{steps} ACT step{'s' * (steps != 1)}, {attempts} attempt{'s' * (attempts != 1)}"
    if found["solved"] and (guesses := len(found.get("pins", ()))):
        cost += f", solved by {guesses} guess{'es' * (guesses != 1)}"
    return f"{'Not solved: ' if found['solved'] is False else ''}{said}. Confidence {found['confidence']:.1%}, {cost}."


@in_sentences("solve")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if not args.puzzles:
        if sys.stdin.isatty():
            raise ValueError("Give a puzzle as text, a file, or - for standard input. Examples: --help.")
        args.puzzles = ["-"]
    models = [load_model(source, args.device) for source in args.model]
    tasks = list(dict.fromkeys(task_from_config(model.config) for model in models))
    texts = [text for word in args.puzzles for text in read_puzzles(word, tasks)]
    groups, refused = sort_by_size(models, texts, values=args.values)
    color = args.color == "always" or args.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    results, said = [{}] * len(texts), [""] * len(texts)
    for task, (places, puzzles) in groups.items():
        own = [model for model in models if task_from_config(model.config) == task]
        answers = solve_puzzles(
            own or [in_size(model, task) for model in models if takes_size(model.config, task)],
            task,
            puzzles,
            halt=args.halt or ("rules" if task.has_rules else "q"),
            return_rollout=args.rollout,
            progress=sys.stderr.isatty(),
            interruptible=True,
            **{name: getattr(args, name) for name in OPTIONS},
        )
        if answers.stats.get("interrupted"):
            args.attempts = 1  # other sizes: one pass each
        for i, place in enumerate(places):
            found = describe(task, puzzles[i], answers, i)
            results[place] = {"puzzle": task.decode(puzzles[i]), **found}
            said[place] = f"{board(task, puzzles[i], answers.tokens[i], color)}\n{verdict(found)}"
    for place, error in refused.items():
        results[place] = {"puzzle": puzzle_of(texts[place])[0], **refusal(str(error))}
        said[place] = f"solve: {f'puzzle {place + 1}: ' if len(texts) > 1 else ''}{error}"
    if args.json:
        print(json.dumps(results[0] if len(results) == 1 else results, indent=1, default=str))
    for place, text in enumerate([] if args.json else said):
        if place in refused:
            print(text, file=sys.stderr)
        else:
            print(text, end="\n\n" if place + 1 < len(texts) else "\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())

"""The main job, from nothing to solved puzzles: `make quickstart` runs this.

    python scripts/quickstart.py                          # about 3 minutes on a CPU core
    python scripts/quickstart.py --output-dir runs/try    # somewhere else
    python scripts/quickstart.py max_steps=200            # any training value may be overridden

Generates 6x6 Sudokus, trains a small AIR on them with train_accelerate.py, evaluates it on puzzles whose solution grid
it has never seen in any symmetric copy, solves one on screen, and draws both states of the model over its roll-out.
Interrupted? The same command goes on where it stopped. A result below the mark is a sentence at the end; exit status 1
is for a run that did not get there.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

if not __package__:
    import _checkout  # noqa: F401

from air_model.scripts.door import in_sentences

ROOT = Path(__file__).resolve().parent.parent
DATA = shlex.split("sudoku-extreme --source generate --grid 6x6 --num-train 2000 --num-test 500 --seed 0")
# Exact accuracy that the recipe's own values reached on all emulated processors (results/quickstart_processors.md).
CONFIRMED = 0.99


def say(number: int, text: str) -> None:
    print(f"\n\033[1m[{number}/5] {text}\033[0m" if sys.stdout.isatty() else f"\n[{number}/5] {text}", flush=True)


def run(script: str, main, arguments: list[str]) -> None:
    """Show the command that a user would type, and run it."""
    print(f"$ python {script} {shlex.join(arguments)}", flush=True)
    if status := main(arguments):
        raise SystemExit(status)


def solve_with_shipped() -> None:
    """Puzzles of real size, with the models that come with this release."""
    from air_model.scripts import solve

    names = ["air-sudoku-extreme-best", "air-sudoku-extreme", "air-sudoku-9x9"]
    folders = [folder for name in names if ((folder := ROOT / "checkpoints" / name) / "config.json").is_file()]
    if folders:
        print(f"\nAnd puzzles of real size, with {folders[0].name}, which comes with this release:")
        example = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
        solve.main(["--model", str(folders[0]), example])
    maze_model, maze = ROOT / "checkpoints" / "air-maze-small", ROOT / "docs" / "maze.txt"
    if (maze_model / "config.json").is_file() and maze.is_file():
        print(f"\nAnd a maze, with {maze_model.name}: a shortest path from S to G.")
        solve.main(["--model", str(maze_model), str(maze)])


@in_sentences("quickstart", extra="train")
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("quickstart"), help="everything lands here")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="passed on to train_accelerate.py")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the network
    import torch

    # Rounding, and so the result, depends on the number of threads; for products this small one is also the fastest.
    torch.set_num_threads(1)
    from air_model import train_accelerate
    from air_model.analysis.figures import animate_rollout, draw_rollout
    from air_model.attempts_air import solve_puzzles
    from air_model.datasets_builders import load_puzzles
    from air_model.pipeline_air import load_model
    from air_model.records import read_json
    from air_model.scripts import build_dataset, evaluate, solve
    from air_model.solving_air import AirRollout

    out = args.output_dir
    data, training, model_dir = out / "data", out / "run", out / "run" / "model"
    puzzle_file = out / "puzzle.txt"

    say(1, "Data: 6x6 Sudokus with one solution each. There are only 49 solution grids up to symmetry; some of them")
    print("      are held out whole, so no test puzzle, nor a symmetric copy of one, is trained on.")
    if not data.exists():
        run("scripts/build_dataset.py", build_dataset.main, [*DATA, "--output-dir", str(data)])

    say(2, "Training: a two-layer AIR, 64 numbers a cell, fresh symmetries of the puzzles all the time")
    arguments = ["--recipe", "quickstart", "--output-dir", str(training), "--resume", f"data={data}", *args.overrides]
    run("train_accelerate.py", train_accelerate.main, arguments)
    if not (model_dir / "config.json").is_file():
        print("Stopped before the end; the same command goes on from here.")
        return 1

    say(3, "Evaluation: held-out puzzles of mixed difficulty, 16 ACT steps each")
    arguments = ["--model", str(model_dir), "--data", str(data), "--split", "test", "--halt", "max"]
    run("scripts/evaluate.py", evaluate.main, [*arguments, "--output", str(out / "evaluation.json")])
    result = read_json(out / "evaluation.json")

    say(4, "One of them, solved on screen")
    puzzles = load_puzzles(str(data), "test")
    hardest = int((puzzles.inputs == puzzles.task.blank_token).sum(1).argmax())
    puzzle_file.write_text(puzzles.task.decode(puzzles.inputs[hardest]) + "\n", encoding="utf-8")
    run("scripts/solve.py", solve.main, ["--model", str(model_dir), str(puzzle_file)])

    say(5, "Both states of the model over the roll-out of that puzzle")
    model = load_model(str(model_dir))
    answers = solve_puzzles(model, puzzles.task, puzzles.inputs[hardest][None], halt="max", return_rollout=True)
    rollout = AirRollout(*answers.rollout)
    drawing = {"label": puzzles.labels[hardest], "per_step": len(model.config.schedule)}
    for name, draw in (("rollout.png", draw_rollout), ("rollout.gif", animate_rollout)):
        print(f"wrote {draw(rollout, puzzles.inputs[hardest], puzzles.task, out / name, **drawing)}")

    solve_with_shipped()
    exact, n = result["exact_accuracy"], result["n"]
    print(
        f"\n{exact:.1%} of {n} held-out puzzles solved exactly at 16 ACT steps, "
        f"{(time.perf_counter() - start) / 60:.1f} minutes in all. Everything is in {out}/."
    )
    if exact < CONFIRMED:
        print(f"That is below the {CONFIRMED:.0%} that the recipe's own values reached on every processor tried.")
        if not args.overrides:
            print("All of it ran, but please report this.")
    print(f"Next: python spaces_demo/app.py (AIR_MODEL={model_dir}), or train 9x9: README, «What to run».")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The same work at two commits in turn, on this machine, in CPU seconds of one thread.

    python benchmarks/commits.py fc4c429                        # every row below, old against checkout
    python benchmarks/commits.py fc4c429 --rows maze-float32,maze-bfloat16 --rounds 5
    python benchmarks/commits.py fc4c429 --rows train-maze_small --output results/benchmarks/commits.json

Rows: maze-DTYPE, one ACT step of a 30x30 maze by checkpoints/air-maze-small; sudoku-DTYPE, one ACT step of a 9x9
Sudoku in a batch of 64 by checkpoints/air-sudoku-9x9, both the older commit's; shipped-DTYPE, the same Sudoku step by
the checkpoint that each commit ships; train-RECIPE, an optimizer step of that recipe as each commit has it, compiled
(mazes of 30x30, batch 4; Sudokus in the recipe's batch). The figure is the best round's.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKPOINTS = {"maze": "air-maze-small", "sudoku": "air-sudoku-9x9*", "shipped": "air-sudoku-9x9*"}
ROWS = [f"{task}-{dtype}" for task in CHECKPOINTS for dtype in ("float32", "bfloat16")]
ROWS += ["train-maze_small", "train-sudoku_9x9_cpu"]


def seconds(row: str, checkpoints: str, repeats: int) -> float:
    """CPU seconds of one unit of a row, by the `air_model` that this process imports: the best of so many."""
    import torch

    import air_model

    torch.set_num_threads(1)
    what, _, name = row.partition("-")
    grid = {"grid_height": 30, "grid_width": 30} if "maze" in row else {}
    if what == "train":
        from air_model.benchmarks.train_step import build

        arguments = argparse.Namespace(recipe=name, overrides=["compile=default"])
        step, units = build(arguments, 4 if grid else 64, **grid).train_step, 1
    else:
        folder = Path(air_model.__file__).parent / "checkpoints" if what == "shipped" else Path(checkpoints)
        model = air_model.AirModel.from_pretrained(min(folder.glob(CHECKPOINTS[what])), dtype=torch.float32, **grid)
        batch, steps = (1, 4) if grid else (64, 2)
        tokens = torch.randint(1, model.config.vocab_size, (batch, model.config.seq_len))
        options = {"dtype": getattr(torch, name), "batch_size": batch, "return_logits": False}
        step, units = lambda: model.solve(tokens, max_act_steps=steps, **options), batch * steps

    step(), step()  # warm up
    times = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times) / units


def main() -> None:
    # Not above: a process that measures takes all but this file from the commit that it measures.
    from bench import ROOT, arguments, listed, save

    parser = arguments(__doc__)
    parser.add_argument("commit", help="the older one; the newer is this checkout as it stands")
    parser.add_argument("--rows", type=listed(known=ROWS), default=ROWS, help="joined by commas")
    parser.add_argument("--rounds", type=int, default=2, help="processes for each commit, in turn")
    parser.add_argument("--repeats", type=int, default=4, help="measurements in a process")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        old, git = Path(folder) / "old", ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(old), args.commit], check=True, capture_output=True)
        try:
            for row in args.rows:
                call = (
                    f"runpy.run_path({__file__!r})['seconds']({row!r}, {str(old / 'checkpoints')!r}, {args.repeats})"
                )
                best = {"old": math.inf, "new": math.inf}
                for name, place in (("old", old), ("new", ROOT)) * args.rounds:
                    paths = os.pathsep.join(str(place / part) for part in ("scripts", "benchmarks"))
                    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
                    words = [sys.executable, "-c", f"import _checkout, runpy; print({call})"]
                    done = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                    best[name] = min(best[name], float(done.stdout.split()[-1]))
                speedup = best["old"] / best["new"]
                results.append({"row": row, **{f"{k}_ms": v * 1e3 for k, v in best.items()}, "speedup": speedup})
                line = "{row:22} {old_ms:9.1f} ms -> {new_ms:9.1f} ms  {speedup:5.2f} times"
                print(line.format(**results[-1]), flush=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    save(args.output, results, of=args.commit, clock="CPU seconds, one thread")


if __name__ == "__main__":
    from bench import in_sentences

    in_sentences(main)

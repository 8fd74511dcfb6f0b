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
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = {"maze": "air-maze-small", "sudoku": "air-sudoku-9x9*", "shipped": "air-sudoku-9x9*"}
ROWS = [f"{task}-{dtype}" for task in CHECKPOINTS for dtype in ("float32", "bfloat16")]
ROWS += ["train-maze_small", "train-sudoku_9x9_cpu"]


def seconds(row: str, checkpoints: str, repeats: int) -> float:
    """CPU seconds of one unit of a row, by the `air_model` that this process imports: the best of so many."""
    import torch

    torch.set_num_threads(1)
    what, _, name = row.partition("-")
    if what == "train":
        from air_model.benchmarks.train_step import build

        arguments = argparse.Namespace(recipe=name, overrides=["compile=default"])
        maze = name.startswith("maze")
        trainer = build(arguments, 4 if maze else 64, **({"grid_height": 30} if maze else {}))
        step, units = trainer.train_step, 1
    else:
        import air_model
        from air_model import AirModel

        if what == "shipped":
            checkpoints = Path(air_model.__file__).parent / "checkpoints"
        folder = min(Path(checkpoints).glob(CHECKPOINTS[what]))
        grid = {"grid_height": 30, "grid_width": 30} if what == "maze" else {}
        model = AirModel.from_pretrained(folder, dtype=torch.float32, **grid)
        batch, steps = (1, 4) if what == "maze" else (64, 2)
        tokens = torch.randint(1, model.config.vocab_size, (batch, model.config.seq_len))
        units = batch * steps

        def step() -> None:
            model.solve(tokens, max_act_steps=steps, dtype=getattr(torch, name), batch_size=batch, return_logits=False)

    step(), step()  # warm up
    times = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        times.append((time.process_time() - start) / units)
    return min(times)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the older one; the newer is this checkout as it stands")
    parser.add_argument("--rows", default=",".join(ROWS), help="joined by commas")
    parser.add_argument("--rounds", type=int, default=2, help="processes for each commit, in turn")
    parser.add_argument("--repeats", type=int, default=4, help="measurements in a process")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args(argv)
    rows = arguments.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"unknown rows {unknown}. Known: {', '.join(ROWS)}.")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        old, paths = Path(folder) / "old", {}
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(old), arguments.commit], check=True, capture_output=True)
        try:
            for name, place in (("old", old), ("new", ROOT)):
                package = Path(folder) / f"path-{name}" / "air_model"
                package.parent.mkdir()
                package.symlink_to(place, target_is_directory=True)
                paths[name] = os.pathsep.join([str(package.parent), str(Path(__file__).parent)])
            for row in rows:
                call = f"commits.seconds({row!r}, {str(old / 'checkpoints')!r}, {arguments.repeats})"
                best = dict.fromkeys(paths, float("inf"))
                for name in [*paths] * arguments.rounds:
                    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths[name]}
                    run = [sys.executable, "-c", f"import commits; print({call})"]
                    done = subprocess.run(run, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)
                    if done.returncode:
                        return done.returncode
                    best[name] = min(best[name], float(done.stdout.split()[-1]))
                speedup = best["old"] / best["new"]
                results.append({"row": row, **{f"{k}_ms": v * 1e3 for k, v in best.items()}, "speedup": speedup})
                line = "{row:22} {old_ms:9.1f} ms -> {new_ms:9.1f} ms  {speedup:5.2f} times"
                print(line.format(**results[-1]), flush=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    from bench import save  # not above: it decides whose air_model this process imports

    save(arguments.output, results, of=arguments.commit, clock="CPU seconds, one thread")
    return 0


if __name__ == "__main__":
    sys.exit(main())

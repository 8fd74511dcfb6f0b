"""The runs that fill checkpoints/ and results/, in order: list them, run one on a borrowed GPU, collect what came back.

    python workshop/run_queue.py                                             # the queue and what is done
    python workshop/run_queue.py sudoku-published --data-root .data --output-dir "$OUT" --minutes 9
    python workshop/run_queue.py sudoku-published --rehearse --data-root ../shared/data --output-dir runs/rehearsal
    python workshop/run_queue.py sudoku-published --collect FOLDER           # what came back -> checkpoints/, results/
    python workshop/run_queue.py --write                                     # results/QUEUE.md from this table

The first call starts training in a process session of its own and waits; further calls find it still running, wait
again, and copy out. Training resumes by itself from its newest checkpoint under --work-dir. When it is done the same
call evaluates it on the dev rows. Every call leaves one parcel: bf16 weights in shards under 16 MB, run.json, the
evaluations so far, curves, at most 8 files. On another machine `--go-on PARCEL` takes the weights of a parcel and
counts on from its step; the optimizer, which a parcel has no room for, starts anew.
"""  # noqa: E501

import argparse
import contextlib
import datetime
import difflib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import _checkout  # noqa: F401

import yaml

from air_model.records import append_runs_to, read_json, read_run, write_json, write_text

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Item:
    """One row of the queue. minutes: expected on one H100 or H200, computed from PERF.md, not measured."""

    goal: str
    recipe: str
    data: str
    minutes: float
    overrides: tuple[str, ...] = ()
    checkpoint: str | None = None  # folder under checkpoints/; None: only a row in results/runs.jsonl
    evaluations: dict[str, tuple[str, ...]] = field(default_factory=dict)
    curve: tuple[str, ...] | None = None


def read_queue() -> dict[str, Item]:
    """The rows of queue.yaml; one with variants and seeds is a row for each."""
    queue = {}
    for name, values in yaml.safe_load(Path(__file__).with_name("queue.yaml").read_text()).items():
        variants, seeds = values.pop("variants", []), values.pop("seeds", [])
        for key in ("overrides", "curve"):
            values |= {key: tuple(values[key].split())} if key in values else {}
        values["evaluations"] = {label: tuple(words.split()) for label, words in values["evaluations"].items()}
        if not variants:
            queue[name] = Item(**values)
        for seed, variant in itertools.product(seeds, variants):
            own = {"recipe": "hrm_sudoku"} if variant == "HRM" else {}
            own["overrides"] = (f"variant={variant}", f"seed={seed}", *values["overrides"])
            queue[f"{name}-{variant}-{seed}"] = Item(**values | own)
    return queue


QUEUE = read_queue()


def state_of(name: str) -> str:
    """What the repository holds of a row: read off checkpoints/ and results/, never typed."""
    item = QUEUE[name]
    files = [ROOT / "results" / "queue" / f"{name}.json"]
    if item.checkpoint:
        files += sorted((ROOT / "checkpoints" / item.checkpoint / "results").glob("max-16*.json"))
    for file in files:
        if file.is_file():
            found = read_json(file)
            return f"done: {found['exact_accuracy']:.1%} exact of {found['n']} ({found.get('date', '')[:10]})"
    return "open"


ANALYSES = {"air-sudoku-extreme": "sudoku_extreme", "air-maze-hard": "maze_hard"}


def analysis_row(name: str, data: str) -> str:
    """A row for the analyses of a checkpoint that an earlier row made."""
    output = Path("results") / f"analysis_{name.removeprefix('air-').replace('-', '_')}"
    done = (ROOT / output).is_dir()
    state = "done" if done else "open" if (ROOT / "checkpoints" / name).is_dir() else "open, waits for the checkpoint"
    command = f"python scripts/analyze.py report --model checkpoints/{name} --data .data/{data} --limit 1000"
    goal = "which state commits, does freezing harm, which one is local"
    return f"| analysis-{name} | {goal} | `{command} --output-dir {output}` | 5 | {state} |"


def write_queue() -> Path:
    """results/QUEUE.md."""
    command = 'python workshop/run_queue.py {} --data-root .data --output-dir "$OUT" --minutes 9'
    states = {name: state_of(name) for name in QUEUE}
    rows = [
        f"| {name} | {item.goal} | `{command.format(name)}` | {item.minutes:g} | {states[name]} |"
        for name, item in QUEUE.items()
    ]
    rows += [analysis_row(name, data) for name, data in ANALYSES.items()]
    made = sum(state != "open" for state in states.values()) or "None"
    page = Path(__file__).with_name("queue.md").read_text()
    page = page.format(made=made, count=len(QUEUE), rows="\n".join(rows))
    return write_text(ROOT / "results" / "QUEUE.md", page)


def alive(pid_file: Path) -> bool:
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return False
    try:  # where nobody reaps it, a dead process stays as a zombie, which signals still find
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def differences(recipe: str, overrides: list[str], folder: Path) -> list[str]:
    """What the run of a folder has otherwise than the recipe with these overrides; [] where no run has begun."""
    from air_model.training.recipe import FREE_ON_RESUME, read_recipe

    if not (folder / "run.json").is_file():
        return []
    run, wanted = read_record(folder / "run.json"), read_recipe(recipe, ["data=x", *overrides])
    found, wanted = {"variant": run.get("variant"), **(run.get("config") or {})}, wanted.flat()
    keys = ["variant", "task", "seed", "max_steps", "batch_size", "hidden_size", "num_hidden_layers", "optimizer"]
    keys += [word.split("=", 1)[0] for word in overrides]
    return [
        f"{key}={found.get(key)!r} instead of {wanted[key]!r}"
        for key in dict.fromkeys(keys)
        if key not in FREE_ON_RESUME and found.get(key) != wanted[key]
    ]


def start_training(name: str, args: argparse.Namespace, work: Path) -> None:
    """Detached, so that it outlives the command that starts it."""
    from air_model.training.miniature import miniature
    from air_model.training.recipe import as_words, read_recipe

    item = QUEUE[name]
    small = as_words(miniature(read_recipe(item.recipe).model)) if args.rehearse else []
    overrides = [*item.overrides, *small, *args.overrides]
    if args.go_on:
        steps = read_record(args.go_on / "run.json").get("steps") or 0
        overrides += [f"init_from={args.go_on}", f"start_step={steps}"]
    if other := differences(item.recipe, overrides, work / "run"):
        raise ValueError(
            f"{work} holds another run: {', '.join(other)}. Ask for the same one, or give another --work-dir."
        )
    if status_of(work / "run") == "finished" or alive(work / "pid"):
        return
    command = [sys.executable, str(ROOT / "train_accelerate.py"), "--recipe", item.recipe, "--resume", "--output-dir"]
    command += [str(work / "run"), f"data={args.data_root / item.data}", f"run_name={name}", *overrides]
    log = (work / "train.log").open("w")  # what an earlier try said is no answer to why this one stopped
    process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    (work / "pid").write_text(str(process.pid))
    print(f"started: {' '.join(command)}", flush=True)


def status_of(run: Path) -> str:
    return read_run(run).get("status", "not started")


def last_words(log: Path) -> str:
    text = log.read_bytes()[-600:].decode(errors="replace").replace("\r", "\n") if log.is_file() else ""
    return ([line for line in text.split("\n") if line.strip()] or [""])[-1][:200]


def wait(work: Path, seconds: float) -> None:
    end, printed = time.monotonic() + seconds, 0.0
    while alive(work / "pid") and time.monotonic() < end:
        time.sleep(1)
        if time.monotonic() - printed > 30:
            printed = time.monotonic()
            print(last_words(work / "train.log"), flush=True)
        with contextlib.suppress(ValueError, OSError):  # our own child becomes a zombie, which kill(0) still finds
            os.waitpid(int((work / "pid").read_text()), os.WNOHANG)


def evaluate_all(name: str, args: argparse.Namespace, work: Path, deadline: float, brought: Callable) -> bool:
    """The evaluations of a row, each once, as long as there is time; `brought()` after each. True when all are done.

    One that is cut off goes on at the next call, from the rows that it has answered.
    """
    import torch

    item, data = QUEUE[name], str(args.data_root / QUEUE[name].data)
    small = ["--limit", "2"] if args.rehearse else []
    common = ["--model", str(work / "run" / "model"), "--data", data, "--split", "dev", *small]
    jobs = {label: [*options, "--by-rating"] for label, options in item.evaluations.items()}
    if item.curve:
        options = ["--max-act-steps", "8", "--attempts", "2"] if args.rehearse else item.curve
        jobs["curve"] = [*options, "--curve", str(work / "evaluations" / "curve.png")]
    for label, options in jobs.items():
        output = work / "evaluations" / f"{label}.json"
        if output.exists():
            continue
        left = deadline - time.monotonic()
        if left < 5:
            return False
        output.parent.mkdir(exist_ok=True)
        command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *common, *options, "--output", str(output)]
        # Blocks that are not compiled write every small stage to the GPU's memory: about twice the time (PERF.md).
        tries = [[*command, "--compile"], command] if torch.cuda.is_available() and not args.rehearse else [command]
        for line in tries:
            try:
                status = subprocess.run(line, timeout=deadline - time.monotonic()).returncode
            except subprocess.TimeoutExpired:
                return False
            if status == 0:
                break
        else:
            raise ValueError(f"The evaluation {label} failed, see above; call again to repeat it.")
        brought()
    return True


def newest_weights(run: Path) -> Path | None:
    """The model folder, or the newest checkpoint's weights while training goes on."""
    from air_model.training.checkpoints import CheckpointStore

    if status_of(run) == "finished" and (run / "model" / "config.json").is_file():
        return run / "model"
    found = CheckpointStore(run / "checkpoints").found()
    return found[-1][1] if found else None


def read_record(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}: give the folder that a run of the queue wrote.")
    return read_json(path)


def write_parcel(work: Path, target: Path, with_weights: bool = True) -> None:
    """bf16 weights in shards, run.json, all evaluations in one file, curves: at most 8 files.

    A finished run without a place under checkpoints/ brings its numbers alone: eight files are all that travel.
    """
    import torch
    from safetensors.torch import load_file

    from air_model.configuration_air import AirConfig
    from air_model.modeling_air import AirModel

    source = newest_weights(work / "run")
    if source is None:
        print("nothing to copy out yet: no checkpoint was written")
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    run = read_record(work / "run" / "run.json")
    if (source / "config.json").is_file():
        model = AirModel.from_pretrained(source, dtype=torch.bfloat16) if with_weights else None
    else:
        model = AirModel(AirConfig.from_dict(run["model_config"]))
        weights = source / "ema.safetensors"
        state = load_file(source / "model.safetensors") | (load_file(weights) if weights.is_file() else {})
        model.load_state_dict(state)
        model.to(torch.bfloat16)
        run["steps"] = int(source.name.rsplit("_", 1)[1])  # of these weights, whatever the record says by now
    if model is not None:
        model.save_pretrained(target, max_shard_size="15MB")
        for extra in (*target.glob("*.py"), target / "processor_config.json"):
            extra.unlink()
    write_json(target / "run.json", run)
    evaluations = {p.stem: read_json(p) for p in sorted((work / "evaluations").glob("*.json"))}
    if evaluations:
        write_json(target / "evaluations.json", evaluations)
    for path, name in ((work / "run" / "curve.png", "curve.png"), (work / "evaluations" / "curve.png", "thought.png")):
        if path.is_file() and len(list(target.iterdir())) < 8:
            shutil.copyfile(path, target / name)
    sizes = {p.name: p.stat().st_size for p in target.iterdir()}
    print(f"parcel {target}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")
    assert len(sizes) <= 8 and max(sizes.values()) < 16e6, sizes


def check_parcel(name: str, parcel: Path, evaluations: dict) -> None:
    """Whether a parcel is of this row, whole, and no rehearsal.

    Raises:
        ValueError: what differs.
    """
    item = QUEUE[name]
    if other := differences(item.recipe, [*item.overrides], parcel):
        raise ValueError(f"The parcel is not of {name}: {', '.join(other)}. Nothing was taken.")
    for label in item.evaluations:
        evaluation = evaluations.get(label)
        if not isinstance(evaluation, dict) or not {"n", "exact_accuracy"} <= set(evaluation):
            raise ValueError(f"evaluations.json has no {label!r}: repeat {name}'s command, which goes on evaluating.")
        if (limit := (evaluation.get("settings") or {}).get("limit")) is not None:
            raise ValueError(f"The evaluation {label} is of {limit} puzzles, not of all dev rows. Nothing was taken.")


def collect(name: str, parcel: Path) -> None:
    """A finished parcel into checkpoints/ (with its card), its numbers into results/. All of it, or nothing."""
    item, run = QUEUE[name], read_record(parcel / "run.json")
    if run.get("status") != "finished":
        raise ValueError(f"The run is {run.get('status')}: go on with it (--go-on {parcel}), then collect.")
    evaluations = read_record(parcel / "evaluations.json")
    check_parcel(name, parcel, evaluations)
    thought = evaluations.pop("curve", None)
    if item.checkpoint:
        ship(parcel, ROOT / "checkpoints" / item.checkpoint, evaluations)
    results = ROOT / "results" / "queue"
    if thought is not None:
        write_json(results / f"{name}-curve.json", thought)
        if (parcel / "thought.png").is_file():
            shutil.copyfile(parcel / "thought.png", results / f"{name}-curve.png")
    headline = {**evaluations["max-16"], "run": name}
    write_json(results / f"{name}.json", headline)
    collected = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    append_runs_to(ROOT / "results" / "runs.jsonl", [{**run, "evaluation": headline, "collected": collected}])
    write_queue()


def ship(model: Path, target: Path, evaluations: dict[str, dict]) -> None:
    """A Hub-ready folder under checkpoints/, written by the same code that publishes."""
    from air_model.publishing.stage import stage_model

    with tempfile.TemporaryDirectory() as temporary:
        files = [write_json(Path(temporary) / f"{label}.json", found) for label, found in evaluations.items()]
        staged = Path(temporary) / "staged"
        staged.mkdir()
        stage_model(model, staged, repo_id=target.name, evaluations=files)
        use_code_of_checkout(staged)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(staged, target)
    print(
        f"{target.relative_to(ROOT)}: {sum(p.stat().st_size for p in target.rglob('*') if p.is_file()) / 1e6:.1f} MB"
    )


def use_code_of_checkout(folder: Path) -> None:
    """Take the travelling code out of a model folder, and name the folder `.` in its place.

    transformers reads "FOLDER--module.Class" as a class of another folder or repository, relative to where a process
    runs: in the root of a checkout such a model loads as one that brings its code.
    """
    from air_model.configuration_air import TRAVELLING_FILES

    for name in TRAVELLING_FILES:
        (folder / name).unlink()
    for name in ("config.json", "processor_config.json"):
        contents = read_json(folder / name)
        for classes in (contents["auto_map"], *contents.get("custom_pipelines", {}).values()):
            for key in classes.keys() & {"AutoConfig", "AutoModel", "AutoProcessor", "impl"}:
                classes[key] = f".--{classes[key]}"
        (folder / name).write_text(json.dumps(contents, indent=2) + "\n")


def refresh() -> None:
    """Give every shipped checkpoint today's config and card; weights and numbers stay."""
    for target in sorted((ROOT / "checkpoints").iterdir()):
        if (target / "config.json").is_file():
            evaluations = {p.stem: read_json(p) for p in sorted((target / "results").glob("*.json"))}
            with tempfile.TemporaryDirectory() as temporary:
                source = shutil.copytree(target, Path(temporary) / "model")
                ship(source, target, evaluations)


def run_item(name: str, args: argparse.Namespace) -> int:
    item, folder = QUEUE[name], f"{name}-rehearsal" if args.rehearse else name
    work, target = args.work_dir / folder, args.output_dir / folder
    work.mkdir(parents=True, exist_ok=True)
    # The last minute is for copying out.
    deadline = time.monotonic() + args.minutes * 60 - (0 if args.rehearse else 60)
    start_training(name, args, work)
    wait(work, deadline - time.monotonic())
    status = status_of(work / "run")
    if not alive(work / "pid") and status != "finished":
        print((work / "train.log").read_text()[-2000:])
        held = newest_weights(work / "run") is not None
        then = "the same command goes on from its newest checkpoint" if held else "mend what it says, and call again"
        print(f"{name} stopped ({status}); {then}.", file=sys.stderr)
        return 1

    def bring() -> None:
        write_parcel(work, target, with_weights=bool(item.checkpoint))

    bring()  # before the evaluations: a call that is cut off in one has brought the weights
    if status != "finished":
        print(f"{name}: still training; repeat the command")
    elif not evaluate_all(name, args, work, deadline, bring):
        print(f"{name}: trained, still evaluating; repeat the command")
    else:
        print(f"{name}: done")
    return 0


def row_name(text: str) -> str:
    if text not in QUEUE:
        near = difflib.get_close_matches(text, QUEUE, 1)
        raise argparse.ArgumentTypeError(
            f"{text!r} is no row of the queue"
            + (f"; did you mean {near[0]!r}?" if near else ": `python workshop/run_queue.py` lists them.")
        )
    return text


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", type=row_name, metavar="RUN", help="a row of the queue")
    parser.add_argument("--data-root", type=Path, default=Path(".data"), help="holds sudoku_extreme/ and maze_hard/")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/queue"), help="stays on the machine")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/parcels"), help="what to bring back")
    parser.add_argument("--minutes", type=float, default=9.0, help="return after this long, finished or not")
    parser.add_argument("--rehearse", action="store_true", help="the same, with a tiny model and 20 steps")
    parser.add_argument("--go-on", type=Path, metavar="PARCEL", help="weights and step of a run on an earlier machine")
    parser.add_argument("--collect", type=Path, metavar="PARCEL", help="take a finished parcel into the repository")
    parser.add_argument("--write", action="store_true", help="write results/QUEUE.md")
    parser.add_argument("--refresh", action="store_true", help="today's config and card into every shipped checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="passed on to train_accelerate.py")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        if args.write:
            print(f"wrote {write_queue().relative_to(ROOT)}")
        elif args.refresh:
            refresh()
        elif args.name is None and args.collect:
            raise ValueError(f"Name the row that {args.collect} is of: run_queue.py RUN --collect {args.collect}.")
        elif args.name is None:
            for name, item in QUEUE.items():
                print(f"{name:26} {item.minutes:4g} min  {state_of(name)}")
        elif args.collect:
            collect(args.name, args.collect)
        else:
            return run_item(args.name, args)
    except (ValueError, OSError) as error:
        print(f"run_queue: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
import dataclasses
import datetime
import functools
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import _checkout  # noqa: F401

import psutil
import torch
import yaml
from safetensors.torch import load_file

from air_model.configuration_air import TRAVELLING_FILES, AirConfig, nearest
from air_model.modeling_air import AirModel
from air_model.publishing.stage import stage_model
from air_model.records import append_runs_to, read_json, read_run, setting, whole_folder, write_json, write_text
from air_model.scripts.door import in_sentences
from air_model.training.checkpoints import CheckpointStore
from air_model.training.miniature import miniature
from air_model.training.recipe import FREE_ON_RESUME, as_words, read_recipe

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Item:
    """One row of the queue. minutes: expected on one H100 or H200, computed (docs/scaling.md), not measured."""

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
        for key in values.keys() & {"overrides", "curve"}:
            values[key] = tuple(values[key].split())
        values["evaluations"] = {label: tuple(words.split()) for label, words in values["evaluations"].items()}
        item = Item(**values)
        for seed, variant in itertools.product(seeds, variants):
            own = (f"variant={variant}", f"seed={seed}", *item.overrides)
            recipe = "hrm_sudoku" if variant == "HRM" else item.recipe
            queue[f"{name}-{variant}-{seed}"] = dataclasses.replace(item, recipe=recipe, overrides=own)
        if not variants:
            queue[name] = item
    return queue


QUEUE = read_queue()
# Checkpoints that earlier rows made, and the data on which they are analysed.
ANALYSES = {"air-sudoku-extreme": "sudoku_extreme", "air-maze-hard-full": "maze_hard"}


def state_of(name: str) -> str:
    """What the repository holds of a row: read off checkpoints/ and results/, never typed."""
    item = QUEUE[name]
    files = [ROOT / "results" / "queue" / f"{name}.json"]
    if item.checkpoint:
        files += sorted((ROOT / "checkpoints" / item.checkpoint / "results").glob("max-16*.json"))
    for file in filter(Path.is_file, files):
        found = read_json(file)
        return f"done: {found['exact_accuracy']:.1%} exact of {found['n']} ({found.get('date', '')[:10]})"
    return "open"


def analysis_row(name: str, data: str) -> str:
    output = Path("results") / f"analysis_{name.removeprefix('air-').replace('-', '_')}"
    state = "open" if (ROOT / "checkpoints" / name).is_dir() else "open, waits for the checkpoint"
    state = "done" if (ROOT / output).is_dir() else state
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
    with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
        # Where nobody reaps it, a dead process stays as a zombie.
        return psutil.Process(int(pid_file.read_text())).status() != psutil.STATUS_ZOMBIE
    return False


def differences(recipe: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """What the run of a folder has otherwise than the recipe with these overrides; [] where no run has begun."""
    if not (folder / "run.json").is_file():
        return []
    run, wanted = read_record(folder / "run.json"), read_recipe(recipe, ["data=x", *overrides])
    found, wanted = {"variant": run.get("variant"), **(run.get("config") or {})}, wanted.flat()
    keys = ["variant", "task", "seed", "max_steps", "batch_size", "hidden_size", "num_hidden_layers", "optimizer"]
    keys += [word.split("=", 1)[0] for word in overrides]
    if found.get("start_step") and "start_step" not in keys:  # it went on from weights that it had been brought
        keys = [key for key in keys if key != "init_from"]
    return [
        f"{key}={found.get(key)!r} instead of {wanted[key]!r}"
        for key in dict.fromkeys(keys)
        if key not in FREE_ON_RESUME and found.get(key) != wanted[key]
    ]


def start_training(name: str, args: argparse.Namespace, work: Path) -> None:
    """Detached, so that it outlives the command that starts it."""
    item = QUEUE[name]
    small = as_words(miniature(read_recipe(item.recipe, ["data=x", *item.overrides]).model)) if args.rehearse else []
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
    """Until the training ends, or so long; tells every half minute how far it is."""
    end = time.monotonic() + seconds
    while alive(work / "pid") and (left := end - time.monotonic()) > 0:
        with contextlib.suppress(psutil.Error):
            psutil.Process(int((work / "pid").read_text())).wait(min(30, left))
        print(last_words(work / "train.log"), flush=True)


def evaluate_all(name: str, args: argparse.Namespace, work: Path, deadline: float, brought: Callable) -> bool:
    """The evaluations of a row, each once, as long as there is time; `brought()` after each. True when all are done.

    One that is cut off goes on at the next call, from the rows that it has answered.
    """
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
        command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *common, *options, "--output", str(output)]
        # Blocks that are not compiled write every small stage to the GPU's memory: about twice the time.
        for more in (["--compile"], []) if torch.cuda.is_available() and not args.rehearse else ([],):
            if (left := deadline - time.monotonic()) < 5:
                return False
            try:
                if subprocess.run([*command, *more], timeout=left).returncode == 0:
                    break
            except subprocess.TimeoutExpired:
                return False
        else:
            raise ValueError(f"The evaluation {label} failed, see above; call again to repeat it.")
        brought()
    return True


def newest_weights(run: Path) -> Path | None:
    """The model folder, or the newest checkpoint's weights while training goes on."""
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
        averaged = source / "ema.safetensors"
        state = load_file(source / "model.safetensors") | (load_file(averaged) if averaged.is_file() else {})
        model.load_state_dict(state)
        model.to(torch.bfloat16)
        run["steps"] = int(source.name.rsplit("_", 1)[1])  # of these weights, whatever the record says by now
    if model is not None:
        model.save_pretrained(target, max_shard_size="15MB")
        for extra in (*target.glob("*.py"), target / "processor_config.json"):
            extra.unlink()
    write_json(target / "run.json", run)
    if evaluations := {path.stem: read_json(path) for path in sorted((work / "evaluations").glob("*.json"))}:
        write_json(target / "evaluations.json", evaluations)
    for path, name in ((work / "run" / "curve.png", "curve.png"), (work / "evaluations" / "curve.png", "thought.png")):
        if path.is_file() and len(list(target.iterdir())) < 8:
            shutil.copyfile(path, target / name)
    sizes = {p.name: p.stat().st_size for p in target.iterdir()}
    print(f"parcel {target}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")
    assert len(sizes) <= 8 and max(sizes.values()) < 16e6, sizes


def collect(name: str, parcel: Path) -> None:
    """A finished parcel into checkpoints/ (with its card), its numbers into results/. All of it, or nothing.

    Raises:
        ValueError, FileNotFoundError: it is not of this row, not whole, or of a rehearsal.
    """
    item, run = QUEUE[name], read_record(parcel / "run.json")
    if run.get("status") != "finished":
        raise ValueError(f"The run is {run.get('status')}: go on with it (--go-on {parcel}), then collect.")
    evaluations = read_record(parcel / "evaluations.json")
    if other := differences(item.recipe, item.overrides, parcel):
        raise ValueError(f"The parcel is not of {name}: {', '.join(other)}. Nothing was taken.")
    for label in item.evaluations:
        if not {"n", "exact_accuracy"} <= set(evaluations.get(label) or ()):
            raise ValueError(f"evaluations.json has no {label!r}: repeat {name}'s command, which goes on evaluating.")
        if (limit := setting(evaluations[label], "limit")) is not None:
            raise ValueError(f"The evaluation {label} is of {limit} puzzles, not of all dev rows. Nothing was taken.")
    if item.checkpoint:
        ship(parcel, ROOT / "checkpoints" / item.checkpoint)
    results = ROOT / "results" / "queue"
    if "curve" in evaluations:
        write_json(results / f"{name}-curve.json", evaluations["curve"])
        if (parcel / "thought.png").is_file():
            shutil.copyfile(parcel / "thought.png", results / f"{name}-curve.png")
    headline = {**evaluations["max-16"], "run": name}
    write_json(results / f"{name}.json", headline)
    collected = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    append_runs_to(ROOT / "results" / "runs.jsonl", [{**run, "evaluation": headline, "collected": collected}])
    write_queue()


def ship(model: Path, target: Path) -> None:
    """A folder under checkpoints/, written by the code that publishes, with the evaluations in the model's folder."""
    with whole_folder(target) as staged:
        stage_model(model, staged, repo_id=f"checkpoints/{target.name}")  # its card's lines run where its code lies
        use_code_of_checkout(staged)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target.relative_to(ROOT)}: {size / 1e6:.1f} MB")


def use_code_of_checkout(folder: Path) -> None:
    """Take the travelling code out of a model folder, and name the folder `.` in its place.

    transformers reads "FOLDER--module.Class" as a class of another folder or repository, relative to where a process
    runs: in the root of a checkout such a model loads as one that brings its code.
    """
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
    for config in sorted((ROOT / "checkpoints").glob("*/config.json")):
        ship(config.parent, config.parent)


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
    bring = functools.partial(write_parcel, work, target, with_weights=bool(item.checkpoint))
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
        hint = nearest(text, list(QUEUE)) or " `python workshop/run_queue.py` lists them."
        raise argparse.ArgumentTypeError(f"{text!r} is no row of the queue.{hint}")
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


@in_sentences("run_queue")
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
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
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How a run shares the machine: with other runs (one per folder), its launcher, and the signals that end it."""

import contextlib
import datetime
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from air_model.records import make_folder


class RunError(ValueError):
    """Something that the user can put right; `main` prints it as one message and exits with status 1."""


class FolderTaken(ValueError):
    """Another process trains into the folder. train_accelerate.py exits with status TAKEN then; a grid waits."""


TAKEN = 75  # EX_TEMPFAIL of sysexits.h


def already_there(folder: Path) -> RunError:
    return RunError(
        f"{folder} already holds a run. Add --resume to go on with it, --overwrite to delete it, or choose another "
        "--output-dir."
    )


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder: both would sweep away each other's half-written checkpoints.

    Raises:
        FolderTaken: another process, on this machine or on the same network disk, trains into it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    existed = folder.is_dir()
    make_folder(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderTaken(
                f"Another process is training into {folder}. Wait for it, stop it (SIGTERM saves a checkpoint), or "
                "choose another --output-dir."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()  # nothing came of it


def is_taken(folder: Path) -> bool:
    """Whether a process trains into the folder now."""
    try:
        with alone_in(folder) if folder.is_dir() else contextlib.nullcontext():
            return False
    except FolderTaken:
        return True


class TolerantStream:
    """A stream whose writes may fail: a log on a full disk, or a reader that has gone, is no reason to stop."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def say(text: str) -> None:
    """Print to stderr, where that is still possible."""
    print(text, file=TolerantStream(sys.stderr), flush=True)


class Signals:
    """SIGTERM (Slurm preemption, `kill`) and Ctrl-C ask for a checkpoint and a clean end; a second Ctrl-C ends now.

    A second SIGTERM is nothing new: under Slurm a process gets one from Slurm and one from its launcher.
    """

    def __init__(self) -> None:
        self.received = False
        self.before: dict[int, Any] = {}

    def install(self, *numbers: int) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for number in numbers:
                self.before[number] = signal.signal(number, self)

    def __enter__(self) -> "Signals":
        self.install(signal.SIGTERM)  # from the start to the very end
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


def end_with_launcher() -> None:
    """`accelerate launch` of one process does not pass SIGTERM on: ask Linux to, when the launcher dies."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ:
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # 1 = PR_SET_PDEATHSIG


def refuse_lonely_process(world: int, script: str = "train_accelerate.py") -> None:
    """`accelerate launch --cpu --num_processes 2` starts ONE process and says nothing: refuse to work alone then."""
    if world > 1:
        return
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    asked = None
    if launched and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        asked = "accelerate launch was given more than one process or machine"
    elif int(os.environ.get("WORLD_SIZE") or 1) > 1:
        asked = f"WORLD_SIZE={os.environ['WORLD_SIZE']}"
    elif int(os.environ.get("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_ID" in os.environ and not launched:
        # Inside srun (not just sbatch): every task would train the whole run by itself, into the same folder.
        asked = f"SLURM_NTASKS={os.environ['SLURM_NTASKS']}"
    if asked:
        raise RunError(
            f"More processes were asked for ({asked}), but only this one was started, so it would work alone. Start "
            f"CPU processes with `torchrun --nproc_per_node N {script} ...`, several GPUs with `accelerate "
            "launch --config_file recipes/accelerate/8_gpus.yaml ...`, or ask for one process."
        )


def join_processes(device: str | None, script: str) -> tuple[int, int, torch.device, Callable[[], None]]:
    """(rank, number of processes, device, a barrier); Accelerate when launched as several processes.

    Raises:
        RunError: Accelerate made another number of processes than were started.
    """
    from air_model.pipeline_air import device_of

    asked, chosen = int(os.environ.get("WORLD_SIZE", "1")), device_of(device)
    if asked == 1:
        refuse_lonely_process(1, script)
        return 0, 1, chosen, lambda: None
    from accelerate import PartialState

    # Without a GPU Accelerate makes every process a world of its own, unless it is told to use the CPU. Shares differ
    # in difficulty: the quick ones may wait for hours.
    state = PartialState(cpu=chosen.type != "cuda", timeout=datetime.timedelta(days=7))
    if state.num_processes != asked:
        raise RunError(
            f"{asked} processes were started, but Accelerate made {state.num_processes} of them: start CPU processes "
            "with torchrun, GPUs with `accelerate launch` or torchrun."
        )
    return state.process_index, state.num_processes, state.device, state.wait_for_everyone


def launcher_precision(mixed_precision: str, accumulation: int) -> str:
    """What `accelerate launch --mixed_precision` asks for: "no" or "bf16".

    Args:
        mixed_precision, accumulation: of the recipe; the launcher's `--gradient_accumulation_steps` changes the batch.

    Raises:
        RunError: it asks for fp16 or fp8, for bf16 where the recipe says no, or for another accumulation.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    pieces = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if asked not in ("no", "bf16"):
        raise RunError(
            f"accelerate launch asks for mixed_precision={asked}, in which AIR is not trained. "
            "Leave --mixed_precision out (the recipe's mixed_precision decides), or ask for bf16."
        )
    if asked == "bf16" and mixed_precision == "no":
        raise RunError(
            "accelerate launch asks for bf16 and the recipe says mixed_precision=no. Leave one of them out, or add "
            "mixed_precision=bf16."
        )
    if pieces not in ("1", "auto", str(accumulation)):
        raise RunError(
            f"accelerate launch has --gradient_accumulation_steps {pieces}, the recipe accumulation={accumulation}. "
            f"Add accumulation={pieces} instead: batch_size stays the whole batch, which a process takes in that many "
            "pieces."
        )
    return asked

"""What must not leave this machine: pickles, credentials, its paths. A folder is read as a stranger would get it."""

import codecs
import contextlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICKLES = {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".distcp"}
SECRETS = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{16,}",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}",
    "an AWS key": r"(?:AKIA|ASIA)[0-9A-Z]{16}",
    "an API key": r"sk-[A-Za-z0-9_-]{20,}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    # name = value, where the value looks random: 16 characters or more with a digit among them
    "a credential": r"(?i)(?:api_?key|secret|passw(?:or)?d|access_?token|auth_?token|_token)\w*[\"']?\s*[=:]\s*[\"']?"
    r"(?=[\w+/-]*\d)[\w+/-]{16,}",
}
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~*-])(?:/(?:content|data|gpfs|home|lustre|media|mnt|net|nfs|opt|private|project|projects|root|scratch"
    r"|srv|tmp|Users|usr|var|work|workspace)/[\w.@+-]+[\w./@+-]*|file:///[\w./@+-]+)"
    r"|\b[A-Za-z]:\\+(?:[\w .@+-]+\\+)+[\w .@+-]*"
)
BYTE_ORDER_MARKS = {  # the longer ones first: they begin with the shorter ones
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
TEXT_LIMIT = 32 * 2**20  # bytes; no text of ours comes near it


class Refused(ValueError):
    """Something that must not be published; the message says what and where."""


def files_below(folder: Path) -> list[Path]:
    """All files of a folder, relative to it, in order."""
    return [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]


def refuse_unsafe(folder: Path, source: Path) -> None:
    """Raise Refused, listing everything, if a staged folder holds pickles, secrets or paths of this machine.

    Args:
        folder: what would be uploaded.
        source: the folder it came from; pickles and secrets there are refused as well, even in files that would stay
            behind: whoever publishes a folder shall know what lies in it.
    """
    problems: dict[str, None] = {}  # in order, each once
    for place in (folder, source):
        for name in map(Path.as_posix, files_below(place)):
            if not name.startswith(".git/") and "__pycache__" not in Path(name).parts:
                found = faults(place / name, place == folder)
                problems |= {f"\n  {name}{problem}: remove it": None for problem in found}
    if problems:
        raise Refused(f"Nothing was sent: {len(problems)} thing(s) must not be published.{''.join(problems)}")


def faults(path: Path, travels: bool) -> Iterator[str]:
    """What is wrong with a file; paths of this machine matter only in one that travels."""
    if looks_pickled(path):
        yield " is a pickle or may hold one (loading it can run code)"
        return
    text = readable_text(path)
    patterns = {kind: re.compile(pattern) for kind, pattern in SECRETS.items()}
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        if len(value := os.environ.get(name, "")) >= 8:
            patterns[f"the value of ${name}"] = re.compile(re.escape(value))
    for kind, pattern in [*patterns.items(), *([("", MACHINE_PATH)] if travels else [])]:
        for match in pattern.finditer(text):
            what = f"looks like {kind}" if kind else f"{match[0]!r} is a path of this machine"
            yield f", line {text.count(chr(10), 0, match.start()) + 1}: {what}"


def looks_pickled(path: Path) -> bool:
    """By name, or by content: a pickle stream, or a zip archive with one inside (torch.save)."""
    if path.suffix.lower() in PICKLES:
        return True
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):  # the protocol, which comes first
        return True
    with contextlib.suppress(zipfile.BadZipFile):
        if start == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith(".pkl") for name in archive.namelist())
    return False


def readable_text(path: Path) -> str:
    """What of a file is text: all of it, a safetensors header, or nothing."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return file.read(min(size, TEXT_LIMIT)).decode(errors="replace")
    if path.stat().st_size > TEXT_LIMIT:
        return ""
    data = path.read_bytes()
    for mark, encoding in BYTE_ORDER_MARKS.items():  # as Windows' tools write it
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    return "" if b"\0" in data[:8192] else data.decode(errors="replace")


def shorten_paths(value: Any, found: list[str]) -> Any:
    """A JSON value whose machine paths are cut to their last part; `found` collects what was cut."""
    if isinstance(value, dict):
        return {key: shorten_paths(item, found) for key, item in value.items()}
    if isinstance(value, list):
        return [shorten_paths(item, found) for item in value]
    if isinstance(value, str) and (MACHINE_PATH.search(value) or os.path.isabs(value)):
        found.append(value)
        if os.path.isabs(value) and " " not in value:
            return Path(value).name
        return MACHINE_PATH.sub(lambda match: Path(match[0].replace("\\", "/")).name, value)
    return value

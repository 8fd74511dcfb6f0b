"""Puzzles out of files, whatever they are packed in: text, CSV, TSV, JSON, JSON lines, parquet; also in .gz and .zip.

What a file is shows in its first bytes, not in its name. A file is a table (columns found by name, see
`reading_air.PUZZLE_KEYS`), or text whose puzzles `reading_air.split_puzzles` parts.
"""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import math
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from air_model.processing_air import GridTask
from air_model.reading_air import ANSWER_KEYS, PUZZLE_KEYS, TOKEN_KEYS, is_one_grid, split_puzzles

COLUMNS = {"question": PUZZLE_KEYS, "answer": ANSWER_KEYS, "rating": ("rating",), "source": ("source",)}
NEEDED = ("question", "answer")
CHUNK = 50_000
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, csv.Error)
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Windows' tools write text
ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".zip")
ENDINGS += tuple(f"{ending}.gz" for ending in ENDINGS[:5])


@dataclass
class Table:
    """names: of the columns, in lower case. records: one list of values a row, read as they are asked for."""

    names: list[str]
    records: Iterator[list[Any]]


def unpacked(file: BinaryIO, name: str) -> Iterator[tuple[str, BinaryIO]]:
    """A file, or those packed in it; each with a name for messages."""
    file = file if hasattr(file, "peek") else io.BufferedReader(file)
    head = _head(file, name, 4)
    if head[:2] == b"\x1f\x8b":
        yield from unpacked(gzip.GzipFile(fileobj=file), name)
    elif head[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            paths = [PurePosixPath(path) for path in archive.namelist() if not path.endswith("/")]
            if PurePosixPath("[Content_Types].xml") in paths:
                raise ValueError(f"{name} is a document of an office program: save it as CSV.")
            if any(member.flag_bits & 1 for member in archive.infolist()):
                raise ValueError(f"{name} is locked by a password: unpack it first.")
            for path in paths:
                if "__MACOSX" not in path.parts and not path.name.startswith("."):
                    with archive.open(str(path)) as member:
                        yield from unpacked(member, f"{name}/{path}")
    else:
        yield name, file


def _head(file: BinaryIO, name: str, count: int) -> bytes:
    try:
        return file.peek(count)
    except DAMAGED as error:
        raise ValueError(f"{name} is not a complete gzip file ({error}): download or write it again.") from None


def contents(file: BinaryIO, name: str) -> Table | str | list:
    """What an unpacked file holds: a table, text, or JSON that is neither (grids as lists)."""
    head = _head(file, name, 1 << 16)
    if head[:2] in UTF16:
        file = io.BytesIO(_text(file, name).encode())
        head = file.getvalue()[: 1 << 16]
    if head[:4] == b"PAR1":
        return _parquet(file, name)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{"):
        text = _text(file, name)
        try:
            rows = _json_rows(text)
        except RecursionError:
            raise ValueError(
                f"{name} nests lists deeper than JSON can be read: give rows with a puzzle each, or plain text."
            ) from None
        return text if rows is None else _table(rows) if all(isinstance(row, dict) for row in rows) else rows
    first, rest = [*re.split(r"\r\n|\r|\n", head.decode("utf-8-sig", errors="replace").lstrip(), maxsplit=1), ""][:2]
    for mark in ",;\t|":
        names = [name.strip().lower() for name in next(csv.reader([first], delimiter=mark), [])]
        # One word alone is a title over a drawing as often as the name of a column.
        is_row = any(name.isdecimal() for name in names)  # of a grid that has a letter q
        if set(names) & set(PUZZLE_KEYS) and not is_row and (len(names) > 1 or rest.startswith('"')):
            # "replace" reads any byte, so a foreign letter is named with its row, not as a decoding error.
            lines = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
            reader = csv.reader((line for line in lines), delimiter=mark)
            while not next(reader):  # the header, after empty lines
                continue
            return Table(names, (record for record in reader if record))
    return _text(file, name)


def _text(file: BinaryIO, name: str) -> str:
    try:
        held = file.read()
        if held[:2] in UTF16:
            held = held.decode("utf-16").encode()
        if b"\0" in held or held and not re.search(rb"[\t\r\n -~]", held):
            raise ValueError
        return held.decode("utf-8-sig", errors="replace")  # a title in another encoding is no matter
    except (ValueError, *DAMAGED):
        raise ValueError(
            f"{name} is no text file: puzzles come as text, CSV, TSV, JSON or parquet, also packed as .gz or .zip."
        ) from None


@contextlib.contextmanager
def whole_parquet(name: str) -> Iterator[None]:
    """Says in a sentence, as a ValueError, that the parquet file opened inside is damaged."""
    from pyarrow import ArrowException

    try:
        yield
    except ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{name} is no complete parquet file ({reason}): download or write it again.") from None


def _parquet(file: BinaryIO, name: str) -> Table:
    import pyarrow.parquet as pq

    with whole_parquet(name):
        table = pq.ParquetFile(file)
    names = table.schema_arrow.names
    batches = (batch.to_pydict() for batch in table.iter_batches(CHUNK))
    return Table([name.lower() for name in names], (list(row) for batch in batches for row in zip(*batch.values())))


def _table(rows: list[dict]) -> Table:
    rows = [{str(key).lower(): value for key, value in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(names, ([row.get(name) for name in names] for row in rows))


def _json_rows(text: str) -> list | None:
    """The rows of JSON or of JSON lines; None for other text."""
    try:
        value = json.loads(text)
    except ValueError:
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            return None
    while isinstance(value, dict) and not {str(key).lower() for key in value} & set(PUZZLE_KEYS):
        inner = [part for part in value.values() if isinstance(part, (list, dict))]
        if len(inner) != 1:
            break
        value = inner[0]
    return value if isinstance(value, list) else _records(value) if isinstance(value, dict) else [value]


def _records(table: dict) -> list[dict]:
    """A record, or those of a table written column by column (lists, or as pandas does it by number of the row)."""
    table = {key: list(column.values()) if isinstance(column, dict) else column for key, column in table.items()}
    puzzles = next((column for key, column in table.items() if str(key).lower() in PUZZLE_KEYS), None)
    if not isinstance(puzzles, list) or not all(isinstance(puzzle, (str, list)) for puzzle in puzzles):
        return [table]
    sizes, count = {len(puzzle) for puzzle in puzzles}, len(puzzles)
    square = len(sizes) == 1 and math.isqrt(size := sizes.pop()) ** 2 == size
    rows_of_a_maze = sum(puzzle.count("S") for puzzle in puzzles) < count
    maze = any("G" in puzzle for puzzle in puzzles)
    if not square or size < 16 or size == count or maze and rows_of_a_maze:  # the rows of one puzzle
        return [table]
    columns = [part if isinstance(part, list) and len(part) == count else [part] * count for part in table.values()]
    return [dict(zip(table, row)) for row in zip(*columns)]


def puzzles_in(file: BinaryIO, name: str, tasks: list[GridTask]) -> list[Any]:
    """All puzzles of a file, as texts, lists of numbers, or rows {"input_ids": tokens}; some may be ill-formed.

    Raises:
        ValueError: there is none, or the file is damaged.
    """
    found: list[Any] = []
    for inner, part in unpacked(file, name):
        held = contents(part, inner)
        if isinstance(held, str):
            found += split_puzzles(held, tasks)
            continue
        if isinstance(held, Table):
            column = next((held.names.index(key) for key in PUZZLE_KEYS if key in held.names), None)
            if column is None:
                raise ValueError(
                    f"{inner} has the columns {', '.join(held.names)}; one with puzzles is called "
                    f"{', '.join(PUZZLE_KEYS)}."
                )
            values = [record[column] if column < len(record) else "" for record in held.records]
            held = _said_to_be_tokens(values, held.names[column])
        elif any(is_one_grid(task, held) for task in tasks):
            held = [held]
        for puzzle in held:
            several = isinstance(puzzle, list) and not any(is_one_grid(task, puzzle) for task in tasks)
            found += puzzle if several else ["" if puzzle is None else puzzle]
    if not found:
        raise ValueError(f"{name} holds no puzzle.")
    return found


def _said_to_be_tokens(values: list[Any], column: str) -> list[Any]:
    """Numbers of a column that holds tokens as rows that say so; texts stay."""
    if column not in TOKEN_KEYS:
        return values
    return [value if isinstance(value, str) else {"input_ids": value} for value in values]


def read_rows(
    path: Path, bad: list[tuple[int, str]], limit: int | None = None
) -> Iterator[tuple[list[Any], list[Any], list[str], list[str], int]]:
    """Chunks of (questions, answers, ratings, sources, first row number) of a file with both puzzles and answers.

    Columns are found by name, in any order and case; beside tokens (input_ids) answers are tokens. A file that ends
    early or is no text yields what it holds and adds the fault to `bad`.
    """
    row = 1
    with open(path, "rb") as packed:
        for name, file in unpacked(packed, str(path)):
            table = contents(file, name)
            places = _columns(table, name)
            records = _undamaged(table.records, bad, row) if isinstance(table, Table) else iter(())
            records = itertools.islice(records, limit if limit is None else limit - row + 1)
            while chunk := list(itertools.islice(records, CHUNK)):
                columns = [[record[i] if i < len(record) else None for record in chunk] for i in places]
                columns[:2] = [["" if value is None else value for value in column] for column in columns[:2]]
                columns[:2] = [_said_to_be_tokens(column, table.names[places[0]]) for column in columns[:2]]
                columns[2:] = [["" if value is None else str(value) for value in column] for column in columns[2:]]
                yield *columns, row
                row += len(chunk)


def _undamaged(records: Iterator[list[Any]], bad: list[tuple[int, str]], row: int) -> Iterator[list[Any]]:
    try:
        for record in records:
            yield record
            row += 1
    except DAMAGED as error:
        bad.append((row, f"the file is damaged or ends early ({error})"))


def _columns(table: Table | str | list, name: str) -> list[int]:
    """Where the columns of puzzles, answers, ratings and sources are; beyond the last one where there is none."""
    names = table.names if isinstance(table, Table) else []
    if isinstance(table, str):
        names = [name.strip().lower() for name in next(csv.reader(table.splitlines()[:1]), [])]
    found = {column: [names.index(key) for key in keys if key in names] for column, keys in COLUMNS.items()}
    if missing := next((column for column in NEEDED if not found[column]), None):
        raise ValueError(
            f"{name} has no column of {missing}s ({', '.join(COLUMNS[missing])}): its header is"
            f" {', '.join(names)[:200] or 'empty'}. A table of puzzles needs for example question and answer, or"
            " puzzle and solution; rating and source are optional."
        )
    return [places[0] if places else sys.maxsize for places in found.values()]

"""The data card (README.md of a data set repository): YAML that `load_dataset` reads, then prose with the numbers."""

from __future__ import annotations

import json

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

TITLES = {"sudoku-extreme": "Sudoku-Extreme for AIR", "maze-hard": "Maze-30x30-Hard for AIR"}

ORIGINS = {
    "sudoku-extreme": (
        "Sudoku-Extreme was published with the hierarchical reasoning model: puzzles of the tdoku benchmark"
        " collection (Kaggle, unbiased, 17 clues, magictour top 1465, forum hardest) and of the enjoysudoku forum,"
        " exact duplicates removed, one solution each; no puzzle of its test split is equivalent to one of its train"
        " split. `rating` is the number of guesses of the tdoku solver."
    ),
    "maze-hard": (
        "Maze-30x30-Hard was published with the hierarchical reasoning model: mazes by the generator of Lehnert et al."
        " (Searchformer), kept where a shortest path visits at least 110 cells; `rating` is its number of cells or"
        " moves as the source gives it. From S the label steps to the first of Down, Left, Right, Up that lowers the"
        " distance to G; other shortest paths are as good, but differ from the label."
    ),
}

GENERATED = {
    "sudoku-extreme": (
        "These puzzles are generated, not taken from the published set: a random solved grid, clues taken away while"
        " one solution remains, then a walk of clue swaps towards a drawn rating. `rating` is the number of guesses of"
        " the project's own solver, which follows tdoku's rules and order of guesses."
    ),
    "maze-hard": (
        "These mazes are generated, not taken from the published set: walls placed uniformly (their number uniform in"
        " 27-47 % of the cells), S and G uniform on the free cells, kept where they are far enough apart; labelled by"
        " the published rule. `rating` is the number of moves of a shortest path."
    ),
}

CARD = """---
{front_matter}
---

# {title}

{height}x{width} {kind} as token grids, for training and evaluating AIR (Asymmetric Input Recurrence) models and their relatives.

```python
from datasets import load_dataset
data = load_dataset("FOLDER_OR_HUB_ID", "{config}")
```

| column | type | meaning |
|---|---|---|
| `inputs` | uint8 x {cells} | the puzzle, row-major: {tokens} |
| `labels` | same | the answer, every cell |
| `rating` | int32 | difficulty, see below |
| `source` | string | where the puzzle comes from |
| `puzzle_id` | int32 | row of a model's puzzle embedding: 0 for all |
| `group` | int32 | rows with one number are symmetric copies of one puzzle; its first row is the original |

| configuration | split | rows | puzzles | fingerprint |
|---|---|---|---|---|
{splits}

## Statistics (of the puzzles, without copies)

| split | quantity | mean | median | range |
|---|---|---|---|---|
{statistics}

## Provenance

{provenance}

## Licence

{licence}

## How to cite

```bibtex
@article{{wang2025hierarchical,
  title   = {{Hierarchical Reasoning Model}},
  author  = {{Wang, Guan and others}},
  journal = {{arXiv preprint arXiv:2506.21734}},
  year    = {{2025}}
}}
```
"""  # noqa: E501
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def features(cells: int) -> datasets.Features:
    """The columns of every built table; a grid has `cells` cells."""
    grid = datasets.List(datasets.Value("uint8"), length=cells)
    number, text = datasets.Value("int32"), datasets.Value("string")
    return datasets.Features(
        {"inputs": grid, "labels": grid, "rating": number, "source": text, "puzzle_id": number, "group": number}
    )


def front_matter(meta: dict) -> str:
    """The YAML header: configs, dataset_info, tags."""
    cells, generated = meta["task"]["height"] * meta["task"]["width"], meta["source"] == "generate"
    configs, infos = MetadataConfigs(), DatasetInfosDict()
    for name, table in meta["configs"].items():
        splits = datasets.SplitDict()
        for split, info in table["splits"].items():
            splits.add(datasets.SplitInfo(split, info["rows"] * (2 * cells + 12), info["rows"]))
        configs[name] = {"data_files": [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in splits]}
        configs[name] |= {"default": True} if name == meta["default_config"] else {}
        infos[name] = datasets.DatasetInfo(
            features=features(cells),
            splits=splits,
            download_size=sum(info["bytes"] for info in table["splits"].values()),
            dataset_size=sum(split.num_bytes for split in splits.values()),
        )
    rows = sum(info.splits.total_num_examples for info in infos.values())
    data = DatasetCardData(
        pretty_name=_title(meta),
        license="apache-2.0" if generated else "unknown",
        task_categories=["other"],
        tags=["puzzle-solving", "reasoning", meta["task"]["name"], "air"],
        size_categories=[next((label for bound, label in SIZES if rows < bound), "n>10M")],
    )
    configs.to_dataset_card_data(data)
    infos.to_dataset_card_data(data)
    return data.to_yaml()


def _title(meta: dict) -> str:
    return TITLES[meta["dataset"]] + (" (generated)" if meta["source"] == "generate" else "")


def card(meta: dict) -> str:
    """README.md of a built data set (meta = the content of air_dataset.json)."""
    task, generated = meta["task"], meta["source"] == "generate"
    sudoku = task["name"] == "sudoku"
    return CARD.format(
        front_matter=front_matter(meta),
        title=_title(meta),
        height=task["height"],
        width=task["width"],
        cells=task["height"] * task["width"],
        kind=f"Sudokus with {task['box_height']}x{task['box_width']} boxes" if sudoku else "mazes",
        tokens=f"PAD 0, blank 1, digits 1-{task['height']} are 2-{task['height'] + 1}"
        if sudoku
        else "PAD 0, `#` wall 1, space 2, `S` 3, `G` 4, `o` path 5",
        config=meta["default_config"],
        splits="\n".join(
            f"| {config} | {split} | {info['rows']:,} | {info['puzzles']:,} | `{info['fingerprint']}` |"
            for config, table in meta["configs"].items()
            for split, info in table["splits"].items()
        ),
        statistics=_statistics(meta["statistics"]),
        provenance="\n\n".join(_provenance(meta)),
        licence="Generated by code under Apache-2.0; the rows may be used under the same licence."
        if generated
        else "The source states no licence for its rows. This build changes their form only; ask the source before you"
        " publish it.",
    )


def _statistics(statistics: dict) -> str:
    """Rows of the table, and below it the shares of the ratings where they are known."""
    rows = [
        f"| {split} | {quantity} | {s['mean']} | {s['median']} | {s['min']}-{s['max']} |"
        for split, by in statistics.items()
        for quantity, s in by.items()
        if quantity != "rating_shares"
    ]
    shares = [
        f"\nRatings of {split}: {', '.join(f'{k}: {100 * v:.1f} %' for k, v in by['rating_shares'].items())}."
        for split, by in statistics.items()
        if "rating_shares" in by
    ]
    return "\n".join(rows + shares)


def _provenance(meta: dict) -> list[str]:
    """Paragraphs on where the rows come from, how they were built, and what was left out."""
    task, generated = meta["task"], meta["source"] == "generate"
    out = [
        (GENERATED if generated else ORIGINS)[meta["dataset"]],
        f"Built by `scripts/build_dataset.py` of the AIR project from `{meta['source']}`, seed {meta['seed']},"
        f" content hash `{meta.get('content_hash', '')}`; options: `{json.dumps(meta['options'])}`.",
    ]
    if meta.get("skipped_rows"):
        count = sum(len(rows) for rows in meta["skipped_rows"].values())
        out.append(f"{count} unusable rows of the source were left out; `air_dataset.json` lists them.")
    if generated and task["name"] == "sudoku" and task["height"] <= 6:
        total = {4: "2", 6: "49"}.get(task["height"], "few")
        shared = (
            "A fifth of them is kept for the test split: no test grid, nor a symmetric copy, is in training."
            if meta["options"]["hold_out"] == "grids"
            else "The splits share solved grids; no test puzzle, nor a symmetric copy of one, is in training."
        )
        size = f"{task['height']}x{task['height']}"
        out.append(f"There are only {total} solved {size} grids up to symmetry. {shared}")
    return out

"""The data card (README.md of a data set repository): YAML that `load_dataset` reads, then prose with the numbers."""

from __future__ import annotations

import json

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

CITATION = """```bibtex
@article{wang2025hierarchical,
  title   = {Hierarchical Reasoning Model},
  author  = {Wang, Guan and others},
  journal = {arXiv preprint arXiv:2506.21734},
  year    = {2025}
}
```"""


def front_matter(meta: dict) -> dict:
    """The YAML header as a dict: configs, dataset_info, tags."""
    size = meta["task"]["height"] * meta["task"]["width"]
    cells = {"list": "uint8", "length": size}
    features = [
        {"name": "inputs", **cells},
        {"name": "labels", **cells},
        {"name": "rating", "dtype": "int32"},
        {"name": "source", "dtype": "string"},
        {"name": "puzzle_id", "dtype": "int32"},
        {"name": "group", "dtype": "int32"},
    ]
    configs, infos = [], []
    rows = 0
    for name, table in meta["configs"].items():
        data = [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in table["splits"]]
        config = {"config_name": name, "data_files": data}
        if name == meta["default_config"]:
            config["default"] = True
        configs.append(config)
        splits = [
            {"name": split, "num_bytes": info["rows"] * (2 * size + 12), "num_examples": info["rows"]}
            for split, info in table["splits"].items()
        ]
        infos.append(
            {
                "config_name": name,
                "features": features,
                "splits": splits,
                "download_size": sum(info["bytes"] for info in table["splits"].values()),
                "dataset_size": sum(split["num_bytes"] for split in splits),
            }
        )
        rows += sum(split["num_examples"] for split in splits)
    generated = meta["source"] == "generate"
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    return {
        "pretty_name": TITLES[meta["dataset"]] + (" (generated)" if generated else ""),
        "license": "apache-2.0" if generated else "unknown",
        "task_categories": ["other"],
        "tags": ["puzzle-solving", "reasoning", meta["task"]["name"], "air"],
        "size_categories": [next((label for bound, label in bounds if rows < bound), "n>10M")],
        "configs": configs,
        "dataset_info": infos,
    }


def yaml(value: object, indent: int = 0) -> str:
    """Block YAML of dicts, lists, texts, numbers and booleans; texts are quoted as JSON, which YAML contains."""
    pad = "  " * indent
    if isinstance(value, dict):
        return "\n".join(
            f"{pad}{key}:\n{yaml(item, indent + 1)}"
            if isinstance(item, (dict, list))
            else f"{pad}{key}: {_scalar(item)}"
            for key, item in value.items()
        )
    lines = []
    for item in value:  # type: ignore[attr-defined]
        if isinstance(item, dict):
            body = yaml(item, indent + 1)
            lines.append(f"{pad}- {body.lstrip()}")
        else:
            lines.append(f"{pad}- {_scalar(item)}")
    return "\n".join(lines)


def _scalar(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def card(meta: dict, repo_id: str | None = None) -> str:
    """README.md of a built data set (meta = the content of air_dataset.json)."""
    task, generated = meta["task"], meta["source"] == "generate"
    name = meta["default_config"]
    where = repo_id or "FOLDER_OR_HUB_ID"
    box = f" with {task['box_height']}x{task['box_width']} boxes" if task["name"] == "sudoku" else ""
    tokens = (
        f"PAD 0, blank 1, digits 1-{task['height']} are 2-{task['height'] + 1}"
        if task["name"] == "sudoku"
        else "PAD 0, `#` wall 1, space 2, `S` 3, `G` 4, `o` path 5"
    )
    lines = [
        "---",
        yaml(front_matter(meta)),
        "---",
        "",
        f"# {TITLES[meta['dataset']]}{' (generated)' if generated else ''}",
        "",
        f"{task['height']}x{task['width']} {'Sudokus' if task['name'] == 'sudoku' else 'mazes'}{box} as token grids,"
        " for training and evaluating AIR (Asymmetric Input Recurrence) models and their relatives.",
        "",
        "```python",
        "from datasets import load_dataset",
        f'data = load_dataset("{where}", "{name}")',
        "```",
        "",
        "| column | type | meaning |",
        "|---|---|---|",
        f"| `inputs` | uint8 x {task['height'] * task['width']} | the puzzle, row-major: {tokens} |",
        "| `labels` | same | the answer, every cell |",
        "| `rating` | int32 | difficulty, see below |",
        "| `source` | string | where the puzzle comes from |",
        "| `puzzle_id` | int32 | row of a model's puzzle embedding: 0 for all |",
        "| `group` | int32 | rows with one number are symmetric copies of one puzzle; its first row is the original |",
        "",
        "| configuration | split | rows | puzzles | fingerprint |",
        "|---|---|---|---|---|",
    ]
    for config, table in meta["configs"].items():
        for split, info in table["splits"].items():
            lines.append(f"| {config} | {split} | {info['rows']:,} | {info['puzzles']:,} | `{info['fingerprint']}` |")
    lines += ["", "## Statistics (of the puzzles, without copies)", "", "| split | quantity | mean | median | range |"]
    lines += ["|---|---|---|---|---|"]
    for split, statistics in meta["statistics"].items():
        for quantity, s in statistics.items():
            if quantity != "rating_shares":
                lines.append(f"| {split} | {quantity} | {s['mean']} | {s['median']} | {s['min']}-{s['max']} |")
    for split, statistics in meta["statistics"].items():
        if "rating_shares" in statistics:
            shares = ", ".join(
                f"{bucket}: {100 * share:.1f} %" for bucket, share in statistics["rating_shares"].items()
            )
            lines += ["", f"Ratings of {split}: {shares}."]
    lines += [
        "",
        "## Provenance",
        "",
        (GENERATED if generated else ORIGINS)[meta["dataset"]],
        "",
        f"Built by `scripts/build_dataset.py` of the AIR project from `{meta['source']}`, seed {meta['seed']},"
        f" content hash `{meta.get('content_hash', '')}`; options: `{json.dumps(meta['options'])}`.",
    ]
    if meta.get("skipped_rows"):
        count = sum(len(rows) for rows in meta["skipped_rows"].values())
        lines += ["", f"{count} unusable rows of the source were left out; `air_dataset.json` lists them."]
    if generated and task["name"] == "sudoku" and task["height"] <= 6:
        total = {4: "2", 6: "49"}.get(task["height"], "few")
        lines += [
            "",
            f"There are only {total} solved {task['height']}x{task['height']} grids up to symmetry. "
            + (
                "A fifth of them is kept for the test split: no test grid, nor a symmetric copy, is in training."
                if meta["options"]["hold_out"] == "grids"
                else "The splits share solved grids; no test puzzle, nor a symmetric copy of one, is in training."
            ),
        ]
    licence = (
        "Generated by code under Apache-2.0; the rows may be used under the same licence."
        if generated
        else "The source states no licence for its rows. This build changes their form only; ask the source before you"
        " publish it."
    )
    lines += ["", "## Licence", "", licence, "", "## How to cite", "", CITATION, ""]
    return "\n".join(lines)

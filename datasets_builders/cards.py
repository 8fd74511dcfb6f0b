"""The data card (README.md of a data set repository): YAML that `load_dataset` reads, then data_card.md filled in."""

import json
from pathlib import Path

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from air_model.datasets_builders.generate_sudoku import usual_difficulty

TITLES = {"sudoku-extreme": "Sudoku-Extreme", "maze-hard": "Maze-30x30-Hard"}

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def features(cells: int) -> datasets.Features:
    """The columns of every built table; a grid has `cells` cells."""
    grid = datasets.List(datasets.Value("uint8"), length=cells)
    number, text = datasets.Value("int32"), datasets.Value("string")
    return datasets.Features(
        {"inputs": grid, "labels": grid, "rating": number, "source": text, "puzzle_id": number, "group": number}
    )


def front_matter(meta: dict) -> DatasetCardData:
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
    return data


def _published(meta: dict) -> bool:
    """Whether the rows come from the Hub: USER/NAME@REVISION; a file or folder stands there by its name alone."""
    return "/" in meta["source"]


def _title(meta: dict) -> str:
    """The published set's name is for its own rows."""
    task, generated = meta["task"], meta["source"] == "generate"
    own = f"{task['height']}x{task['width']} {'Sudokus' if task['name'] == 'sudoku' else 'mazes'}"
    return (TITLES[meta["dataset"]] if _published(meta) else own) + " for AIR" + (" (generated)" if generated else "")


def card(meta: dict) -> str:
    """README.md of a built data set (meta = the content of air_dataset.json)."""
    filled = DatasetCard.from_template(
        front_matter(meta),
        template_path=Path(__file__).with_name("data_card.md"),
        **meta | {"options": json.dumps(meta["options"])},
        title=_title(meta),
        generated=meta["source"] == "generate",
        published=_published(meta),
        sudoku=meta["task"]["name"] == "sudoku",
        difficulty=meta["options"]["difficulty"]
        or usual_difficulty(meta["task"]["height"], meta["task"]["box_height"]),
        hold_out=meta["options"]["hold_out"],
        skipped=sum(len(rows) for rows in meta["skipped_rows"].values()),
    )
    return str(filled) + "\n"

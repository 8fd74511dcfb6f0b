"""`datasets` builders of both data sets, used directly (the Hub no longer runs data set scripts):

    builder = SudokuExtreme(config_name="1k", source="hub", cache_dir=...)   # or source="my.csv.gz", "generate"
    builder.download_and_prepare(num_proc=2)
    data = builder.as_dataset()                                               # DatasetDict: train, test
    data.push_to_hub("USER/NAME", "1k")

Configurations: 1k, 1k-aug-1000, full, generated; any field of PuzzleConfig may be overridden. The cache is keyed by a
hash of the options, the code and the source's bytes, so a change of any of them builds again. The rows are those of
`build.build`, byte for byte.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key

from air_model.datasets_builders.build import CONFIGS, BuildConfig, Options, build, content_hash
from air_model.datasets_builders.cards import features

VERSION = datasets.Version("1.0.0")
OPTIONS = [field.name for field in dataclasses.fields(Options)]


@dataclasses.dataclass
class PuzzleConfig(Options, datasets.BuilderConfig):
    """Options of build.BuildConfig; see there."""

    source: str = "hub"

    def build_config(self, dataset: str, **more: Any) -> BuildConfig:
        return BuildConfig(**{name: getattr(self, name) for name in OPTIONS} | more, dataset=dataset)


class _PuzzleBuilder(datasets.ArrowBasedBuilder):
    BUILDER_CONFIG_CLASS = PuzzleConfig
    VERSION = VERSION
    BUILDER_CONFIGS = [PuzzleConfig(name=name, version=VERSION, **options) for name, options in CONFIGS.items()]
    DEFAULT_CONFIG_NAME = "1k"
    DATASET = ""

    def __init__(self, *args: Any, **kwargs: Any):
        # Direct builders have no hash of their own, so a changed source or code would be served from the cache.
        if "hash" not in kwargs:
            preset = CONFIGS.get(kwargs.get("config_name") or self.DEFAULT_CONFIG_NAME, {})
            config = PuzzleConfig(**preset | {name: value for name, value in kwargs.items() if name in OPTIONS})
            kwargs["hash"] = content_hash(config.build_config(self.DATASET))
        super().__init__(*args, **kwargs)

    def _info(self) -> datasets.DatasetInfo:
        # The width of a row is known only once the source is read, so the features come with the first table.
        return datasets.DatasetInfo(description=f"{self.DATASET} puzzles as token grids for AIR models")

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        folder = Path(self._cache_dir_root) / "air_builds" / f"{self.DATASET}-{self.hash}"
        meta = build(self.config.build_config(self.DATASET, name=self.config.name.split("-seed")[0]), folder)
        table = meta["default_config"]
        self.info.features = features(meta["task"]["height"] * meta["task"]["width"])
        files = {
            split: sorted((folder / table).glob(f"{split}-*.parquet")) for split in meta["configs"][table]["splits"]
        }
        return [datasets.SplitGenerator(split, {"files": [*map(str, shards)]}) for split, shards in files.items()]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[Key, pa.Table]]:
        for number, file in enumerate(files):
            shard = pq.ParquetFile(file)
            for group in range(shard.num_row_groups):
                yield Key(number, group), shard.read_row_group(group)


class SudokuExtreme(_PuzzleBuilder):
    DATASET = "sudoku-extreme"


class MazeHard(_PuzzleBuilder):
    DATASET = "maze-hard"

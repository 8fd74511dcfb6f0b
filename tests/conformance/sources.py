"""transformers' own common tests, out of the source distribution of the installed version.

They are another project's files, so they are downloaded at test time into a cache folder and never committed. The
source distribution leaves out some neighbours that the common tests import; those get stubs here.
"""

import importlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import transformers

PACKAGE = "transformers_common_tests"
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    # What any PreTrainedConfig must carry through unchanged.
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 5, 'architectures': ['AirModel'], 'problem_type': 'regression',\n"
        "    'id2label': {0: 'label'}, 'label2id': {'label': 0}}\n"
    ),
}
FETCH_STUB = "def url_to_local_path(url):\n    return url\n"  # images and sounds, for processors that we are not


class Unavailable(Exception):
    """The source distribution could not be had; the message says why."""


def cache_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"air-conformance-{transformers.__version__}"


def download(folder: Path) -> Path:
    """The folder of the installed transformers' sdist, downloaded once.

    Raises:
        Unavailable: no network, or no such release on the index.
    """
    root = folder / f"transformers-{transformers.__version__}"
    if not (root / "complete").exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--no-build-isolation", f"transformers=={transformers.__version__}", "--dest", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        except subprocess.TimeoutExpired:
            raise Unavailable("downloading transformers' source distribution took more than four minutes") from None
        archives = sorted(folder.glob("transformers-*.tar.gz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["no archive"])[-1]
            raise Unavailable(f"the source distribution of transformers cannot be downloaded: {reason}")
        with tarfile.open(archives[-1]) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and m.name.startswith(f"{root.name}/tests/")]
            archive.extractall(folder, members=members, filter="data")
        (root / "tests").rename(root / PACKAGE)
        for name, text in STUBS.items():
            path = root / PACKAGE / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        (root / "fetch_hub_objects_for_ci.py").write_text(FETCH_STUB)
        (root / "src/transformers").mkdir(parents=True, exist_ok=True)
        (root / "complete").touch()
    return root


def load(module: str) -> ModuleType:
    """One of the common test modules, for example "test_modeling_common"."""
    folder = cache_folder()
    folder.mkdir(exist_ok=True)
    root = str(download(folder))
    if root not in sys.path:
        sys.path.append(root)
    return importlib.import_module(f"{PACKAGE}.{module}")

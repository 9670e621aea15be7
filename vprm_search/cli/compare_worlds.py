"""What `vprm-search compare` measures on: the tiny world, or problems in a JSONL file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vprm_search.compare.problems import Ground, Task
from vprm_search.errors import RecordError
from vprm_search.steps import normalise_text
from vprm_search.types import Problem

if TYPE_CHECKING:
    from vprm_search.types import ImageData

_KEPT_BYTES = 1 << 30  # of the searches that advance together; nothing is resumed here


@dataclass(frozen=True, slots=True)
class TinyProblems:
    """Rendered problems of the tiny world and the packaged models; families take turns."""

    problems: int = 500
    first_index: int = 0
    split: str = "validation"
    families: tuple[str, ...] = ("tiles", "tiles-long", "bars")
    temperature: float = 0.7

    @property
    def size(self) -> int:
        """The number of problems."""
        return self.problems

    def identity(self) -> dict[str, Any]:
        """Return the problems and the digests of the weights."""
        from vprm_search.tiny.weights import weights_path

        weights = {name: _digest(weights_path(name)) for name in ("policy", "prm")}
        return {"world": "tiny", **asdict(self), "families": list(self.families), **weights}

    def load(self, start: int, stop: int) -> Ground:
        """Draw and render the problems; load the models."""
        from vprm_search.images.normalise import normalise_image
        from vprm_search.scoring.engine.checkpoint import load_checkpoint
        from vprm_search.scoring.transformers_scorer import TransformersScorer
        from vprm_search.tiny.policy import TinyPolicy
        from vprm_search.tiny.problem import parse_answer
        from vprm_search.tiny.weights import weights_path
        from vprm_search.tiny.world import generate, render

        tasks = []
        for number in range(start, stop):
            turn, family = divmod(number, len(self.families))
            problem = generate(self.families[family], self.split, self.first_index + turn)
            image = normalise_image(render(problem))
            asked = Problem(problem.question, (image.digest,))
            tasks.append(Task(asked, (image,), problem.answer))
        policy = TinyPolicy.from_pretrained(weights_path("policy"), temperature=self.temperature)
        prm = load_checkpoint(weights_path("prm"), device="cpu")

        def new_scorer() -> TransformersScorer:
            return TransformersScorer(prm, prefix_cache_bytes=_KEPT_BYTES)

        return Ground(tasks, policy, new_scorer, parse_answer)


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class FileProblems:
    """Problems of a JSONL file with a policy and a scorer of one's own.

    A line is `{"question": …, "answer": …, "image": FILE or "images": [FILE, …]}`; a relative
    image path is taken from the file's folder.
    """

    path: Path
    lines: tuple[str, ...]
    policy: Mapping[str, Any]
    scorer: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        path: Path,
        policy: Mapping[str, Any],
        scorer: Mapping[str, Any],
        limit: int | None = None,
    ) -> FileProblems:
        """Read the file and check every line. Raises `RecordError` naming the first bad one."""
        try:
            lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{path}: cannot be read as text ({error})") from error
        for number, line in enumerate(lines, start=1):
            _parsed(line, f"{path}, problem {number}")
        if not lines:
            raise RecordError(f"{path} holds no problems; give one JSON object per line")
        return cls(path, tuple(lines[:limit]), policy, scorer)

    @property
    def size(self) -> int:
        """The number of problems."""
        return len(self.lines)

    def identity(self) -> dict[str, Any]:
        """Return the digest of the problems and the names of the models."""
        text = hashlib.sha256("\n".join(self.lines).encode()).hexdigest()
        return {"world": "file", "problems": text, "policy": self.policy, "scorer": self.scorer}

    def load(self, start: int, stop: int) -> Ground:
        """Read the images and load the models."""
        from vprm_search.cli.models import load_policy, load_scorer

        places = enumerate(self.lines[start:stop], start=start + 1)
        tasks = [self._task(line, f"{self.path}, problem {number}") for number, line in places]
        return Ground(tasks, load_policy(**self.policy), lambda: load_scorer(**self.scorer))

    def _task(self, line: str, where: str) -> Task:
        from vprm_search.images.normalise import check_is_path, normalise_image, read_image_file

        question, answer, names = _parsed(line, where)
        for name in names:
            check_is_path(name)  # a URL is refused as such, not as a file that is missing
        paths = [str(self.path.parent / name) for name in names]
        images: tuple[ImageData, ...] = tuple(
            normalise_image(read_image_file(path, max_bytes=100_000_000)) for path in paths
        )
        problem = Problem(normalise_text(question).strip(), tuple(image.digest for image in images))
        return Task(problem, images, answer)


def _parsed(line: str, where: str) -> tuple[str, str, list[str]]:
    """Return question, answer and image paths of a line. Raises `RecordError`."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise RecordError(f"{where}: expected a JSON object with 'question' and 'answer'")
    question, answer = record.get("question"), record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    images = record.get("images", [record["image"]] if "image" in record else [])
    texts = isinstance(question, str) and isinstance(answer, str) and bool(question and answer)
    if not texts or not isinstance(images, list) or not all(isinstance(i, str) for i in images):
        raise RecordError(
            f"{where}: expected 'question' and 'answer' as text, and 'image' as a path or 'images' "
            "as a list of paths"
        )
    return str(question), str(answer), images

"""Grade result files by VLMEvalKit's own functions, from a checkout of it.

    python tests/evaluate/vlmevalkit_grades.py CHECKOUT FILE.tsv … > grades.json

Needs pandas, openpyxl and what these functions import (timeout-decorator, latex2sympy2-extended);
what the rest of the package imports is not loaded. Each file's set is told by its name. Printed is,
by file, whether each row is right, by index. Nothing of VLMEvalKit is copied: it is run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import re
import sys
import types
from pathlib import Path
from typing import Any


def letters_listed(said: str) -> str:
    """Return the letters of a text that is a list of letters and nothing else, else "Z": a judge's
    reply where there is nothing to judge."""
    words = re.findall(r"\w+", said)
    found = [word for word in words if word != "and"]
    return (
        "".join(found) if found and all(len(w) == 1 and w in "ABCDEFGHIJ" for w in found) else "Z"
    )


def load_functions(checkout: Path) -> dict[str, Any]:
    """Return `read`, and by set what tells whether a row is right."""
    import pandas

    def module(name: str, **content: Any) -> None:
        made = types.ModuleType(name)
        made.__path__ = [str(checkout / name.replace(".", "/"))]  # type: ignore[attr-defined]
        made.__dict__.update(content)
        sys.modules[name] = made

    def load(path: str) -> Any:  # its load_tsv and load_xlsx, without what that module imports
        return pandas.read_excel(path) if path.endswith("x") else pandas.read_csv(path, sep="\t")

    def get_logger(name: str = "") -> logging.Logger:
        return logging.getLogger(name)

    sys.path.insert(0, str(checkout))
    nothing = dict.fromkeys(("d2df", "dump", "get_intermediate_file_path", "toliststr"))
    module("vlmeval")
    module("vlmeval.smp", load=load, get_logger=get_logger, **nothing)
    module("vlmeval.smp.file", load=load)
    module("vlmeval.smp.log", get_logger=get_logger)
    module("vlmeval.utils", track_progress_rich=None)
    matching = importlib.import_module("vlmeval.utils.matching_util")
    sys.modules["vlmeval.utils"].can_infer = matching.can_infer  # type: ignore[attr-defined]
    module("vlmeval.dataset")
    module("vlmeval.dataset.image_base", ImageBaseDataset=object)
    module("vlmeval.dataset.utils", build_judge=None)
    vision = importlib.import_module("vlmeval.dataset.utils.mathv")
    vista = importlib.import_module("vlmeval.dataset.utils.mathvista")
    dyna = importlib.import_module("vlmeval.dataset.dynamath")
    logic = importlib.import_module("vlmeval.dataset.utils.logicvista")

    def right(grader: Any) -> Any:
        # As its evaluation does without a judge: what is matched first is then compared.
        def of(line: Any) -> bool:
            first = grader.post_check(line, prefetch=True)
            line = line.copy()
            line["res"] = first or ""
            return bool(grader.post_check(line, prefetch=False))

        return of

    def by_letter(line: Any) -> bool:  # extract_answer_from_item without a model, then equality
        letters = [c for c in "ABCDEFGHIJ" if c in line and not pandas.isna(line[c])]
        said = matching.can_infer(line["prediction"], {c: line[c] for c in letters})
        return bool(said == line["answer"])

    class Judge:
        """Says the same of everything."""

        def __init__(self, reply: str) -> None:
            self._reply = reply

        def generate(self, prompt: str, **_: Any) -> str:
            return self._reply

    def dynamath(line: Any) -> bool:
        return bool(dyna.DynaMath_auxeval(Judge(""), line)["correct"])

    def logicvista(line: Any) -> bool:
        judge = Judge(letters_listed(str(line["prediction"])))
        with contextlib.redirect_stdout(sys.stderr):  # it prints the prompt
            return bool(logic.LogicVista_auxeval(judge, line)["hit"])

    return {"read": load, "mathvision": right(vision), "mathvista": right(vista),
            "mmmu": by_letter, "wemath": by_letter, "dynamath": dynamath,
            "logicvista": logicvista}  # fmt: skip


def grades(checkout: Path, files: list[Path]) -> dict[str, dict[str, bool]]:
    """Return, by file, whether each row is right, by index."""
    functions = load_functions(checkout)
    found = {}
    for file in files:
        rule = next(functions[name] for name in functions if name in file.name.lower())
        data = functions["read"](str(file))
        rows = [data.iloc[place] for place in range(len(data))]
        found[file.name] = {str(row["index"]): rule(row) for row in rows}
    return found


if __name__ == "__main__":
    print(json.dumps(grades(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]), indent=1))

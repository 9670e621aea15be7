"""Problems of a set as one HTML file with their pictures; no script, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape

from vprm_search.datasets.cells import MARK
from vprm_search.datasets.problem_set import Item, ProblemSet
from vprm_search.errors import ImageError
from vprm_search.report.view import printable
from vprm_search.types import ImageData

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "img{max-width:100%;max-height:24rem;display:block;margin:.5rem 0}"
    "pre{white-space:pre-wrap;font:inherit}dt{font-weight:600}dd{margin:0 0 .3rem 1rem}"
    "article{border-top:1px solid #999;padding:1rem 0}.missing{color:#a00}"
    "details{margin:.5rem 0}summary{font-weight:600}"
)


Said = Sequence[tuple[str, str]]
"""Texts that are shown below a problem, each under its heading."""


def problem_page(
    problems: ProblemSet,
    items: Sequence[Item],
    facts: Sequence[str] = (),
    said: Mapping[str, Said] | None = None,
) -> str:
    """Return a page that shows items as a model is asked them, with what is known of each.

    Args:
        problems: the set they are of.
        items: the items to show.
        facts: lines about the whole set.
        said: by the id of an item, what was said to it.
    """
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'"
    told = "".join(f"<li>{_text(fact)}</li>" for fact in facts)
    shown = "".join(_article(problems, item, (said or {}).get(item.id, ())) for item in items)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{_text(problems.path.name)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{_text(problems.path.name)}</h1><ul>{told}</ul>{shown}</body></html>\n"
    )


def _article(problems: ProblemSet, item: Item, said: Said) -> str:
    try:
        images: Sequence[ImageData | None] = problems.load(item).images
        missing = ""
    except ImageError as error:
        images, missing = [None] * len(item.pictures), f'<p class="missing">{_text(str(error))}</p>'
    pictures = list(map(_picture, images))
    parts = item.question.split(MARK)
    if len(parts) == 1:
        body = "".join(pictures) + f"<pre>{_text(item.question)}</pre>"
    else:
        behind = [*pictures, ""]
        body = "".join(f"<pre>{_text(part)}</pre>{picture}"
                       for part, picture in zip(parts, behind, strict=False))  # fmt: skip
    known = {
        "answer": " or ".join((item.answer, *item.also)),
        "answer type": item.answer_type,
        "letters": item.letters,
        "category": item.category,
        "group": " / ".join(filter(None, (item.group, item.variant))),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{_text(fact)}</dd>" for name, fact in known.items() if fact)
    texts = "".join(
        f"<details open><summary>{_text(heading)}</summary><pre>{_text(text)}</pre></details>"
        for heading, text in said
    )
    return f"<article><h2>{_text(item.id)}</h2>{missing}{body}<dl>{rows}</dl>{texts}</article>"


def _picture(image: ImageData | None) -> str:
    if image is None:
        return '<p class="missing">[picture]</p>'
    data = base64.b64encode(image.png).decode()
    return f'<img alt="picture" src="data:image/png;base64,{data}">'


def _text(text: str) -> str:
    return escape(printable(text, lines=True))

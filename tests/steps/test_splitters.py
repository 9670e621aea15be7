"""Steps of what real chat models write: by name, no block inside, nothing lost."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.fakes import HashScorer
from vprm_search.errors import ConfigError
from vprm_search.graph import create_verifier_node, run_search
from vprm_search.images import MemoryImageStore
from vprm_search.policy import ChatModelPolicy
from vprm_search.search import BestOfN, BestScore
from vprm_search.steps import (
    SPLITTERS,
    choose_splitter,
    join_steps,
    normalise_text,
    split_solution,
    split_steps,
    splitter_of,
)
from vprm_search.testing import ScriptedPolicy
from vprm_search.types import Proposal

CASES = Path(__file__).parent / "cases"
NAMES = ["auto", *SPLITTERS, "tokens:3"]


def case(number: int) -> str:
    (path,) = CASES.glob(f"{number}_*.txt")
    return normalise_text(path.read_bytes().decode())


# --- our reduced cases ----------------------------------------------------------------------------


def test_thinking_is_put_aside() -> None:
    assert split_steps(case(29)) == ["Red is 4.", "Answer: 4"]


def test_numbered_lines_are_steps_where_that_is_asked() -> None:
    assert len(split_solution(case(33))) == 1  # the reference's
    for split in ("auto", "numbered", "lines"):
        assert len(split_steps(case(33), splitter=split)) == 3
    assert choose_splitter(case(33)) == "numbered"


def test_display_maths_is_kept_whole_except_by_the_reference() -> None:
    assert split_steps(case(34)) == ["We have", "\\[\n\nx = 1\n\n\\]", "Answer: 1"]
    assert len(split_solution(case(34))) == 5


def test_a_line_of_blanks_is_blank() -> None:
    for split in ("blank-lines", "auto", "numbered", "headings", "lines", "sentences"):
        steps = split_steps(case(35), splitter=split)
        assert steps == ["We read red.", "We read blue.", "Answer: 7"]


@pytest.mark.parametrize("split", [*NAMES, split_solution, split_steps])
def test_many_paragraphs_of_thinking_lose_no_answer(split: object) -> None:
    policy = ScriptedPolicy(repeat(Proposal(case(36), "stop")))
    rules: dict[str, object] = {"strategy": BestOfN(2), "selector": BestScore(aggregate="mean")}
    run = run_search("How many?", policy=policy, scorer=HashScorer(), split=split, **rules)  # type: ignore[arg-type]
    assert run.result.answer == "3"
    assert {r.status for r in run.tree} == {"open", "finished"}


def test_many_paragraphs_without_thinking_are_merged() -> None:
    text = case(36).replace("<think>", "").replace("</think>", "")
    assert 1 < len(split_solution(text)) <= 12
    assert len(split_solution(text, max_steps=None)) <= 128
    assert len(split_steps(text)) <= 128


# --- what separates -------------------------------------------------------------------------------

BLANK = ["\n\n", "\n \n", "\n\t\n", "\r\n\r\n", "\r\n \r\n", "\r\r", "\n\u3000\n", "\n\xa0\n"]
BLANK += [
    "\x85\x85",
    "\u2028\u2028",
    "\u2029",
    "\n\u200b\n",
    "\n\ufeff\n",
    "\v\v",
    "\f\f",
    "\n\n\n \n",
]
BLANK += [
    "\u2028 \u2028",
    "\x85\t\n",
    "\n\u2009\u2003\n",
    "\n---\n\n",
    "\n\n***\n\n",
    "\n\n* * *\n\n",
]


@pytest.mark.parametrize("between", BLANK)
@pytest.mark.parametrize("split", ["blank-lines", "auto", "lines", "sentences"])
def test_every_blank_line_separates(between: str, split: str) -> None:
    text = between.join(["Red is 3.", "Blue is 4.", "Answer: 7"])
    if between == "\n---\n\n":  # a heading's underline, in Markdown
        return
    assert split_steps(text, splitter=split) == ["Red is 3.", "Blue is 4.", "Answer: 7"]


@pytest.mark.parametrize("between", ["\n", "\r\n", " ", "\x85", "\u2028", "\n> "])
def test_the_end_of_a_line_does_not(between: str) -> None:
    assert len(split_steps(f"Red is 3{between}and so on")) == 1


# --- what is not cut inside -----------------------------------------------------------------------

BLOCKS = [
    "\\[\n\nx = 1\n\n\\]",
    "\\[ x = 1\n\n+ 2 \\]",
    "$$\n\nx = 1\n\n$$",
    "Thus $$x\n\n= 1$$ holds.",
    "\\begin{align*}\n\na &= 1 \\\\[2pt]\n\nb &= 2\n\n\\end{align*}",
    "\\begin{cases}\n\n\\begin{matrix}\n\n1\n\n\\end{matrix}\n\n\\end{cases}",
    "\\[\n\\begin{aligned}\na\n\n\\\\[3mm]\n\nb\n\\end{aligned}\n\\]",
    "```python\nx = 1\n\ny = 2\n```",
    "~~~\na\n\n\\[\n\nb\n~~~",
    "````\n```\n\na\n\n```\n````",
    "   ```\na\n\nb\n   ```",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "| a | b |\n\n| 1 | 2 |",
    "- red is 3\n\n- blue is 4\n\n- green is 5",
    "\u2022 red\n\n\u2022 blue",
    "* red\n\n  which is high\n\n* blue",
    "1. Read:\n\n   - red is 3\n\n   - blue is 4",
    "<table>\n\n<tr><td>1</td></tr>\n\n</table>",
    "\\begin{tabular}{ll}\n\n1 & 2\n\n\\end{tabular}",
]


@pytest.mark.parametrize("block", BLOCKS)
def test_no_block_is_cut_inside(block: str) -> None:
    text = f"We read the chart.\n\n{block}\n\nAnswer: 7"
    assert split_steps(text) == ["We read the chart.", block.strip(), "Answer: 7"]
    assert block.strip() in "\n\n".join(split_steps(text, splitter="auto"))
    assert len(split_solution(text, max_steps=None)) == text.count("\n\n") + 1


@pytest.mark.parametrize(
    "opened", ["\\[ x = 1", "It costs $$ 5.", "\\begin{align} x", "```python", "<table>", "\\] x"]
)
def test_what_is_never_closed_swallows_nothing(opened: str) -> None:
    text = f"{opened}\n\nRed is 3.\n\nAnswer: 7"
    assert split_steps(text) == [opened, "Red is 3.", "Answer: 7"]
    assert len(split_steps(f"{opened}\n\nRed is 3.\n\n\\[\n\ny\n\n\\]\n\nAnswer: 7")) == 4


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("### Read\n\nRed is 3.\n\n### Add\n\n7.", ["### Read\n\nRed is 3.", "### Add\n\n7."]),
        ("## Solution\n\n### Step 1\n\nRed.", ["## Solution\n\n### Step 1\n\nRed."]),
        ("**Step 1: Read**\n\nRed.\n\nBlue.", ["**Step 1: Read**\n\nRed.", "Blue."]),
        ("Step 1:\n\nRed.\n\nStep 2:\n\nBlue.", ["Step 1:\n\nRed.", "Step 2:\n\nBlue."]),
        ("Title\n=====\n\nRed.", ["Title\n=====\n\nRed."]),
        ("**Final Answer**\n\n7", ["**Final Answer**\n\n7"]),
        ("Red.\n\n**Answer: 7**\n\nBye.", ["Red.", "**Answer: 7**", "Bye."]),
        ("Red.\n\n#### 7", ["Red.", "#### 7"]),
        ("**Red is 3.**\n\nBlue.", ["**Red is 3.**", "Blue."]),
        ("1. Read.\n\n2. Add.\n\n3. Answer: 7", ["1. Read.", "2. Add.", "3. Answer: 7"]),
        ("Red.\n\n### The end", ["Red.", "### The end"]),
        (
            "第一步：\n\n红色是3。\n\n第二步：\n\n答案：7",
            ["第一步：\n\n红色是3。", "第二步：\n\n答案：7"],
        ),
    ],
)
def test_a_heading_belongs_to_the_paragraph_after_it(text: str, steps: list[str]) -> None:
    assert split_steps(text) == steps


# --- by name --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "text", "steps"),
    [
        ("numbered", "Step 1: a\nStep 2: b\nAnswer: 7", ["Step 1: a", "Step 2: b", "Answer: 7"]),
        ("numbered", "1. a\n2. b\n   - c\n3) d", ["1. a", "2. b\n   - c", "3) d"]),
        ("numbered", "(1) a\n(2) b", ["(1) a", "(2) b"]),
        (
            "numbered",
            "**Step 1**: a\n\nmore\n\n**Step 2**: b",
            ["**Step 1**: a\n\nmore", "**Step 2**: b"],
        ),
        ("numbered", "Here are the steps:\n1. a\n2. b", ["Here are the steps:\n1. a", "2. b"]),
        (
            "numbered",
            "Red and blue are given.\n1. a\n2. b",
            ["Red and blue are given.", "1. a", "2. b"],
        ),
        (
            "numbered",
            "Step 1: we have\n1. x\n2. y\nStep 2: z",
            ["Step 1: we have\n1. x\n2. y", "Step 2: z"],
        ),
        ("numbered", "1. a is\n3.5 m\n2. b", ["1. a is\n3.5 m", "2. b"]),
        ("numbered", "步骤1：红\n步骤2：蓝\n答案：7", ["步骤1：红", "步骤2：蓝", "答案：7"]),
        ("numbered", "Étape 1 : a\nÉtape 2 : b", ["Étape 1 : a", "Étape 2 : b"]),
        ("numbered", "Step one: a\nStep two: b", ["Step one: a", "Step two: b"]),
        ("numbered", "no number\n\nat all", ["no number", "at all"]),
        (
            "headings",
            "### A\na\n\nb\n### B\nc\n\nAnswer: 7",
            ["### A\na\n\nb", "### B\nc", "Answer: 7"],
        ),
        ("headings", "# T\n## A\na\n## B\nb", ["# T\n## A\na", "## B\nb"]),
        ("headings", "**Read**\na\n\n**Add**\nb", ["**Read**\na", "**Add**\nb"]),
        ("lines", "Red is 3.\nBlue is 4.\n\nAnswer: 7", ["Red is 3.", "Blue is 4.", "Answer: 7"]),
        ("lines", "So\n\\[\nx\n\\]\nEnd.", ["So", "\\[\nx\n\\]", "End."]),
        ("sentences", "Red is 3. Blue is 4, e.g. high.", ["Red is 3.", "Blue is 4, e.g. high."]),
        (
            "sentences",
            "It is 3.5 m. So $a. B$ holds! Yes?",
            ["It is 3.5 m.", "So $a. B$ holds!", "Yes?"],
        ),
        ("sentences", "红色是3。蓝色是4。", ["红色是3。", "蓝色是4。"]),
        ("sentences", "1. Red is 3. See Fig. 2 there.", ["1. Red is 3.", "See Fig. 2 there."]),
        ("tokens:2", "aa bb cc dd e", ["aa bb", "cc dd", "e"]),
        ("tokens:3", "红色是蓝色", ["红色是", "蓝色"]),
        ("exact", "a\n\n\n b\n\n", ["a", "\n b", ""]),
    ],
)
def test_splitters_by_name(split: str, text: str, steps: list[str]) -> None:
    assert splitter_of(split)(text) == steps


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Step 1: a\nStep 2: b", "numbered"),
        ("1. a\n2. b\n3. c", "numbered"),
        ("1. **Read**: a\n\n2. **Add**: b\n\nAnswer: 7", "numbered"),
        ("### Step 1\na\n\n### Step 2\nb", "numbered"),
        ("### Read\na\n\n### Add\nb", "headings"),
        ("## A\n1. a\n2. b\n\n## B\n1. c\n2. d", "headings"),
        ("The facts:\n1. a\n2. b\n\nAdding them.\n\nAnswer: 7", "blank-lines"),
        ("a\n\nb", "blank-lines"),
        ("Red is 3.\nBlue is 4.\nAnswer: 7", "lines"),
        ("Red is 3. Blue is 4. So it is 7.", "sentences"),
        ("Red is 3.", "blank-lines"),
        ("", "blank-lines"),
    ],
)
def test_auto_looks_at_the_text(text: str, name: str) -> None:
    assert choose_splitter(text) == name
    assert splitter_of("auto")(text) == SPLITTERS[name](text)


WRITTEN = ["a", "Red is 3.", "\n", "\n\n", " ", "- b", "\n1. ", "\nStep 2: ", "\n### H", "\n\\["]
WRITTEN += ["\\]\n", "$$", "```\n", "\n---\n", "**B**\n\n", "\u2029", "\n \n", "Answer: 7", "\n  c"]
WRITTEN += ["。", ": ", "\n| a |"]
PIECES = st.sampled_from(WRITTEN)


@given(st.lists(PIECES, max_size=25).map("".join), st.sampled_from(NAMES))
@settings(max_examples=300)
def test_nothing_is_lost_but_white_space_and_rules(text: str, split: str) -> None:
    steps = split_steps(text, splitter=split)
    assert all(step == step.strip() and step for step in steps)

    def bare(said: str) -> str:
        return "".join(said.replace("---", "").split())

    assert bare("".join(steps)) == bare(text)


@given(st.lists(PIECES, max_size=25).map("".join))
@settings(max_examples=300)
def test_steps_are_cut_the_same_when_they_are_joined(text: str) -> None:
    steps = split_steps(text)
    again = split_steps(join_steps(steps))
    assert len(again) <= len(steps)
    assert split_steps(join_steps(again)) == again


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.sampled_from(NAMES))
def test_no_text_breaks_a_splitter(text: str, split: str) -> None:
    assert "".join("".join(splitter_of(split)(text)).split()) is not None
    assert isinstance(choose_splitter(text), str)


@pytest.mark.parametrize("split", ["magic", "tokens:", "tokens:0", "tokens:x", "", "Exact"])
def test_unknown_splitters_are_refused_wherever_they_are_named(split: str) -> None:
    policy = ScriptedPolicy(repeat(Proposal("a", "stop")))
    for refused in (
        lambda: splitter_of(split),
        lambda: run_search("Q", policy=policy, scorer=HashScorer(), split=split),
        lambda: create_verifier_node(HashScorer(), splitter=split, image_store=MemoryImageStore()),
        lambda: ChatModelPolicy(object(), split=split),
    ):
        with pytest.raises(ConfigError):
            refused()

"""The served model as a judge of its own steps, against its probabilities in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.real_models.corpus import recorded
from tests.real_models.server import self_judge
from vprm_search.scoring.judge_scorer import judge_messages
from vprm_search.steps import split_solution
from vprm_search.types import Problem, ScoreRequest

pytestmark = pytest.mark.slow


async def test_a_judge_reads_the_probabilities_that_the_model_gives(
    address: str, checkpoint: Path
) -> None:
    asked = [
        ScoreRequest(Problem(s.problem.question), tuple(split_solution(s.text, max_steps=2)))
        for s in recorded()[1][::200]
    ]
    results = await self_judge(address).score(asked)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for request, result in zip(asked, results, strict=True):
        for number, score in enumerate(result.scores, start=1):
            assert score.value is not None, score.reason
            expected = p_yes(model, tokenizer, request, number)
            assert score.value == pytest.approx(expected, abs=0.05)  # bfloat16 in two engines


def p_yes(model: Any, tokenizer: Any, request: ScoreRequest, number: int) -> float:
    """Return the probability of yes against no as the first word of the answer, in process."""
    messages = judge_messages(request, number, "word", ("yes", "no"))
    roles = {"system": "system", "human": "user"}
    chat = [{"role": roles[m.type], "content": m.text} for m in messages]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1].float()
    sums = {"yes": 0.0, "no": 0.0}
    for token, share in enumerate(logits.softmax(-1).tolist()):
        word = tokenizer.decode([token]).strip(" .,:*\n\"'").lower()
        if word in sums:
            sums[word] += share
    return sums["yes"] / (sums["yes"] + sums["no"])

"""Records what SmolLM2-135M-Instruct writes about our word problems: `solutions.jsonl.gz`.

    python -m tests.real_models.record tests/real_models/solutions.jsonl.gz

Twenty solutions of each of the thirty problems, asked for in four ways, as the server sent them.
The first line says what wrote them and how. It takes ten minutes on one core.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage

from tests.real_models.checkpoint import LICENCE, MODEL, WHEEL
from tests.real_models.server import chat_model, served
from tests.real_models.word_problems import WORD_PROBLEMS
from tests.serving.install_vllm import VLLM_VERSION, ensure_environment
from vprm_search.policy.prompts import DEFAULT_INSTRUCTION

ASKED = {
    "answer": DEFAULT_INSTRUCTION,
    "box": "Please reason step by step, and put your final answer within \\boxed{}.",
    "sentence": 'Explain how you get there, then end with "The final answer is".',
    "plain": "",
}
EACH = 5
SETTINGS = {"temperature": 0.8, "max_tokens": 256}


async def record(address: str) -> list[dict[str, Any]]:
    """Return all solutions, problem by problem."""
    model = chat_model(address, n=EACH, **SETTINGS)
    slots = asyncio.Semaphore(12)

    async def ask(number: int, asked: str) -> list[dict[str, Any]]:
        question = WORD_PROBLEMS[number].question
        text = f"{question}\n\n{ASKED[asked]}".rstrip()
        async with slots:
            started = time.monotonic()
            result = await model.agenerate([[HumanMessage(text)]])
        replies = result.generations[0]
        print(f"problem {number}, {asked}: {time.monotonic() - started:.0f} s", flush=True)
        return [
            {
                "problem": number,
                "asked": asked,
                "finish": (reply.generation_info or {})["finish_reason"],
                "text": reply.text,
            }
            for reply in replies
        ]

    rows = await asyncio.gather(*(ask(n, how) for n in range(len(WORD_PROBLEMS)) for how in ASKED))
    return [solution for row in rows for solution in row]


def main(target: Path) -> None:
    """Start a server, record, and write the file."""
    header = {
        "model": MODEL,
        "licence": LICENCE,
        "weights": f"{WHEEL}, Q4_1, run in bfloat16",
        "server": f"vLLM {VLLM_VERSION}, CPU",
        "settings": SETTINGS,
        "instructions": ASKED,
        "date": datetime.now(UTC).date().isoformat(),
    }
    with (
        tempfile.TemporaryDirectory() as scratch,
        served(ensure_environment(), Path(scratch) / "vllm.log") as address,
    ):
        solutions = asyncio.run(record(address))
    lines = [json.dumps(line, ensure_ascii=False) for line in (header, *solutions)]
    target.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

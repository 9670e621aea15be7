"""SmolLM2-135M-Instruct on a vLLM server, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from langchain_openai import ChatOpenAI

from tests.real_models.checkpoint import ensure_checkpoint
from tests.serving.plain_server import plain_server
from vprm_search.chat.calls import RetryRules
from vprm_search.scoring.judge_scorer import JudgeScorer

NAME = "smollm2"
CONTEXT = 2048
PATIENT = RetryRules(timeout_s=900, deadline_s=1800)
"""Other work runs on these cores too."""
FLAGS = (
    *("--dtype", "bfloat16", "--max-model-len", str(CONTEXT), "--max-num-seqs", "64"),
    # requests with a seed kill vLLM 0.32 on a CPU when their prompt is cut into chunks
    *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "16384"),
)


@contextmanager
def served(python: Path, log: Path) -> Iterator[str]:
    """Serve the model with the vLLM of the interpreter `python`; yield the address."""
    checkpoint = ensure_checkpoint(python)
    with plain_server(python, checkpoint, NAME, FLAGS, log, threads=1) as address:
        yield address


def chat_model(address: str, **options: Any) -> ChatOpenAI:
    """Return a client of the server at `address`, with connections for one event loop."""
    options.setdefault("http_async_client", httpx.AsyncClient(timeout=PATIENT.timeout_s))
    return ChatOpenAI(
        model=NAME, base_url=f"{address}/v1", api_key="none", max_retries=0, **options
    )


def self_judge(address: str) -> JudgeScorer:
    """Return the model at `address` as a judge, by the probabilities of its words."""
    model = chat_model(address, temperature=0)
    return JudgeScorer(model, mode="logprobs", max_concurrency=32, retry=PATIENT)

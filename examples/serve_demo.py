"""The production set-up on one machine: a vLLM server for each model, and a search that uses both.

The packaged tiny reward model is served with the scoring plugin, the packaged tiny policy as an
OpenAI server. Searches then run as they would against GPUs: `ChatOpenAI` proposes steps,
`VllmScorer` scores all candidates of a round in one request.

VLLM_PYTHON names an interpreter that has vLLM and the plugin (integrations/vllm); without it the
tests' environment is built first (about three minutes and 2.5 GB, once). The two servers take
about 6 GB of memory and a few minutes to start on a laptop.

Run: python examples/serve_demo.py [PROBLEMS]
"""

import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from langchain_openai import ChatOpenAI

from vprm_search import (
    BeamSearch,
    BestScore,
    ChatModelPolicy,
    VllmScorer,
    arun_search,
    image_message,
)
from vprm_search.cli.vllm_server import (
    ARCHITECTURE,
    ServeCommand,
    ServeOptions,
    ServerProcess,
    serve_command,
)
from vprm_search.tiny.weights import weights_path
from vprm_search.tiny.world import FAMILIES, TinyProblem, generate, render

START_TIMEOUT_S = 900
AT_ONCE = 8
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


def vllm_python() -> str:
    """Return an interpreter that has vLLM and the plugin."""
    if named := os.environ.get("VLLM_PYTHON"):
        return named
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.serving.install_vllm import ensure_environment

    return str(ensure_environment())


def free_port() -> int:
    """Return a port nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def prm_command(python: str, port: int) -> ServeCommand:
    """Return what `vprm-search serve` would start for the reward model."""
    options = ServeOptions(port=port, dtype="float32", enforce_eager=True, max_images=1)
    return serve_command(weights_path("prm"), options, python)


def policy_command(python: str, port: int) -> ServeCommand:
    """Return the command of the policy's OpenAI server: plain vLLM, no reward model flags."""
    argv = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(weights_path("policy"))]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "policy"]
    argv += ["--dtype", "float32", "--enforce-eager", "--limit-mm-per-prompt", '{"image":1}']
    # the packaged policy lacks a file that vLLM's own InternVL class wants; the plugin's does not
    argv += ["--hf-overrides", json.dumps({"architectures": [ARCHITECTURE]})]
    # on a CPU, vLLM 0.32 dies of a request with a seed whose prompt is cut into chunks
    argv += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "16384"]
    argv += ["--allowed-media-domains", "no-media.invalid"]
    return ServeCommand(tuple(argv), {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"})


@contextmanager
def running(name: str, command: ServeCommand, port: int, folder: Path) -> Iterator[str]:
    """Run a server, wait until it is healthy, yield its address, and end it."""
    address = f"http://127.0.0.1:{port}"
    process = ServerProcess(command, CPU, folder / f"{name}.log")
    try:
        seconds = process.wait_until_healthy(address, START_TIMEOUT_S, lambda _seconds, _line: None)
        print(f"{name:>6} server ready after {seconds:.0f} s at {address}", flush=True)
        yield address
    finally:
        process.stop()


async def search_all(problems: list[TinyProblem], policy_url: str, prm_url: str) -> int:
    """Search every problem, a few at a time; print each outcome and return how many are right."""
    model = ChatOpenAI(
        model="policy", base_url=f"{policy_url}/v1", api_key="none", temperature=0.7, max_retries=0
    )
    # this policy was never taught to follow an instruction
    policy = ChatModelPolicy(model, instruction="", max_tokens_per_step=48)
    turn = asyncio.Semaphore(AT_ONCE)
    right = 0

    async def solve(problem: TinyProblem, scorer: VllmScorer) -> None:
        nonlocal right
        async with turn:
            run = await arun_search(
                image_message(problem.question, render(problem)),
                policy=policy,
                scorer=scorer,
                strategy=BeamSearch(width=2, expand=3, max_depth=13),
                selector=BestScore(),
            )
        right += not run.result.fallback and run.result.answer == problem.answer
        said = f"{run.result.said} (score {run.result.score or 0:.3f})"
        print(f"{problem.question:<48} {said:<20} right: {problem.answer}", flush=True)

    async with VllmScorer(prm_url) as scorer:
        started = time.monotonic()
        await asyncio.gather(*(solve(problem, scorer) for problem in problems))
        seconds = time.monotonic() - started
        print(f"\n{len(problems)} searches in {seconds:.1f} s, route {scorer.route}")
        print("scoring requests:", json.dumps(scorer.meter.to_json()))
    return right


def main(count: int = 24) -> int:
    """Serve, search, stop; returns how many answers were right."""
    python = vllm_python()
    problems = [generate(FAMILIES[n % 3], "validation", 6000 + n) for n in range(count)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        urls = {}
        for name, command in (("prm", prm_command), ("policy", policy_command)):
            port = free_port()
            entered = running(name, command(python, port), port, Path(folder))
            urls[name] = servers.enter_context(entered)
        right = asyncio.run(search_all(problems, urls["policy"], urls["prm"]))
    print(f"{right} of {count} answers are right")
    return right


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

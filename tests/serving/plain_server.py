"""vLLM servers without our plugin: the reward model in vLLM's own class, and the policy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.serving.server import CPU_ENVIRONMENT, START_TIMEOUT_S, free_port
from vprm_search.cli.vllm_server import ARCHITECTURE, ServeCommand, ServerProcess
from vprm_search.tiny.weights import weights_path

POOLING = (
    *("--runner", "pooling", "--convert", "classify"),
    *("--pooler-config", '{"task":"token_classify"}'),
    *("--hf-overrides", '{"classifier_from_token":["-","+"],"method":"from_2_way_softmax"}'),
)
POLICY = (
    *("--hf-overrides", json.dumps({"architectures": [ARCHITECTURE]})),
    *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "16384"),
)
"""The policy has no file for vLLM's own video processor; the plugin's class needs none.

On a CPU, vLLM 0.32 dies of a request with a seed whose prompt is cut into chunks ("CPU Generator
does not use offset"): prompts are never cut here.
"""


@contextmanager
def plain_server(
    python: Path, checkpoint: Path, name: str, flags: Sequence[str], log: Path, threads: int = 1
) -> Iterator[str]:
    """Serve `checkpoint` on a free port, in float32 unless `flags` say else; yield the address."""
    port = free_port()
    argv = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(checkpoint)]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name]
    argv += ["--dtype", "float32", "--enforce-eager", *flags]
    argv += ["--limit-mm-per-prompt", '{"image":4,"video":0}']
    argv += ["--allowed-media-domains", "no-media.invalid"]
    secrets = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **CPU_ENVIRONMENT}
    secrets["OMP_NUM_THREADS"] = str(threads)
    address = f"http://127.0.0.1:{port}"
    process = ServerProcess(ServeCommand(tuple(argv)), secrets, log)
    try:
        process.wait_until_healthy(address, START_TIMEOUT_S, lambda seconds, line: None)
        yield address
    except BaseException:
        print("\n".join(process.last_lines(60)))
        raise
    finally:
        process.stop()


def checkpoint_for_stock_class(folder: Path) -> Path:
    """Copy the tiny reward model and add the file that vLLM's own InternVL class wants."""
    target = folder / "prm"
    shutil.copytree(weights_path("prm"), target)
    path = target / "processor_config.json"
    processor = json.loads(path.read_text())
    pictures = processor["image_processor"]
    processor["video_processor"] = {
        "video_processor_type": "InternVLVideoProcessor",
        **{name: pictures[name] for name in ("size", "image_mean", "image_std")},
    }
    path.write_text(json.dumps(processor))
    return target

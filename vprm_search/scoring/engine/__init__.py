"""The in-process engine: every token of every path is computed once.

A call goes through the files in this order: `call_queue` (many callers, one worker), `engine` (one
step: prompts, tree, what is kept, forward, read out), `images`, `token_tree`, `prefix_cache` over
`kv_blocks`, `forward` with `attention`, `readout`; `checkpoint` loads what all of them need.
"""

from __future__ import annotations

from vprm_search.errors import need


def describe_devices() -> list[str]:
    """Return one line per device torch can use, the CPU first.

    Raises `MissingDependencyError` without torch.
    """
    torch = need("torch", "local")
    lines = [f"cpu: {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        lines.append(f"cuda:{index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, {bf16}")
    return lines

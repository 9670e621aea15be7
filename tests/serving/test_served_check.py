"""`vprm-search check vllm:URL`: a real server against its own checkpoint, in this process."""

from __future__ import annotations

import json

import pytest

from tests.serving.server import PrmServer
from vprm_search.cli.app import main


@pytest.mark.slow
def test_a_server_agrees_with_the_checkpoint_it_serves(
    prm_server: PrmServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", f"vllm:{prm_server.base_url}", "--device", "cpu", "--json"])
    assert ended.value.code == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert [one["name"] for one in cases if one["trouble"]] == []
    assert sum(one["apart"] is not None for one in cases) >= len(cases) - 1  # one is too long

"""A server's memory: what it keeps is bounded, and beyond that a round leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.served_soak import KEPT_BYTES, MOST_MB, growth_mb, small_server, soak

pytestmark = pytest.mark.slow


async def test_new_pictures_leave_nothing_behind_once_the_caches_are_full(
    vllm_python: Path, tmp_path: Path
) -> None:
    server = small_server(vllm_python, tmp_path)
    try:
        server.ensure_running()
        rows = await soak(server, 350, 50)
    finally:
        server.stop()
    assert growth_mb(rows) < MOST_MB
    assert max(row["image_mb_kept"] for row in rows) <= KEPT_BYTES / 1e6 < rows[0]["image_mb_sent"]

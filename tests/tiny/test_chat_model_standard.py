"""LangChain's own unit tests for chat models, on the embedded policy."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_tests")

from langchain_tests.unit_tests import ChatModelUnitTests

from vprm_search.tiny.chat_model import TinyChatModel


class TestTinyChatModelStandard(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[TinyChatModel]:
        return TinyChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "vprm-tiny-policy"}

    @property
    def supports_image_inputs(self) -> bool:
        return True

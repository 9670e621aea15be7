"""A loopback server with OpenAI's manners where tools, forms and pictures are concerned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.json_server import json_server
from tests.policy.openai_server import Body, Server

Solve = Callable[[Body, int], str]


class ToolServer(Server):
    """Calls tools and fills in forms as it is told to; else says what `solve` says.

    It calls a tool if it must, or if it may and a human asks (tool results it answers in words).
    Arguments are made from their schema: a number of the question, what stands in quotes there, the
    name of the argument. From the second child on, numbers are one too high.
    """

    def answer(self, body: Body) -> Body:
        reply = super().answer(body)
        for choice in reply["choices"]:
            self._act(body, choice)
        return reply

    def _act(self, body: Body, choice: Body) -> None:
        asked = body["messages"][-1]
        tools = [tool["function"] for tool in body.get("tools") or []]
        wanted = body.get("tool_choice") or "auto"
        child = choice["index"]
        form = _form(body)
        if form is not None:
            choice["message"]["content"] = json.dumps(_filled(form, _text(asked), child))
        elif tools and (wanted != "auto" or asked["role"] == "user"):
            named = wanted["function"]["name"] if isinstance(wanted, dict) else tools[0]["name"]
            tool = next(tool for tool in tools if tool["name"] == named)
            args = _filled(tool.get("parameters") or {}, _text(asked), child)
            function = {"name": named, "arguments": json.dumps(args, ensure_ascii=False)}
            call = {"id": f"call_{child}", "type": "function", "function": function}
            choice["message"] |= {"content": None, "tool_calls": [call]}
            choice["finish_reason"] = "tool_calls"


def _form(body: Body) -> Body | None:
    """Return the schema of the form to fill in; one asked for in words names its keys there.

    'total#' is a key for a number.
    """
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        schema: Body = form["json_schema"]["schema"]
        return schema
    if form.get("type") != "json_object":
        return None
    keys = re.findall(r"'(\w+)(#?)'", _text(body["messages"][-1]))
    kinds = {key: {"type": "integer" if number else "string"} for key, number in keys}
    return {"properties": kinds}


def _filled(schema: Body, question: str, child: int) -> Body:
    numbers = [int(number) for number in re.findall(r"\d+", question)] or [3]
    quoted = re.search(r"'([^']+)'", question)
    words = [quoted[1] if quoted else "", *schema.get("properties", {})]
    made: dict[str, Any] = {}
    for place, (name, kind) in enumerate(schema.get("properties", {}).items()):
        if kind.get("type") == "integer":
            made[name] = numbers[min(place, len(numbers) - 1)] + (child > 0)
        else:
            made[name] = words[0] or name
    return made


def _text(message: Body) -> str:
    content = message["content"]
    if isinstance(content, str) or content is None:
        return content or ""
    return " ".join(part.get("text", "") for part in content)


@contextmanager
def serving(solve: Solve) -> Iterator[ToolServer]:
    """Run a server on a free port of this machine."""
    server = ToolServer(solve)
    with json_server(server.reply) as address:
        server.url = f"{address}/v1"
        try:
            yield server
        finally:
            server.closing.set()

"""Whose threads, runs, schedules and stored items are whose, under LangGraph's server.

`VPRM_SEARCH_SERVER_TENANTS`, `{"name": "key", …}`, or `VPRM_SEARCH_SERVER_KEY` say who may come in;
a client sends `Authorization: Bearer KEY`. What a client makes is marked with its name, and nobody
else finds it. Without either there is one client, and it is everybody.
"""

from typing import Any

from langgraph_sdk import Auth

from vprm_search.servers.access import Tenants

TENANTS = Tenants.from_environment("VPRM_SEARCH_SERVER_TENANTS", "VPRM_SEARCH_SERVER_KEY")
OWNER = "vprm_owner"

auth = Auth()


@auth.authenticate
async def authenticate(headers: dict[bytes, bytes]) -> Auth.types.MinimalUserDict:
    """Tell whose request it is. Raises 401 for nobody's."""
    name = TENANTS.find(headers.get(b"authorization"))
    if name is None:
        raise Auth.exceptions.HTTPException(401, "the API key is missing or wrong")
    return {"identity": f"tenant:{name}"}


@auth.on
async def nothing_else(ctx: Auth.types.AuthContext, value: Any) -> bool:
    """Refuse what is not named below: assistants are those of langgraph.json."""
    return False


@auth.on.assistants.read
@auth.on.assistants.search
async def assistants(ctx: Auth.types.AuthContext, value: Any) -> bool:
    """Let everybody see which graphs there are."""
    return True


@auth.on.threads
@auth.on.crons
async def own(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> Auth.types.FilterType:
    """Mark what is made, and find what is marked: threads, their states and runs, schedules."""
    if ctx.action in ("create", "create_run", "update"):
        marked = {**(value.get("metadata") or {}), OWNER: ctx.user.identity}
        if isinstance(value.get("metadata"), dict):
            value["metadata"].update(marked)  # the server goes on with this very object
        else:
            value["metadata"] = marked
    return {OWNER: ctx.user.identity}


@auth.on.store
async def own_items(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> None:
    """Put every client's items below a place of its own."""
    value["namespace"] = (ctx.user.identity, *(value.get("namespace") or ()))

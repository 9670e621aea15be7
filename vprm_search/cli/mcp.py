"""`vprm-search mcp`: the tools `verify_solution` and `solve` for MCP clients."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from vprm_search.cli import console, options
from vprm_search.errors import need


def mcp(
    *,
    policy: options.PolicyOptions,
    scorer: options.ScorerOptions,
    n: Annotated[int, typer.Option("--n", min=1, help="Size of a search of no named size.")] = 16,
    max_n: Annotated[int, typer.Option(min=1, help="Largest size a client may ask for.")] = 64,
    max_seconds: Annotated[float, typer.Option(min=1, help="Most seconds of a search.")] = 600,
    max_searches: Annotated[int, typer.Option(min=1, help="Searches side by side.")] = 4,
    http: Annotated[bool, typer.Option("--http", help="Serve over HTTP instead of stdio.")] = False,
    host: Annotated[str, typer.Option(help="--http: address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="--http: port.")] = 8765,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="VPRM_SEARCH_MCP_KEY", help="--http: a key let in; repeatable."),
    ] = None,
) -> None:
    """Serve verify_solution and solve to an MCP client: over stdio, or over HTTP at /mcp."""
    need("mcp", "mcp")
    from vprm_search.servers.mcp_server import McpLimits, create_mcp_server, http_app

    limits = options.checked(
        McpLimits, {"max_n": max_n, "max_seconds": max_seconds, "max_searches": max_searches}
    )
    server = create_mcp_server(
        options.load_policy(**policy.arguments),
        scorer.load(scorer.scorer),
        n=n,
        limits=limits,
    )
    if not http:
        server.run()
        return
    import uvicorn  # the SDK brings it

    console.ERR.print(Text(f"MCP at {console.address(host, port)}/mcp"), soft_wrap=True)
    app = http_app(server, limits, keys=tuple(api_key or ()))
    uvicorn.run(app, host=host, port=port, log_level="warning")

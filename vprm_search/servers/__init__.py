"""Searches and verdicts for clients that write no LangGraph code.

Each file is one protocol: `mcp_server` for MCP clients. `access` is what all of them ask of a
request over HTTP: a key, and a body of bounded size.
"""

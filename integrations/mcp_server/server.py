"""An MCP server over a served policy and a served reward model: set it up here, run it anywhere.

pip install "vprm-search[mcp,openai]"
python server.py            # stdio, as an MCP client starts it
"""

import os

from langchain_openai import ChatOpenAI

from vprm_search import VllmScorer
from vprm_search.servers.mcp_server import McpLimits, create_mcp_server

policy = ChatOpenAI(
    model=os.environ.get("POLICY_MODEL", "policy"),
    base_url=os.environ.get("POLICY_URL", "http://127.0.0.1:8001/v1"),
    api_key=os.environ.get("POLICY_KEY", "none"),
    temperature=0.7,
    max_retries=0,
)
scorer = VllmScorer(os.environ.get("SCORER_URL", "http://127.0.0.1:8000"))

if __name__ == "__main__":
    create_mcp_server(policy, scorer, n=16, limits=McpLimits(max_n=64, max_seconds=300)).run()

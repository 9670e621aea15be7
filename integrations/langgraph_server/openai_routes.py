"""`/v1/chat/completions` and `/v1/models` in the same server (`http.app` of langgraph.json)."""

from models import load_models

from vprm_search import GuidedChatModel
from vprm_search.servers.openai_server import create_openai_app

policy, scorer = load_models()
app = create_openai_app({"vprm-search": GuidedChatModel(policy=policy, scorer=scorer)})

"""`/v1/chat/completions` and `/v1/models` in the same server (`http.app` of langgraph.json).

They ask for the same keys as the server does (`auth.py`). What is around them bounds the bodies of
all requests of the server.
"""

from auth import TENANTS
from models import load_models
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from vprm_search import GuidedChatModel
from vprm_search.servers.access import AccessMiddleware, Tenants
from vprm_search.servers.openai_server import OpenAILimits, create_openai_app

policy, scorer = load_models()
limits = OpenAILimits()
searches = create_openai_app(
    {"vprm-search": GuidedChatModel(policy=policy, scorer=scorer)}, limits=limits
)
guarded = AccessMiddleware(searches, tenants=TENANTS, max_body_bytes=limits.max_body_bytes)
# as a route of an application without error handlers of its own: the server takes those over
app = Starlette(
    routes=[Route("/v1/{rest:path}", guarded)],
    middleware=[
        Middleware(AccessMiddleware, tenants=Tenants({}), max_body_bytes=limits.max_body_bytes)
    ],
)

"""What some doubles need to be talked to: a certificate for this machine, and Google's gRPC."""

from __future__ import annotations

import functools
import json
import ssl
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.json_server import Reply

Answer = Callable[[str, dict[str, Any]], Reply]
_VERTEX = "google.cloud.aiplatform.v1beta1.PredictionService"


@functools.cache
def _authority() -> tuple[Any, Any]:
    """Return an authority and a certificate of this machine by it, the same in this process."""
    import trustme

    authority = trustme.CA()
    return authority, authority.issue_cert("127.0.0.1", "localhost")


@functools.cache
def authority_file() -> Path:
    """Return the file of the authority, which a client has to trust."""
    path = Path(tempfile.mkdtemp(prefix="doubles-")) / "authority.pem"
    _authority()[0].cert_pem.write_to_path(path)
    return path


def server_context() -> ssl.SSLContext:
    """Return how a double speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _authority()[1].configure_cert(context)
    return context


@contextmanager
def vertex_server(answer: Answer) -> Iterator[str]:
    """Serve Vertex AI's `GenerateContent` by gRPC on a free port; yield the address.

    `answer` is given the request, and gives the reply, as Google's JSON. gRPC trusts the file that
    `GRPC_DEFAULT_SSL_ROOTS_FILE_PATH` names when a process first needs it.
    """
    import grpc
    from google.cloud.aiplatform_v1beta1 import types

    def generate(request: Any, context: Any) -> Any:
        told = types.GenerateContentRequest.to_json(request, including_default_value_fields=False)
        reply = answer(":generateContent", json.loads(told))
        if reply.status != 200:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, json.dumps(reply.body))
        body = json.dumps(reply.body)
        return types.GenerateContentResponse.from_json(body, ignore_unknown_fields=True)

    method = grpc.unary_unary_rpc_method_handler(
        generate, types.GenerateContentRequest.deserialize, types.GenerateContentResponse.serialize
    )
    server = grpc.server(ThreadPoolExecutor(2))
    handlers = grpc.method_handlers_generic_handler(_VERTEX, {"GenerateContent": method})
    server.add_generic_rpc_handlers((handlers,))
    certificate = _authority()[1]
    pair = (
        certificate.private_key_and_cert_chain_pem.bytes(),
        b"".join(part.bytes() for part in certificate.cert_chain_pems),
    )
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None)

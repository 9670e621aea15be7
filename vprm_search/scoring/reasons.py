"""Why a step has no score: the first word of every `StepScore.reason`, and what it means.

too_long        problem and solution exceed the model's context; final
bad_input       a text cannot be encoded safely, or there is no step
image_missing   the request does not hold the problem's images
bad_image       an image is damaged
out_of_memory   even this path alone does not fit into memory
not_finite      the model's logits are NaN or infinite
no_server       a scoring server could not be reached, or did not answer in time
server_error    a scoring server answered with an error that may pass, to the end
refused         a scoring server refused the request
bad_reply       a scoring server's reply is not what was agreed
no_score        a scoring server answered, without a score for this step
"""

from __future__ import annotations

TOO_LONG = "too_long"
BAD_INPUT = "bad_input"
IMAGE_MISSING = "image_missing"
BAD_IMAGE = "bad_image"
OUT_OF_MEMORY = "out_of_memory"
NOT_FINITE = "not_finite"
NO_SERVER = "no_server"
SERVER_ERROR = "server_error"
REFUSED = "refused"
BAD_REPLY = "bad_reply"
NO_SCORE = "no_score"


def is_permanent(reason: str) -> bool:
    """Whether asking again can never give a score: only then may the failure be remembered."""
    return reason.split(":", 1)[0] == TOO_LONG

"""Why a step has no score: the code before the colon of every `StepScore.reason`.

Programs look at the code alone (`code_of`); what follows it is for people and may change.

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

from vprm_search.types import ScoreRequest

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
CODES = frozenset(
    {
        *(TOO_LONG, BAD_INPUT, IMAGE_MISSING, BAD_IMAGE, OUT_OF_MEMORY, NOT_FINITE),
        *(NO_SERVER, SERVER_ERROR, REFUSED, BAD_REPLY, NO_SCORE),
    }
)
"""All of them."""
_REMEDIES = {
    TOO_LONG: "ask for shorter steps, or serve the model with a longer context",
    IMAGE_MISSING: "pass the problem's images",
    BAD_IMAGE: "replace the image",
    OUT_OF_MEMORY: "free memory, or score less at a time",
    NOT_FINITE: "load the reward model in a wider dtype",
    NO_SERVER: "check that the scoring server runs, and its address",
    SERVER_ERROR: "look at the scoring server's log",
    REFUSED: "check the key, and what the scoring server serves",
    BAD_REPLY: "check that the address is a scoring server's",
}


def code_of(reason: str) -> str:
    """Return the code of a reason, "" if it has none."""
    code = reason.split(":", 1)[0]
    return code if code in CODES else ""


def with_remedy(reason: str) -> str:
    """Return a reason with what may be done about it, as far as its code tells."""
    known = _REMEDIES.get(code_of(reason))
    return f"{reason}; {known}" if known else reason


def lack_of_images(request: ScoreRequest) -> str:
    """Return why a request that does not hold its problem's images has no score, "" if it does."""
    if tuple(image.digest for image in request.images) == request.problem.images:
        return ""
    return (
        f"{IMAGE_MISSING}: the problem names {len(request.problem.images)} images, the request "
        f"holds {len(request.images)}, or others; pass the problem's images"
    )


def is_permanent(reason: str) -> bool:
    """Whether asking again can never give a score: only then may the failure be remembered."""
    return code_of(reason) == TOO_LONG

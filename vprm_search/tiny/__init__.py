"""The tiny world: rendered visual-maths problems and the two packaged models that solve them.

`world` draws problems with exact answers, `chat_model` is the packaged policy as a LangChain chat
model (`policy` without LangChain), and `weights` finds the policy and the process reward model.
How they were trained is a worked example of the repository, `examples/tiny_models`.
"""

from vprm_search.lazy import names_in_stub

__getattr__, __dir__, __all__ = names_in_stub(__name__)

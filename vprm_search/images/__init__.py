"""Images: checked and normalised once, kept by digest, and shown to models in messages.

Nothing is ever fetched from an address. A name is loaded when it is first used: Pillow and
LangChain take a while.
"""

from vprm_search.lazy import names_in_stub

__getattr__, __dir__, __all__ = names_in_stub(__name__)

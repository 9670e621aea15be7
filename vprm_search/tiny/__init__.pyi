# Each is loaded when it is first used.
from vprm_search.tiny.chat_model import TinyChatModel as TinyChatModel
from vprm_search.tiny.weights import weights_path as weights_path
from vprm_search.tiny.world import generate as generate
from vprm_search.tiny.world import render as render

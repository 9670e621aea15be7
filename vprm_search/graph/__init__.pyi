# Each is loaded when it is first used.
from vprm_search.graph.blocking import cancellable as cancellable
from vprm_search.graph.light_tracers import without_pictures as without_pictures
from vprm_search.graph.review import Review as Review
from vprm_search.graph.run import SearchRun as SearchRun
from vprm_search.graph.run import arun_search as arun_search
from vprm_search.graph.run import run_jobs as run_jobs
from vprm_search.graph.run import run_search as run_search
from vprm_search.graph.search_graph import CompiledSearchGraph as CompiledSearchGraph
from vprm_search.graph.search_graph import SearchGraph as SearchGraph
from vprm_search.graph.search_graph import create_search_graph as create_search_graph
from vprm_search.graph.state import SearchState as SearchState
from vprm_search.graph.state import search_done as search_done
from vprm_search.graph.state import tree_of_state as tree_of_state
from vprm_search.graph.verifier import VerdictsState as VerdictsState
from vprm_search.graph.verifier import VerifierNode as VerifierNode
from vprm_search.graph.verifier import VerifierState as VerifierState
from vprm_search.graph.verifier import create_verifier_node as create_verifier_node

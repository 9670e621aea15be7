# Each is loaded when it is first used.
from vprm_search.agents.acting import ToolPolicy as ToolPolicy
from vprm_search.agents.decision_model import VPRMDecisionModel as VPRMDecisionModel
from vprm_search.agents.judging import create_async_vprm_evaluator as create_async_vprm_evaluator
from vprm_search.agents.judging import create_vprm_evaluator as create_vprm_evaluator
from vprm_search.agents.middleware import ProcessRewardMiddleware as ProcessRewardMiddleware
from vprm_search.agents.search import create_agent_search as create_agent_search
from vprm_search.agents.turns import StepOf as StepOf
from vprm_search.agents.turns import turn_as_step as turn_as_step

"""Process-reward-model guided search for multimodal LangGraph agents."""

"""A search in the place of a chat model: `GuidedChatModel`.

`chat_model` is what LangChain sees of it; `turns` is what one call of it is searched for (texts,
tool calls, filled-in forms); `messages` is what comes of it, whole and in pieces; `model_run` is
the run of that call: what is nested under it and told while it lasts; `policies` is what may
propose.
"""

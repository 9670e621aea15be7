"""Real chat clients of LangChain's provider packages, talking to a double on this machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients.secure import authority_file

KEY = "key-0123456789"
CLAUDE = "us.anthropic.claude-3-7-sonnet-20250219-v1:0"


@dataclass(frozen=True)
class Client:
    """One client: its name in the table, class, double, and how it is made.

    `length` and `filtered` are the provider's words for a cut and for a filtered reply, "" where
    the client does not hand them on. `by` is how it talks: "http", "https" or "grpc".
    """

    name: str
    path: str
    keys: str
    options: Callable[[str], dict[str, Any]]
    length: str = "length"
    filtered: str = "content_filter"
    by: str = "http"

    def make(self, url: str, **more: Any) -> Any:
        """Return the client, or skip the test where its package is not installed."""
        package, _, kind = self.path.rpartition(".")
        module = pytest.importorskip(package)
        options = {**self.options(url), **more}
        if kind == "ChatHuggingFace":
            endpoint = importlib.import_module(package).HuggingFaceEndpoint
            where = {"endpoint_url": f"{url}/v1", "huggingfacehub_api_token": KEY}
            options["llm"] = endpoint(**where)
        return getattr(module, kind)(**options)


def _openai(model: str, where: str = "base_url", path: str = "/v1", **more: Any) -> Any:
    return lambda url: {
        "model": model, where: url + path, "api_key": KEY, "max_retries": 0, **more
    }  # fmt: skip


def _vertex(url: str) -> dict[str, Any]:
    anybody = importlib.import_module("google.auth.credentials").AnonymousCredentials()
    return {
        "model": "gemini-2.5-flash",
        "project": "p",
        "location": "us-central1",
        "api_endpoint": url,
        "api_transport": "grpc_asyncio",  # what it takes by itself at Google's own address
        "credentials": anybody,
        "max_retries": 1,
    }


def _watsonx(url: str) -> dict[str, Any]:
    return {
        "model_id": "ibm/granite-4-h-small",
        "url": url,
        "token": KEY,
        "version": "5.2",
        "instance_id": "openshift",
        "project_id": "p",
        "validate_model": False,
        "verify": str(authority_file()),
    }


def _aws(model: str) -> Any:
    return lambda url: {
        "model": model,
        "endpoint_url": url,
        "region_name": "us-east-1",
        "aws_access_key_id": KEY,
        "aws_secret_access_key": KEY,
    }


CLIENTS = [
    Client("ChatOpenAI, vLLM or SGLang", "langchain_openai.ChatOpenAI", "vllm", _openai("tiny")),
    Client("ChatOpenAI, OpenAI", "langchain_openai.ChatOpenAI", "openai", _openai("gpt-4o")),
    Client(
        "ChatOpenAI, Responses API",
        "langchain_openai.ChatOpenAI",
        "responses",
        _openai("gpt-5", use_responses_api=True),
        "max_output_tokens",
    ),
    Client(
        "AzureChatOpenAI",
        "langchain_openai.AzureChatOpenAI",
        "openai",
        _openai("gpt-4o", "azure_endpoint", "", api_version="1", azure_deployment="d"),
    ),
    Client(
        "ChatAnthropic, to Claude 4.5",
        "langchain_anthropic.ChatAnthropic",
        "anthropic",
        _openai("claude-sonnet-4-5", path=""),
        "max_tokens",
        "refusal",
    ),
    Client(
        "ChatAnthropic, later",
        "langchain_anthropic.ChatAnthropic",
        "anthropic",
        _openai("claude-opus-4-6", path=""),
        "model_context_window_exceeded",
        "refusal",
    ),
    Client(
        "ChatGoogleGenerativeAI",
        "langchain_google_genai.ChatGoogleGenerativeAI",
        "gemini",
        lambda url: {
            "model": "gemini-2.5-flash",
            "base_url": url,
            "transport": "rest",
            "google_api_key": KEY,
            "max_retries": 1,
        },
        "MAX_TOKENS",
        "SAFETY",
    ),
    Client(
        "ChatBedrockConverse, Claude",
        "langchain_aws.ChatBedrockConverse",
        "converse",
        _aws(CLAUDE),
        "max_tokens",
        "guardrail_intervened",
    ),
    Client(
        "ChatBedrockConverse, others",
        "langchain_aws.ChatBedrockConverse",
        "converse",
        _aws("us.meta.llama4-scout-17b-instruct-v1:0"),
        "max_tokens",
        "content_filtered",
    ),
    Client(
        "ChatOllama",
        "langchain_ollama.ChatOllama",
        "ollama",
        lambda url: {"model": "llava", "base_url": url},
        filtered="load",
    ),
    Client(
        "ChatMistralAI",
        "langchain_mistralai.ChatMistralAI",
        "mistral",
        _openai("pixtral", "endpoint"),
        "model_length",
        "error",
    ),
    Client("ChatGroq", "langchain_groq.ChatGroq", "groq", _openai("llama", path="")),
    Client(
        "ChatFireworks", "langchain_fireworks.ChatFireworks", "fireworks", _openai("accounts/x")
    ),
    Client("ChatTogether", "langchain_together.ChatTogether", "openai", _openai("llama")),
    Client(
        "ChatDeepSeek",
        "langchain_deepseek.ChatDeepSeek",
        "deepseek",
        _openai("deepseek-chat"),
        filtered="insufficient_system_resource",
    ),
    Client("ChatXAI", "langchain_xai.ChatXAI", "openai", _openai("grok-2-vision")),
    Client(
        "ChatOpenRouter",
        "langchain_openrouter.ChatOpenRouter",
        "openrouter",
        _openai("x/y"),
        filtered="error",
    ),
    Client(
        "ChatPerplexity",
        "langchain_perplexity.ChatPerplexity",
        "perplexity",
        lambda url: {"model": "sonar", "pplx_api_key": KEY, "max_retries": 0},
        length="",
    ),
    Client(
        "ChatCohere",
        "langchain_cohere.ChatCohere",
        "cohere",
        lambda url: {"model": "command-a-vision", "base_url": url, "cohere_api_key": KEY},
        "MAX_TOKENS",
        "ERROR",
    ),
    Client(
        "ChatHuggingFace",
        "langchain_huggingface.ChatHuggingFace",
        "huggingface",
        lambda url: {"model_id": "m"},
    ),
    Client(
        "ChatNVIDIA",
        "langchain_nvidia_ai_endpoints.ChatNVIDIA",
        "openai",
        lambda url: {"model": "m", "base_url": f"{url}/v1", "api_key": KEY},
    ),
    Client(
        "ChatBaseten",
        "langchain_baseten.ChatBaseten",
        "deepseek",
        lambda url: {
            "model": "m",
            "model_url": f"{url}/v1",
            "baseten_api_key": KEY,
            "max_retries": 0,
        },
    ),
    Client(
        "ChatBedrock, Claude",
        "langchain_aws.ChatBedrock",
        "invoke",
        _aws(CLAUDE),
        "max_tokens",
        "refusal",
    ),
    Client(
        "ChatAnthropicBedrock",
        "langchain_aws.ChatAnthropicBedrock",
        "invoke",
        lambda url: {
            "model": CLAUDE,
            "region_name": "us-east-1",
            "aws_access_key_id": KEY,
            "aws_secret_access_key": KEY,
            "max_retries": 0,
        },
        "max_tokens",
        "refusal",
    ),
    Client(
        "ChatAnthropicMantle",
        "langchain_aws.ChatAnthropicMantle",
        "anthropic",
        lambda url: {
            "model": "anthropic.claude-sonnet-4-5",
            "base_url": url,
            "bedrock_api_key": KEY,
            "region_name": "us-east-1",
            "max_retries": 0,
        },
        "max_tokens",
        "refusal",
    ),
    Client(
        "ChatOpenAIMantle",
        "langchain_aws.ChatOpenAIMantle",
        "openai",
        lambda url: {
            "model": "openai.gpt-oss-120b",
            "base_url": f"{url}/v1",
            "bedrock_api_key": KEY,
            "region_name": "us-east-1",
            "max_retries": 0,
        },
    ),
    Client(
        "ChatAnthropicVertex",
        "langchain_google_vertexai.model_garden.ChatAnthropicVertex",
        "invoke",
        lambda url: {
            "model": "claude-3-7-sonnet",
            "project": "p",
            "location": "us-east5",
            "api_endpoint": url,
            "access_token": KEY,
            "max_retries": 1,
        },
        "max_tokens",
        "refusal",
    ),
    Client(
        "ChatVertexAI",
        "langchain_google_vertexai.ChatVertexAI",
        "gemini",
        _vertex,
        "MAX_TOKENS",
        "SAFETY",
        "grpc",
    ),
    Client(
        "ChatWatsonx",
        "langchain_ibm.ChatWatsonx",
        "watsonx",
        _watsonx,
        filtered="error",
        by="https",
    ),
    Client(
        "AzureAIOpenAIApiChatModel",
        "langchain_azure_ai.chat_models.AzureAIOpenAIApiChatModel",
        "openai",
        _openai("gpt-4o", "endpoint", "/openai/v1", credential=KEY),
    ),
    Client(
        "ChatMetaModel",
        "langchain_meta.ChatMetaModel",
        "responses",
        _openai("muse-spark-1.1"),
        "max_output_tokens",
    ),
    Client("ChatUpstage", "langchain_upstage.ChatUpstage", "openai", _openai("solar-pro2")),
    Client(
        "ChatLiteLLM, OpenAI",
        "langchain_litellm.ChatLiteLLM",
        "openai",
        _openai("openai/gpt-4o", "api_base"),
    ),
    Client(
        "ChatLiteLLM, Anthropic",
        "langchain_litellm.ChatLiteLLM",
        "anthropic",
        _openai("anthropic/claude-3-5-sonnet-20240620", "api_base", ""),
        "max_tokens",
        "refusal",
    ),
]

"""The vendors of the OpenAI dialect, one row each, made from their documents.

A field that a vendor has no knob for is ``None``: refused when a caller sets it, unless it asks for
what happens anyway. A field that a vendor renames has its name there. What a row does not say is
as at OpenAI. A vendor that answers 400 for a field by itself needs no entry.

``native`` is true for OpenAI and the built-in demo only. Of the others, the recorded answers of
Azure, Groq, Mistral, OpenRouter, Perplexity and Together are not valid OpenAI answers (an empty
``object``, ``on_demand``, thinking parts, ``provisioned``, ``chat.completion.done``, ``eos``);
Cerebras, Ollama, vLLM and Hugging Face's providers spell thoughts ``reasoning``; xAI leaves
reasoning out of the output tokens; Alibaba, DeepSeek, Moonshot and Z.ai take other fields than a
caller's body has. For the rest there is nothing recorded to decide by.
"""

from dataclasses import replace
from typing import Final

from services.router.providers.compatible_servers import LLAMACPP, LMSTUDIO, OLLAMA, TGI, VLLM
from services.router.providers.openai_row import (
    ALLOWED,
    AUTO,
    CALLS,
    FILTERED,
    LENGTH,
    NONE,
    ONE,
    REQUIRED,
    STOP,
    TEMPLATE,
    AudioForm,
    Compatible,
    FileForm,
    ThinkingKnobs,
    Thoughts,
    plain,
)

_SWITCH: Final = {
    "on": {"thinking": {"type": "enabled"}},
    "off": {"thinking": {"type": "disabled"}},
}
OPENAI: Final = Compatible(
    kind="openai",
    title="OpenAI",
    sources=(
        "https://platform.openai.com/docs/api-reference/chat/create",
        "https://platform.openai.com/docs/guides/reasoning",
    ),
    base_url="https://api.openai.com/v1",
    native=True,
    fields={"top_k": None, "min_p": None},
    tool_choices=frozenset({AUTO, NONE, REQUIRED, ONE, ALLOWED}),
    custom_tools=True,
    legacy_functions=True,
    developer_role=True,
    answer_fields=frozenset({"refusal", "annotations", "audio"}),
    # Models from gpt-5.1 on do not think unless an effort is said.
    thinking=ThinkingKnobs(on={"reasoning_effort": "medium"}, shown=False),
)

AZURE: Final = replace(
    OPENAI,
    kind="azure",
    title="Azure OpenAI",
    sources=(
        "https://learn.microsoft.com/en-us/azure/foundry/openai/api-version-lifecycle",
        "https://learn.microsoft.com/en-us/azure/foundry/openai/latest",
    ),
    # The resource's own address: https://NAME.openai.azure.com
    base_url="",
    path="/openai/v1/chat/completions",
    # Its list names what could be deployed; calls need the names of the deployments.
    models_path="",
    key_header="api-key",
    # https://learn.microsoft.com/en-us/azure/foundry/foundry-models/how-to/configure-entra-id
    entra_scope="https://cognitiveservices.azure.com/.default",
    # The first chunk of a stream has `object: ""`.
    native=False,
)

AZURE_DEPLOYMENTS: Final = replace(
    AZURE,
    kind="azure-deployments",
    title="Azure OpenAI (deployments)",
    # What came before /openai/v1: the deployment in the path, and the last version that is stable
    # (https://learn.microsoft.com/en-us/azure/foundry/openai/reference).
    sources=("https://learn.microsoft.com/en-us/azure/foundry/openai/reference",),
    path="/openai/deployments/{model}/chat/completions?api-version=2024-10-21",
)

DEEPSEEK: Final = Compatible(
    kind="deepseek",
    title="DeepSeek",
    sources=(
        "https://api-docs.deepseek.com/api/create-chat-completion",
        "https://api-docs.deepseek.com/guides/thinking_mode",
    ),
    base_url="https://api.deepseek.com",
    fields=plain(
        output_tokens_max="max_tokens",
        choices=None,
        seed=None,
        logit_bias=None,
        parallel_tool_calls=None,
        end_user=None,
    ),
    response_formats=frozenset({"text", "json_object"}),
    thinking=ThinkingKnobs(on=_SWITCH["on"], off=_SWITCH["off"]),
    thoughts=Thoughts.CONTENT,
    thoughts_required=True,
    failures=frozenset({"insufficient_system_resource"}),
)

XAI: Final = Compatible(
    kind="xai",
    title="xAI",
    sources=(
        "https://docs.x.ai/docs/api-reference#chat-completions",
        "https://docs.x.ai/docs/guides/reasoning",
    ),
    base_url="https://api.x.ai/v1",
    fields=plain("web_search_options_json", logit_bias=None),
    # Of 354 tokens in all with 12 in the prompt, 2 are completion_tokens and 340 reasoning_tokens.
    reasoning_beside=True,
)

MISTRAL: Final = Compatible(
    kind="mistral",
    title="Mistral",
    sources=(
        "https://docs.mistral.ai/api/endpoint/chat",
        "https://docs.mistral.ai/capabilities/reasoning",
        "https://docs.mistral.ai/capabilities/document_ai",
    ),
    base_url="https://api.mistral.ai/v1",
    fields=plain(
        "metadata",
        "prediction",
        "prompt_cache_key",
        "service_tier",
        "top_k",
        output_tokens_max="max_tokens",
        seed="random_seed",
        logit_bias=None,
        end_user=None,
    ),
    names=False,
    # "Tool call id … must be a-z, A-Z, 0-9, with a length of 9", says the API.
    call_id_chars=9,
    audio=AudioForm.STRING,
    files=FileForm.DOCUMENT_URL,
    thinking=ThinkingKnobs(on={"reasoning_effort": "high"}),
    thoughts=Thoughts.PARTS,
    # Usage is in the last chunk; members that it does not know are refused.
    stream_usage=False,
    finish_reasons={"model_length": LENGTH},
    failures=frozenset({"error"}),
    ignored=frozenset({"p", "index"}),
)

GROQ: Final = Compatible(
    kind="groq",
    title="Groq",
    sources=(
        "https://console.groq.com/docs/openai",
        "https://console.groq.com/docs/api-reference#chat-create",
        "https://console.groq.com/docs/reasoning",
    ),
    base_url="https://api.groq.com/openai/v1",
    fields=plain("service_tier", choices=None, logit_bias=None, logprobs=None, top_logprobs=None),
    names=False,
    thoughts=Thoughts.REASONING,
    # Usage comes unasked under `x_groq`.
    stream_usage=False,
    service_tiers={"default": "on_demand"},
)

TOGETHER: Final = Compatible(
    kind="together",
    title="Together",
    sources=(
        "https://docs.together.ai/reference/chat-completions-1",
        "https://docs.together.ai/docs/reasoning-overview",
    ),
    base_url="https://api.together.xyz/v1",
    fields=plain(
        "min_p",
        "top_k",
        output_tokens_max="max_tokens",
        # A number of alternatives there, and another form in the answer.
        logprobs=None,
        top_logprobs=None,
        end_user=None,
    ),
    video=True,
    thinking=ThinkingKnobs(
        on={"reasoning": {"enabled": True}}, off={"reasoning": {"enabled": False}}
    ),
    thoughts=Thoughts.REASONING,
    # Usage is in the last chunk, unasked.
    stream_usage=False,
    finish_reasons={"eos": STOP},
)

FIREWORKS: Final = Compatible(
    kind="fireworks",
    title="Fireworks",
    sources=(
        "https://docs.fireworks.ai/api-reference/post-chatcompletions",
        "https://docs.fireworks.ai/guides/reasoning",
    ),
    base_url="https://api.fireworks.ai/inference/v1",
    fields=plain("metadata", "min_p", "prediction", "prompt_cache_key", "service_tier", "top_k"),
    video=True,
    thoughts=Thoughts.CONTENT,
    # Usage is in the last chunk, unasked.
    stream_usage=False,
)

OPENROUTER: Final = Compatible(
    kind="openrouter",
    title="OpenRouter",
    sources=(
        "https://openrouter.ai/docs/api-reference/parameters",
        "https://openrouter.ai/docs/use-cases/reasoning-tokens",
        "https://openrouter.ai/docs/features/multimodal/pdfs",
        "https://openrouter.ai/docs/features/prompt-caching",
        "https://openrouter.ai/docs/api-reference/errors",
    ),
    base_url="https://openrouter.ai/api/v1",
    fields={
        "prompt_cache_retention": None,
        "safety_identifier": None,
        "store": None,
        "web_search_options_json": None,
    },
    developer_role=True,
    answer_fields=frozenset({"refusal", "annotations", "audio", "images"}),
    cache_control=True,
    files=FileForm.OBJECT_URL,
    video=True,
    thinking=ThinkingKnobs(
        effort="reasoning.effort",
        budget="reasoning.max_tokens",
        on={"reasoning": {"enabled": True}},
        off={"reasoning": {"effort": "none"}},
    ),
    thoughts=Thoughts.DETAILS,
    failures=frozenset({"error"}),
)

CEREBRAS: Final = Compatible(
    kind="cerebras",
    title="Cerebras",
    sources=(
        "https://inference-docs.cerebras.ai/api-reference/chat-completions",
        "https://inference-docs.cerebras.ai/capabilities/reasoning",
    ),
    base_url="https://api.cerebras.ai/v1",
    fields=plain("prediction", "prompt_cache_key", "service_tier"),
    developer_role=True,
    thoughts=Thoughts.REASONING,
)

PERPLEXITY: Final = Compatible(
    kind="perplexity",
    title="Perplexity",
    sources=(
        "https://docs.perplexity.ai/api-reference/chat-completions-post",
        "https://docs.perplexity.ai/guides/file-attachments",
    ),
    base_url="https://api.perplexity.ai",
    models_path="",
    fields=plain(
        "top_k",
        "web_search_options_json",
        output_tokens_max="max_tokens",
        seed=None,
        logit_bias=None,
        end_user=None,
    ),
    response_formats=frozenset({"text", "json_schema"}),
    tool_choices=frozenset({AUTO, NONE, REQUIRED}),
    names=False,
    files=FileForm.FILE_URL,
    video=True,
    thinking=ThinkingKnobs(off=None),
    # Usage is in every chunk, unasked.
    stream_usage=False,
    # The prices of sonar-deep-research name both, and its total is without reasoning.
    reasoning_beside=True,
)

ALIBABA: Final = Compatible(
    kind="alibaba",
    title="Alibaba",
    sources=(
        "https://www.alibabacloud.com/help/en/model-studio/qwen-api-via-openai-chat-completions",
        "https://www.alibabacloud.com/help/en/model-studio/deep-thinking",
        "https://www.alibabacloud.com/help/en/model-studio/context-cache",
    ),
    base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    fields=plain(
        "audio_output",
        "output_modalities",
        "top_k",
        output_tokens_max="max_tokens",
        logit_bias=None,
        end_user=None,
    ),
    cache_control=True,
    audio=AudioForm.OBJECT_URL,
    video=True,
    thinking=ThinkingKnobs(
        effort="",
        budget="thinking_budget",
        on={"enable_thinking": True},
        off={"enable_thinking": False},
    ),
)

MOONSHOT: Final = Compatible(
    kind="moonshot",
    title="Moonshot AI",
    sources=(
        "https://platform.moonshot.ai/docs/api/chat",
        "https://platform.moonshot.ai/docs/guide/use-kimi-k2-thinking-model",
    ),
    base_url="https://api.moonshot.ai/v1",
    fields=plain(
        "prompt_cache_key",
        "safety_identifier",
        seed=None,
        logit_bias=None,
        logprobs=None,
        top_logprobs=None,
        parallel_tool_calls=None,
        end_user=None,
    ),
    video=True,
    thinking=ThinkingKnobs(
        words={"minimal": "low", "medium": "high", "xhigh": "max"},
        on=_SWITCH["on"],
        off=_SWITCH["off"],
    ),
    thoughts=Thoughts.CONTENT,
    thoughts_required=True,
)

ZAI: Final = Compatible(
    kind="zai",
    title="Z.ai",
    sources=(
        "https://docs.z.ai/api-reference/llm/chat-completion",
        "https://docs.z.ai/guides/capabilities/thinking-mode",
    ),
    base_url="https://api.z.ai/api/paas/v4",
    fields=plain(
        output_tokens_max="max_tokens",
        end_user="user_id",
        choices=None,
        presence_penalty=None,
        frequency_penalty=None,
        logit_bias=None,
        logprobs=None,
        top_logprobs=None,
        parallel_tool_calls=None,
    ),
    response_formats=frozenset({"text", "json_object"}),
    tool_choices=frozenset({AUTO}),
    files=FileForm.FILE_URL,
    video=True,
    thinking=ThinkingKnobs(on=_SWITCH["on"], off=_SWITCH["off"]),
    thoughts=Thoughts.CONTENT,
    finish_reasons={"sensitive": FILTERED, "model_context_window_exceeded": LENGTH},
    failures=frozenset({"network_error"}),
)

NVIDIA: Final = Compatible(
    kind="nvidia",
    title="NVIDIA NIM",
    sources=(
        "https://docs.api.nvidia.com/nim/reference/llm-apis",
        "https://docs.nvidia.com/nim/large-language-models/latest/api-reference.html",
    ),
    base_url="https://integrate.api.nvidia.com/v1",
    fields=plain("min_p", "top_k", output_tokens_max="max_tokens"),
    video=True,
    thinking=ThinkingKnobs(on=TEMPLATE["on"], off=TEMPLATE["off"]),
)

DEEPINFRA: Final = Compatible(
    kind="deepinfra",
    title="DeepInfra",
    sources=("https://deepinfra.com/docs/openai_api",),
    base_url="https://api.deepinfra.com/v1/openai",
    fields=plain(
        "min_p", "prompt_cache_key", "service_tier", "top_k", output_tokens_max="max_tokens"
    ),
    video=True,
    thoughts=Thoughts.CONTENT,
)

SAMBANOVA: Final = Compatible(
    kind="sambanova",
    title="SambaNova",
    sources=("https://docs.sambanova.ai/docs/en/api-reference/endpoints/chat",),
    base_url="https://api.sambanova.ai/v1",
    fields=plain("top_k", end_user=None),
    audio=AudioForm.CONTENT,
    video=True,
    thinking=ThinkingKnobs(on=TEMPLATE["on"], off=TEMPLATE["off"]),
    thoughts=Thoughts.REASONING,
)

HUGGINGFACE: Final = Compatible(
    kind="huggingface",
    title="Hugging Face",
    sources=("https://huggingface.co/docs/inference-providers/tasks/chat-completion",),
    base_url="https://router.huggingface.co/v1",
    fields=plain(output_tokens_max="max_tokens", choices=None, end_user=None),
    # The words of the providers behind it.
    finish_reasons={"eos": STOP, "eos_token": STOP, "stop_sequence": STOP},
)

GITHUB: Final = Compatible(
    kind="github",
    title="GitHub Models",
    sources=(
        "https://docs.github.com/en/rest/models/inference",
        "https://docs.github.com/en/rest/models/catalog",
    ),
    base_url="https://models.github.ai",
    path="/inference/chat/completions",
    models_path="/catalog/models",
    headers=(("x-github-api-version", "2022-11-28"),),
    fields=plain(
        "output_modalities",
        output_tokens_max="max_tokens",
        choices=None,
        logit_bias=None,
        logprobs=None,
        top_logprobs=None,
        parallel_tool_calls=None,
        end_user=None,
    ),
    tool_choices=frozenset({AUTO, NONE, REQUIRED}),
    developer_role=True,
    thinking=None,
)

COMPATIBLE: Final = Compatible(
    kind="compatible",
    title="The provider",
    # Any server of the dialect: it is asked in the oldest words, which all know, and understood
    # in all words that the vendors here and the recorded relays use.
    fields={"output_tokens_max": "max_tokens"},
    video=True,
    thoughts=Thoughts.AS_GIVEN,
    thought_signatures=True,
    finish_reasons={
        "end_turn": STOP,
        "eos": STOP,
        "eos_token": STOP,
        "max_tokens": LENGTH,
        "model_length": LENGTH,
        "stop_sequence": STOP,
        "tool_use": CALLS,
    },
    failures=frozenset({"error"}),
    done_finishes=True,
)

DEMO: Final = replace(OPENAI, kind="demo", title="The demo", sources=(), base_url="")
"""The gateway's own, which speaks OpenAI's dialect as OpenAI does; its address is known when it
runs.
"""

ROWS: Final = (
    OPENAI,
    AZURE,
    AZURE_DEPLOYMENTS,
    DEEPSEEK,
    XAI,
    MISTRAL,
    GROQ,
    TOGETHER,
    FIREWORKS,
    OPENROUTER,
    CEREBRAS,
    PERPLEXITY,
    ALIBABA,
    MOONSHOT,
    ZAI,
    NVIDIA,
    DEEPINFRA,
    SAMBANOVA,
    HUGGINGFACE,
    TGI,
    GITHUB,
    OLLAMA,
    VLLM,
    LLAMACPP,
    LMSTUDIO,
    COMPATIBLE,
    DEMO,
)

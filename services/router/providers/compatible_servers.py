"""The servers of the OpenAI dialect that an operator runs, one row each, made from their documents.

They are as the vendors' rows in ``compatible.py``, which lists them all; their address is the
operator's machine, or an endpoint that is the operator's own.
"""

from typing import Final

from services.router.providers.openai_row import (
    AUTO,
    NONE,
    REQUIRED,
    STOP,
    TEMPLATE,
    Compatible,
    ThinkingKnobs,
    Thoughts,
    plain,
)

TGI: Final = Compatible(
    kind="tgi",
    title="Text Generation Inference",
    sources=(
        "https://huggingface.co/docs/text-generation-inference/messages_api",
        "https://huggingface.co/docs/inference-endpoints/index",
    ),
    # The endpoint's own address: https://NAME.REGION.aws.endpoints.huggingface.cloud
    base_url="",
    path="/v1/chat/completions",
    models_path="/v1/models",
    fields=plain(
        output_tokens_max="max_tokens",
        # Taken and not used, says its description.
        choices=None,
        logit_bias=None,
        parallel_tool_calls=None,
        end_user=None,
    ),
    response_formats=frozenset({"text", "json_schema"}),
    thinking=None,
    finish_reasons={"eos_token": STOP, "stop_sequence": STOP},
)

OLLAMA: Final = Compatible(
    kind="ollama",
    title="Ollama",
    sources=("https://docs.ollama.com/api/openai-compatibility",),
    base_url="http://localhost:11434/v1",
    fields=plain(
        output_tokens_max="max_tokens",
        choices=None,
        logit_bias=None,
        logprobs=None,
        top_logprobs=None,
        parallel_tool_calls=None,
        end_user=None,
    ),
    tool_choices=frozenset({AUTO}),
    video=True,
    thoughts=Thoughts.REASONING,
)

VLLM: Final = Compatible(
    kind="vllm",
    title="vLLM",
    sources=(
        "https://docs.vllm.ai/en/stable/serving/openai_compatible_server/",
        "https://docs.vllm.ai/en/stable/features/reasoning_outputs/",
    ),
    base_url="http://localhost:8000/v1",
    fields=plain("min_p", "top_k"),
    video=True,
    thinking=ThinkingKnobs(on=TEMPLATE["on"], off=TEMPLATE["off"]),
    # Called `reasoning_content` before version 0.11.
    thoughts=Thoughts.REASONING,
)

LLAMACPP: Final = Compatible(
    kind="llamacpp",
    title="llama.cpp",
    sources=("https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",),
    base_url="http://localhost:8080/v1",
    fields=plain("min_p", "top_k", output_tokens_max="max_tokens", end_user=None),
    # A choice of one tool by name is silently taken for `auto`.
    tool_choices=frozenset({AUTO, NONE, REQUIRED}),
    thinking=ThinkingKnobs(
        effort="chat_template_kwargs.reasoning_effort", on=TEMPLATE["on"], off=TEMPLATE["off"]
    ),
    thoughts=Thoughts.CONTENT,
)

LMSTUDIO: Final = Compatible(
    kind="lmstudio",
    title="LM Studio",
    sources=("https://lmstudio.ai/docs/developer/openai-compat/chat-completions",),
    base_url="http://localhost:1234/v1",
    fields=plain(
        "top_k",
        output_tokens_max="max_tokens",
        choices=None,
        logprobs=None,
        top_logprobs=None,
        parallel_tool_calls=None,
        end_user=None,
    ),
    tool_choices=frozenset({AUTO, NONE, REQUIRED}),
)

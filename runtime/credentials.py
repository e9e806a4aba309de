"""Where the keys of providers are found. They are never part of the settings, which get printed.

A setting names a variable or a file; the key itself is a :class:`Secret`, read where it is used.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from runtime.rules import ConfigError, Problem
from runtime.secrets import Secret, SecretError, read_secret
from runtime.settings import ProviderSettings

WELL_KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    # https://platform.openai.com/docs/libraries
    "openai": ("OPENAI_API_KEY",),
    # https://docs.anthropic.com/en/api/client-sdks
    "anthropic": ("ANTHROPIC_API_KEY",),
    # https://ai.google.dev/gemini-api/docs/api-key: with both, GOOGLE_API_KEY is taken
    "gemini": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    # https://docs.aws.amazon.com/bedrock/latest/userguide/api-keys-use.html and
    # https://docs.aws.amazon.com/sdkref/latest/guide/feature-static-credentials.html
    "bedrock": ("AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID"),
    # https://docs.cohere.com/docs/get-started-installation
    "cohere": ("CO_API_KEY", "COHERE_API_KEY"),
    # https://api-docs.deepseek.com
    "deepseek": ("DEEPSEEK_API_KEY",),
    # https://docs.x.ai/docs/tutorial
    "xai": ("XAI_API_KEY",),
    # https://docs.mistral.ai/getting-started/quickstart
    "mistral": ("MISTRAL_API_KEY",),
    # https://console.groq.com/docs/quickstart
    "groq": ("GROQ_API_KEY",),
    # https://docs.together.ai/docs/quickstart
    "together": ("TOGETHER_API_KEY",),
    # https://docs.fireworks.ai/getting-started/quickstart
    "fireworks": ("FIREWORKS_API_KEY",),
    # https://openrouter.ai/docs/quickstart
    "openrouter": ("OPENROUTER_API_KEY",),
    # https://inference-docs.cerebras.ai/quickstart
    "cerebras": ("CEREBRAS_API_KEY",),
    # https://docs.perplexity.ai/docs/sdk/overview
    "perplexity": ("PERPLEXITY_API_KEY",),
    # https://www.alibabacloud.com/help/en/model-studio/get-api-key
    "alibaba": ("DASHSCOPE_API_KEY",),
    # https://platform.moonshot.ai/docs/overview
    "moonshot": ("MOONSHOT_API_KEY",),
    # https://docs.z.ai/guides/develop/python/introduction
    "zai": ("ZAI_API_KEY",),
    # https://docs.api.nvidia.com/nim/reference
    "nvidia": ("NVIDIA_API_KEY",),
    # https://deepinfra.com/docs/openai_api
    "deepinfra": ("DEEPINFRA_API_KEY", "DEEPINFRA_TOKEN"),
    # https://docs.sambanova.ai/docs/en/integrations/vercel
    "sambanova": ("SAMBANOVA_API_KEY",),
    # https://huggingface.co/docs/inference-providers/index
    "huggingface": ("HF_TOKEN",),
    # https://replicate.com/docs/reference/http#authentication
    "replicate": ("REPLICATE_API_TOKEN",),
    # Not GITHUB_TOKEN: machines that run workflows set it for other ends.
    "github": ("GITHUB_MODELS_TOKEN",),
}
"""Variables that vendors' own documents tell people to set, by kind of provider, the first that
is set winning. A provider of that kind and name exists by itself when one is.
"""

_OF_OTHER_ENDS: Final = frozenset({"AWS_ACCESS_KEY_ID"})
"""Variables that machines have for other ends as well: a provider that is configured takes them,
none exists because of them."""

_AWS_KEYS: Final[Mapping[str, str]] = {
    "AccessKeyId": "AWS_ACCESS_KEY_ID",
    "SecretAccessKey": "AWS_SECRET_ACCESS_KEY",
    "SessionToken": "AWS_SESSION_TOKEN",
}
"""A credential of several variables becomes one secret: a JSON object in the shape that
``aws configure export-credentials`` prints, which a file may hold as well. A session token is only
part of a temporary one."""

_REGIONS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    # https://docs.aws.amazon.com/sdkref/latest/guide/feature-region.html and
    # https://docs.aws.amazon.com/general/latest/gr/bedrock.html
    "bedrock": (("AWS_REGION", "AWS_DEFAULT_REGION"), "https://bedrock-runtime.{}.amazonaws.com"),
}
"""Kinds with an address in every region: the variables that name the region, and the address."""

_AZURE_IDENTITY: Final[Mapping[str, str]] = {
    "tenant_id": "AZURE_TENANT_ID",
    "client_id": "AZURE_CLIENT_ID",
    "client_secret": "AZURE_CLIENT_SECRET",
    "federated_token_file": "AZURE_FEDERATED_TOKEN_FILE",
    "authority": "AZURE_AUTHORITY_HOST",
}
"""An Entra identity in the variables that Azure's own libraries read, for a provider whose
``api_key_env`` is ``AZURE_CLIENT_ID``
(https://learn.microsoft.com/en-us/azure/developer/python/sdk/authentication/overview)."""

_GOOGLE_KEY_FILE: Final = "GOOGLE_APPLICATION_CREDENTIALS"
"""https://cloud.google.com/docs/authentication/application-default-credentials"""
_GOOGLE_PLACE: Final = ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION")
"""https://googleapis.github.io/python-genai/#create-a-client"""

_VERTEX: Final = "vertex"
_PROJECT: Final = re.compile(r"[a-z0-9][a-z0-9.:-]{1,60}")
_REGION: Final = re.compile(r"[a-z]{2}[a-z0-9-]{1,30}")


def credential(provider: ProviderSettings, environ: Mapping[str, str]) -> Secret | None:
    """The key that a provider is called with; ``None`` when it is configured without one.

    Raises ``ConfigError`` when the variable is empty, or the file is missing, empty or readable
    by others.
    """
    try:
        return _credential(provider, environ)
    except SecretError as error:
        where = f'provider "{provider.name}"'
        raise ConfigError([Problem(where=where, message=str(error))]) from None


def _credential(provider: ProviderSettings, environ: Mapping[str, str]) -> Secret | None:
    if provider.kind == "bedrock" and provider.api_key_env == _AWS_KEYS["AccessKeyId"]:
        keys = {
            member: _variable(name, environ)
            for member, name in _AWS_KEYS.items()
            if member != "SessionToken" or environ.get(name, "").strip()
        }
        return Secret(json.dumps(keys))
    if provider.api_key_env == _AZURE_IDENTITY["client_id"]:
        told = {member: environ.get(name, "") for member, name in _AZURE_IDENTITY.items()}
        if told["client_secret"]:
            del told["federated_token_file"]
        return Secret(json.dumps({member: text for member, text in told.items() if text}))
    if provider.api_key_env:
        return Secret(_variable(provider.api_key_env, environ))
    return read_secret(Path(provider.api_key_file)) if provider.api_key_file else None


def _variable(name: str, environ: Mapping[str, str]) -> str:
    text = environ.get(name, "").strip()
    if not text:
        raise SecretError(f"The environment variable {name} is not set.")
    if not text.isprintable():
        raise SecretError(f"The environment variable {name} is not one line.")
    return text


def well_known_providers(environ: Mapping[str, str]) -> Iterator[ProviderSettings]:
    """Providers that exist because their vendor's variable is set."""
    for kind in WELL_KNOWN:
        variable = _well_known_variable(kind, environ)
        place = _regional_place(kind, environ)
        if not variable or variable in _OF_OTHER_ENDS or (kind in _REGIONS and not place):
            continue
        yield ProviderSettings(name=kind, kind=kind, api_key_env=variable, base_url=place)


def _well_known_variable(kind: str, environ: Mapping[str, str]) -> str:
    names = WELL_KNOWN.get(kind, ())
    return next((name for name in names if environ.get(name, "").strip()), "")


def completed(provider: ProviderSettings, environ: Mapping[str, str]) -> ProviderSettings:
    """The provider with its vendor's own variable when it names no key, and with its region's
    address when it names none.

    Never a variable together with a ``base_url``: a vendor's key does not go to another address
    unasked.
    """
    key, file = provider.api_key_env, provider.api_key_file
    if not (provider.base_url or key or file or provider.credential):
        key = _well_known_variable(provider.kind, environ)
        if provider.kind == _VERTEX:
            file = environ.get(_GOOGLE_KEY_FILE, "").strip()
    place = provider.base_url or _regional_place(provider.kind, environ)
    return replace(provider, api_key_env=key, api_key_file=file, base_url=place)


def missing_credential(provider: ProviderSettings, environ: Mapping[str, str]) -> str | None:
    """What is wrong with a provider's key: it is named but not there, or the vendor needs one and
    nobody names it. ``None`` when nothing is.
    """
    if provider.credential:
        each = (missing_credential(provider.with_key_of(c), environ) for c in provider.credential)
        return next((complaint for complaint in each if complaint is not None), None)
    try:
        secret = _credential(provider, environ)
    except SecretError as error:
        return str(error)
    regional = _regional_place(provider.kind, environ)
    if provider.kind == _VERTEX and not (provider.base_url or regional):
        return f"a provider of kind vertex needs a place: set {' and '.join(_GOOGLE_PLACE)}"
    if provider.kind in _REGIONS and not provider.base_url:
        names = " or ".join(_REGIONS[provider.kind][0])
        return f"a provider of kind {provider.kind} needs a region: set {names}, or base_url"
    elsewhere = provider.base_url not in ("", regional)
    if secret is not None or elsewhere or provider.kind not in WELL_KNOWN:
        return None
    variables = " or ".join(WELL_KNOWN[provider.kind])
    return (
        f"a provider of kind {provider.kind} needs a key: set {variables}, or name another"
        " variable with api_key_env, or a file with api_key_file"
    )


def _regional_place(kind: str, environ: Mapping[str, str]) -> str:
    """The address of the kind in the environment's region; empty without one."""
    if kind == _VERTEX:
        return _vertex_place(*(environ.get(name, "").strip() for name in _GOOGLE_PLACE))
    names, address = _REGIONS.get(kind, ((), ""))
    regions = (environ.get(name, "").strip() for name in names)
    region = next(filter(None, regions), "")
    return address.format(region) if _REGION.fullmatch(region) else ""


def _vertex_place(project: str, location: str) -> str:
    """The address of a project's models in a location; ``global`` has no host of its own
    (https://cloud.google.com/vertex-ai/generative-ai/docs/learn/locations).
    """
    if not (_PROJECT.fullmatch(project) and _REGION.fullmatch(location)):
        return ""
    host = "" if location == "global" else f"{location}-"
    return f"https://{host}aiplatform.googleapis.com/v1/projects/{project}/locations/{location}"

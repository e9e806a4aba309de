"""Providers: what a ``[[provider]]`` may say, whose key it is called with, and who exists by
itself.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from runtime.config import WELL_KNOWN, ConfigError, ProviderSettings, Settings, credential, load
from runtime.secrets import Secret
from runtime.settings import KINDS

NO_ENVIRONMENT: Mapping[str, str] = {}
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes ``onegate.toml``."""

    def written(text: str) -> Path:
        path = tmp_path / "onegate.toml"
        path.write_text(text)
        return path

    return written


def _refused(path: Path, environ: Mapping[str, str] = NO_ENVIRONMENT) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ, {})
    return str(caught.value).replace(f"{path}:", "line ")


KEYED = "api_key_env = 'KEY'\n"


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("kind = 'groq'", "line 1: a provider needs name"),
        ("name = 'x'", "line 1: a provider needs kind"),
        ("name = 'Groq'\nkind = 'groq'", "line 2: provider.name must be 1 to 64 lower-case"),
        ("name = '-a'\nkind = 'groq'", "line 2: provider.name must be"),
        (f"name = '{'a' * 65}'\nkind = 'groq'", "line 2: provider.name must be"),
        ("name = 'a/b'\nkind = 'groq'", "line 2: provider.name must be"),
        ("name = 'a\\n'\nkind = 'groq'", "line 2: provider.name must be"),
        ("name = 'x'\nkind = 'grok'", "line 3: provider.kind must be one of openai, anthropic"),
        ("name = 'x'\nkind = 'grok'", 'did you mean "groq"?'),
        ("name = 'x'\nkind = 'groq'\napi_key = 'sk-1'", "line 4: there is no setting provider.api"),
        ("name = 'x'\nkind = 'groq'\nfree = 'no'", "line 4: provider.free must be true or false"),
        ("name = 'x'\nkind = 'groq'\nmodels = ['']", "line 4: provider.models must not be empty"),
        ("name = 'x'\nkind = 'compatible'", "line 1: a provider of kind compatible needs base_url"),
        ("name = 'x'\nkind = 'azure'", "line 1: a provider of kind azure needs base_url"),
        ("name = 'x'\nkind = 'groq'", "line 1: a provider of kind groq needs a key: set GROQ_API"),
        ("name = 'x'\nkind = 'gemini'", "set GOOGLE_API_KEY or GEMINI_API_KEY, or name another"),
        (
            "name = 'x'\nkind = 'groq'\napi_key_env = 'ABSENT'",
            "line 1: The environment variable AB",
        ),
        (
            "name = 'x'\nkind = 'groq'\napi_key_env = 'BLANK'",
            "line 1: The environment variable BLA",
        ),
        ("name = 'x'\nkind = 'groq'\napi_key_env = 'LINES'", "LINES is not one line"),
        (
            "name = 'x'\nkind = 'groq'\napi_key_file = '/absent'",
            "line 1: Cannot use the secret fil",
        ),
        (
            f"name = 'x'\nkind = 'groq'\n{KEYED}api_key_file = '/x'",
            "api_key_env or api_key_file, no",
        ),
        ("name = 'x'\nkind = 'groq'\napi_key_env = 'sk-ab 12'", "must be the name of a variable"),
    ],
)
def test_a_provider_that_is_not_understood_is_refused(
    write: Write, text: str, refusal: str
) -> None:
    environ = {"KEY": "k", "BLANK": " ", "LINES": "a\nb"}
    told = _refused(write(f"[[provider]]\n{text}\n"), environ)
    assert refusal in told
    assert "sk-" not in told


@pytest.mark.parametrize(
    ("base_url", "refusal"),
    [
        ("ftp://host/", "must start with https:// or http:// and name a host"),
        ("host/v1", "must start with"),
        ("https://", "must start with"),
        ("https:///v1", "must start with"),
        ("https://host:0/", "must start with"),
        ("https://host:99999/", "is not a URL"),
        ("https://[::1/", "is not a URL"),
        ("https://user:pass@host/v1", "must not hold a user or password"),
        ("https://user@host/v1", "must not hold a user or password"),
        ("https://@host/v1", "must not hold a user or password"),
        ("https://host/v1?key=1", "must not hold a query or a fragment"),
        ("https://host/v1?", "must not hold a query or a fragment"),
        ("https://host/v1#x", "must not hold a query or a fragment"),
        ("https://host#", "must not hold a query or a fragment"),
        ("https://host/a b", "must be plain ASCII"),
        ("https://host\\\\@evil/v1", "must "),
        ("https://hóst/v1", "must be plain ASCII"),
    ],
)
def test_a_base_url_that_could_lead_elsewhere_is_refused(
    write: Write, base_url: str, refusal: str
) -> None:
    text = f'[[provider]]\nname = "x"\nkind = "compatible"\nbase_url = "{base_url}"\n'
    told = _refused(write(text))
    assert f"line 4: provider.base_url {refusal}" in told
    assert "pass" not in told.replace("password", "")


@pytest.mark.parametrize(
    "base_url",
    [
        "http://127.0.0.1:8000/v1",
        "https://api.example.com",
        "http://[::1]:1/",
        "http://10.0.0.1/a/",
    ],
)
def test_a_base_url_may_be_private(write: Write, base_url: str) -> None:
    path = write(f"[[provider]]\nname = 'x'\nkind = 'compatible'\nbase_url = '{base_url}'\n")
    assert load(path, {}, {}).providers[0].base_url == base_url


def test_an_empty_base_url_is_the_vendor_s_own(write: Write) -> None:
    path = write("[[provider]]\nname = 'x'\nkind = 'groq'\nbase_url = ''\n")
    assert load(path, {"GROQ_API_KEY": "k"}, {}).providers[0].api_key_env == "GROQ_API_KEY"


def test_two_providers_cannot_share_a_name(write: Write) -> None:
    one = f"[[provider]]\nname = 'x'\nkind = 'groq'\n{KEYED}\n"
    assert 'line 7: there is a provider "x" already' in _refused(write(one * 2), {"KEY": "k"})


@pytest.mark.parametrize("text", ["[provider]\nname = 'x'", "provider = 5", "provider = ['x']"])
def test_providers_are_an_array_of_tables(write: Write, text: str) -> None:
    assert _refused(write(text)) == "line 1: providers are written as [[provider]] tables"


def test_a_process_that_calls_no_provider_needs_no_credential(write: Write) -> None:
    path = write("[[provider]]\nname = 'x'\nkind = 'groq'\napi_key_env = 'ABSENT'\n")
    loaded = load(path, {}, {}, check_credentials=False)
    assert loaded.providers == (ProviderSettings(name="x", kind="groq", api_key_env="ABSENT"),)


@pytest.mark.parametrize(
    ("variable", "kind"),
    [
        ("OPENAI_API_KEY", "openai"),
        ("ANTHROPIC_API_KEY", "anthropic"),
        ("GEMINI_API_KEY", "gemini"),
        ("GOOGLE_API_KEY", "gemini"),
        ("CO_API_KEY", "cohere"),
        ("COHERE_API_KEY", "cohere"),
        ("DEEPSEEK_API_KEY", "deepseek"),
        ("XAI_API_KEY", "xai"),
        ("MISTRAL_API_KEY", "mistral"),
        ("GROQ_API_KEY", "groq"),
        ("TOGETHER_API_KEY", "together"),
        ("FIREWORKS_API_KEY", "fireworks"),
        ("OPENROUTER_API_KEY", "openrouter"),
        ("CEREBRAS_API_KEY", "cerebras"),
        ("PERPLEXITY_API_KEY", "perplexity"),
        ("DASHSCOPE_API_KEY", "alibaba"),
        ("MOONSHOT_API_KEY", "moonshot"),
        ("ZAI_API_KEY", "zai"),
        ("NVIDIA_API_KEY", "nvidia"),
        ("DEEPINFRA_API_KEY", "deepinfra"),
        ("DEEPINFRA_TOKEN", "deepinfra"),
        ("SAMBANOVA_API_KEY", "sambanova"),
        ("HF_TOKEN", "huggingface"),
        ("REPLICATE_API_TOKEN", "replicate"),
        ("GITHUB_MODELS_TOKEN", "github"),
    ],
)
def test_a_vendor_s_variable_makes_a_provider(variable: str, kind: str) -> None:
    expected = ProviderSettings(name=kind, kind=kind, api_key_env=variable)
    assert load(None, {variable: "k"}, {}).providers == (expected,)
    assert load(None, {variable: " "}, {}).providers == ()


def test_every_well_known_variable_belongs_to_a_kind() -> None:
    assert set(WELL_KNOWN) <= set(KINDS)
    variables = [name for names in WELL_KNOWN.values() for name in names]
    assert len(variables) == len(set(variables))


def test_the_token_of_a_workflow_makes_no_provider() -> None:
    assert load(None, {"GITHUB_TOKEN": "ghs_x"}, {}).providers == ()


BEARER = {"AWS_BEARER_TOKEN_BEDROCK": "ABSK"}
ROLE = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s"}
OREGON = "https://bedrock-runtime.us-west-2.amazonaws.com"


def test_bedrock_s_own_key_makes_a_provider_where_a_region_is_named() -> None:
    expected = ProviderSettings(
        name="bedrock", kind="bedrock", api_key_env="AWS_BEARER_TOKEN_BEDROCK", base_url=OREGON
    )
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        assert load(None, BEARER | {name: "us-west-2"}, {}).providers == (expected,)
    assert load(None, BEARER, {}).providers == ()
    assert load(None, BEARER | {"AWS_REGION": "evil.example/"}, {}).providers == ()


def test_the_keys_that_machines_have_for_all_of_aws_make_no_provider() -> None:
    assert load(None, ROLE | {"AWS_REGION": "us-west-2"}, {}).providers == ()


def test_a_bedrock_provider_takes_the_keys_and_the_region_of_the_environment(write: Write) -> None:
    path = write("[[provider]]\nname = 'aws'\nkind = 'bedrock'\n")
    environ = ROLE | {"AWS_REGION": "us-west-2"}
    (provider,) = load(path, environ, {}).providers
    assert (provider.base_url, provider.api_key_env) == (OREGON, "AWS_ACCESS_KEY_ID")
    assert credential(provider, environ) == Secret(
        '{"AccessKeyId": "AKIA", "SecretAccessKey": "s"}'
    )
    temporary = environ | {"AWS_SESSION_TOKEN": "t"}
    assert credential(provider, temporary) == Secret(
        '{"AccessKeyId": "AKIA", "SecretAccessKey": "s", "SessionToken": "t"}'
    )
    both = environ | BEARER
    assert credential(load(path, both, {}).providers[0], both) == Secret("ABSK")


@pytest.mark.parametrize(
    ("environ", "refusal"),
    [
        (ROLE, "needs a region: set AWS_REGION or AWS_DEFAULT_REGION, or base_url"),
        ({"AWS_REGION": "us-west-2"}, "needs a key: set AWS_BEARER_TOKEN_BEDROCK or AWS_ACC"),
        (
            {"AWS_REGION": "us-west-2", "AWS_ACCESS_KEY_ID": "AKIA"},
            "The environment variable AWS_SECRET_ACCESS_KEY is not set",
        ),
    ],
)
def test_a_bedrock_provider_without_a_part_is_refused(
    write: Write, environ: Mapping[str, str], refusal: str
) -> None:
    told = _refused(write("[[provider]]\nname = 'aws'\nkind = 'bedrock'\n"), environ)
    assert refusal in told


def test_a_bedrock_provider_may_stand_behind_an_address_that_signs_by_itself(write: Write) -> None:
    path = write("[[provider]]\nname = 'aws'\nkind = 'bedrock'\nbase_url = 'http://proxy:1'\n")
    (provider,) = load(path, ROLE, {}).providers
    assert credential(provider, ROLE) is None


def test_google_s_own_order_decides_between_its_variables() -> None:
    environ = {"GEMINI_API_KEY": "a", "GOOGLE_API_KEY": "b"}
    (provider,) = load(None, environ, {}).providers
    assert credential(provider, environ) == Secret("b")


def test_a_configured_provider_takes_the_place_of_the_vendor_s(write: Write) -> None:
    path = write("[[provider]]\nname = 'groq'\nkind = 'groq'\napi_key_env = 'MINE'\n")
    environ = {"GROQ_API_KEY": "a", "MINE": "b", "XAI_API_KEY": "c"}
    assert load(path, environ, {}).providers == (
        ProviderSettings(name="groq", kind="groq", api_key_env="MINE"),
        ProviderSettings(name="xai", kind="xai", api_key_env="XAI_API_KEY"),
    )


def test_a_second_provider_of_a_kind_leaves_the_vendor_s(write: Write) -> None:
    path = write("[[provider]]\nname = 'groq-eu'\nkind = 'groq'\napi_key_env = 'EU'\n")
    loaded = load(path, {"GROQ_API_KEY": "a", "EU": "b"}, {})
    assert [provider.name for provider in loaded.providers] == ["groq-eu", "groq"]


def test_a_provider_without_a_key_of_its_own_uses_the_vendor_s(write: Write) -> None:
    path = write("[[provider]]\nname = 'claude'\nkind = 'anthropic'\n")
    loaded = load(path, {"ANTHROPIC_API_KEY": "k"}, {})
    assert loaded.providers[0].api_key_env == "ANTHROPIC_API_KEY"


def test_a_vendor_s_key_is_not_sent_to_another_address_unasked(write: Write) -> None:
    path = write("[[provider]]\nname = 'x'\nkind = 'openai'\nbase_url = 'http://h:1/v1'\n")
    environ = {"OPENAI_API_KEY": "k"}
    provider = load(path, environ, {}).providers[0]
    assert provider.api_key_env == ""
    assert credential(provider, environ) is None


def test_a_credential_comes_from_its_variable() -> None:
    provider = ProviderSettings(name="x", kind="groq", api_key_env="KEY")
    assert credential(provider, {"KEY": " sk-1\n"}) == Secret("sk-1")
    with pytest.raises(ConfigError, match='provider "x": The environment variable KEY is not set'):
        credential(provider, {})


def test_a_credential_comes_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-1\n")
    path.chmod(0o600)
    provider = ProviderSettings(name="x", kind="groq", api_key_file=str(path))
    assert credential(provider, {}) == Secret("sk-1")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        credential(provider, {})
    path.chmod(0o600)
    path.write_text(" \n")
    with pytest.raises(ConfigError, match="is empty"):
        credential(provider, {})


def test_a_provider_may_need_no_credential() -> None:
    assert credential(ProviderSettings(name="x", kind="ollama"), {}) is None


def test_settings_never_hold_a_key() -> None:
    environ = {"OPENAI_API_KEY": "sk-canary"}
    loaded = load(None, environ, {})
    assert isinstance(loaded, Settings)
    assert "canary" not in repr(loaded)


@pytest.mark.parametrize(
    ("location", "host"),
    [("global", "aiplatform"), ("europe-west4", "europe-west4-aiplatform")],
)
def test_a_vertex_provider_takes_project_place_and_key_file_of_the_environment(
    write: Write, tmp_path: Path, location: str, host: str
) -> None:
    key = tmp_path / "key.json"
    key.write_text('{\n  "type": "service_account"\n}\n')
    key.chmod(0o600)
    environ = {
        "GOOGLE_CLOUD_PROJECT": "acme",
        "GOOGLE_CLOUD_LOCATION": location,
        "GOOGLE_APPLICATION_CREDENTIALS": str(key),
    }
    path = write("[[provider]]\nname = 'v'\nkind = 'vertex'\n")
    (provider,) = load(path, environ, {}).providers
    base = f"https://{host}.googleapis.com/v1/projects/acme/locations/{location}"
    assert provider.base_url == base
    assert credential(provider, environ) == Secret('{"type":"service_account"}')


def test_a_vertex_provider_without_a_place_is_refused(write: Write) -> None:
    path = write("[[provider]]\nname = 'v'\nkind = 'vertex'\n")
    with pytest.raises(ConfigError, match="set GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION"):
        load(path, {"GOOGLE_CLOUD_PROJECT": "acme/../x", "GOOGLE_CLOUD_LOCATION": "global"}, {})


def test_an_entra_identity_is_taken_from_azure_s_variables(write: Write) -> None:
    path = write(
        "[[provider]]\nname = 'az'\nkind = 'azure'\nbase_url = 'https://x.openai.azure.com'\n"
        "api_key_env = 'AZURE_CLIENT_ID'\n"
    )
    environ = {
        "AZURE_TENANT_ID": "t",
        "AZURE_CLIENT_ID": "c",
        "AZURE_FEDERATED_TOKEN_FILE": "/var/run/token",
    }
    (provider,) = load(path, environ, {}).providers
    federated = '{"tenant_id": "t", "client_id": "c", "federated_token_file": "/var/run/token"}'
    assert credential(provider, environ) == Secret(federated)
    secret = environ | {"AZURE_CLIENT_SECRET": "s"}
    assert credential(provider, secret) == Secret(
        '{"tenant_id": "t", "client_id": "c", "client_secret": "s"}'
    )

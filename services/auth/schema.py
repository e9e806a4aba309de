"""The schema's later steps, as they were released: never edited, only followed by others."""

from typing import Final

_ID: Final = "VARCHAR(64) NOT NULL"
_OWN: Final = f"id VARCHAR(64) PRIMARY KEY, organization_id {_ID} REFERENCES organizations (id)"
_TEXT: Final = "TEXT NOT NULL"
_TIME: Final = "BIGINT NOT NULL"

ADMINISTRATION: Final = (
    "ALTER TABLE organizations ADD COLUMN retention VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE projects ADD COLUMN archived_at_us BIGINT",
    "ALTER TABLE projects ADD COLUMN residency VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE projects ADD COLUMN retention VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE projects ADD COLUMN model_mode VARCHAR(16) NOT NULL DEFAULT ''",
    "ALTER TABLE projects ADD COLUMN models TEXT NOT NULL DEFAULT '[]'",
    (
        f"CREATE TABLE service_accounts ({_OWN}, project_id {_ID} REFERENCES projects (id),"
        f" name {_TEXT}, role {_TEXT}, created_at_us {_TIME})"
    ),
    "CREATE INDEX service_accounts_by_project ON service_accounts (project_id, id)",
    (
        f"CREATE TABLE project_rate_limits ({_OWN}, project_id {_ID} REFERENCES projects (id),"
        f" model VARCHAR(200) NOT NULL, requests_per_minute BIGINT, tokens_per_minute BIGINT,"
        " images_per_minute BIGINT, audio_megabytes_per_minute BIGINT, requests_per_day BIGINT,"
        " batch_input_tokens_per_day BIGINT, UNIQUE (project_id, model))"
    ),
    "CREATE INDEX keys_by_principal ON keys (principal_id)",
)
"""Service accounts, and what a project's keys are held to."""

PEOPLE: Final = (
    (
        f"CREATE TABLE users ({_OWN}, email VARCHAR(320) NOT NULL, name {_TEXT}, role {_TEXT},"
        f" developer_persona {_TEXT}, technical_level {_TEXT}, created_at_us {_TIME},"
        " UNIQUE (organization_id, email))"
    ),
    (
        f"CREATE TABLE project_users ({_OWN}, project_id {_ID} REFERENCES projects (id),"
        f" user_id {_ID} REFERENCES users (id), role {_TEXT}, created_at_us {_TIME},"
        " UNIQUE (project_id, user_id))"
    ),
    "CREATE INDEX project_users_by_user ON project_users (user_id)",
    (
        f"CREATE TABLE invites ({_OWN}, email VARCHAR(320) NOT NULL, role {_TEXT},"
        f" projects {_TEXT}, created_at_us {_TIME}, expires_at_us {_TIME}, accepted_at_us BIGINT)"
    ),
    "CREATE INDEX invites_by_organization ON invites (organization_id, email)",
    f"CREATE TABLE user_groups ({_OWN}, name {_TEXT}, created_at_us {_TIME})",
    "CREATE INDEX user_groups_by_organization ON user_groups (organization_id, id)",
    (
        f"CREATE TABLE group_users ({_OWN}, group_id {_ID} REFERENCES user_groups (id),"
        f" user_id {_ID} REFERENCES users (id), created_at_us {_TIME}, UNIQUE (group_id, user_id))"
    ),
    "CREATE INDEX group_users_by_user ON group_users (user_id)",
    (
        f"CREATE TABLE project_groups ({_OWN}, project_id {_ID} REFERENCES projects (id),"
        f" group_id {_ID} REFERENCES user_groups (id), role_id {_ID}, created_at_us {_TIME},"
        " UNIQUE (project_id, group_id))"
    ),
    "CREATE INDEX project_groups_by_group ON project_groups (group_id)",
    (
        f"CREATE TABLE roles ({_OWN}, project_id {_ID}, name VARCHAR(200) NOT NULL,"
        f" description {_TEXT}, permissions {_TEXT}, created_at_us {_TIME}, updated_at_us {_TIME},"
        " UNIQUE (organization_id, project_id, name))"
    ),
    (
        f"CREATE TABLE role_assignments ({_OWN}, project_id {_ID}, principal_id {_ID},"
        f" role_id {_ID}, created_at_us {_TIME}, UNIQUE (principal_id, project_id, role_id))"
    ),
    "CREATE INDEX role_assignments_by_role ON role_assignments (role_id)",
)
"""Users, invites, groups and roles."""

AUDIT: Final = (
    # An entry outlives what it is about, and may be about no organisation: it refers to none.
    (
        f"CREATE TABLE audit_events (id VARCHAR(64) PRIMARY KEY, sequence BIGINT NOT NULL UNIQUE,"
        f" organization_id {_ID}, project_id {_ID}, type {_ID}, effective_at_us {_TIME},"
        f" key_id {_ID}, user_id {_ID}, email VARCHAR(320) NOT NULL, address {_ID},"
        f" resource_id VARCHAR(256) NOT NULL, before_json {_TEXT}, after_json {_TEXT},"
        f" refusal {_ID}, mac {_ID})"
    ),
    "CREATE INDEX audit_events_by_organization ON audit_events (organization_id, id)",
    f"CREATE TABLE audit_heads (id VARCHAR(64) PRIMARY KEY, sequence {_TIME}, mac {_ID})",
)
"""The log of administration."""

KEY_LIFE: Final = (
    "ALTER TABLE keys ADD COLUMN disabled_at_us BIGINT",
    "ALTER TABLE keys ADD COLUMN last_used_at_us BIGINT",
    "ALTER TABLE keys ADD COLUMN rotated_at_us BIGINT",
    "ALTER TABLE projects ADD COLUMN key_lifetime_max_s BIGINT",
    "ALTER TABLE projects ADD COLUMN key_lifetime_s BIGINT",
    "ALTER TABLE organizations ADD COLUMN key_lifetime_max_s BIGINT",
    "ALTER TABLE organizations ADD COLUMN key_lifetime_s BIGINT",
    "ALTER TABLE organizations ADD COLUMN model_mode VARCHAR(16) NOT NULL DEFAULT ''",
    "ALTER TABLE organizations ADD COLUMN models TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE project_rate_limits ADD COLUMN tokens_per_day BIGINT",
    "ALTER TABLE project_rate_limits ADD COLUMN concurrent_calls BIGINT",
    (
        f"CREATE TABLE former_secrets ({_OWN}, key_id {_ID} REFERENCES keys (id),"
        f" mac VARCHAR(64) NOT NULL UNIQUE, redacted_value VARCHAR(32) NOT NULL,"
        f" created_at_us {_TIME}, ends_at_us {_TIME})"
    ),
    "CREATE INDEX former_secrets_by_key ON former_secrets (key_id)",
)
"""Rotation, disabling, last use, lifetimes, and limits and models of whole organisations."""

WATCHERS: Final = (
    (
        f"CREATE TABLE watchers (id VARCHAR(128) PRIMARY KEY, name VARCHAR(128) NOT NULL,"
        f" revision {_TIME}, trust_ms {_TIME}, refuses_by_us {_TIME})"
    ),
)
"""Routers and edges, and which changes each has confirmed."""

SIGN_IN: Final = (
    (
        f"CREATE TABLE user_identities ({_OWN}, user_id {_ID} REFERENCES users (id),"
        f" issuer VARCHAR(512) NOT NULL, subject VARCHAR(320) NOT NULL, created_at_us {_TIME},"
        " UNIQUE (organization_id, issuer, subject), UNIQUE (user_id, issuer))"
    ),
    (
        f"CREATE TABLE sign_ins ({_OWN}, challenge {_ID}, redirect_uri {_TEXT},"
        f" device_digest {_ID}, interval_s {_TIME}, poll_at_us {_TIME}, expires_at_us {_TIME})"
    ),
    f"CREATE TABLE sessions ({_OWN}, user_id {_ID}, created_at_us {_TIME})",
)
"""Who signs in through an identity provider."""

PROVIDERS: Final = (
    (
        f"CREATE TABLE providers (id VARCHAR(64) PRIMARY KEY, name VARCHAR(64) NOT NULL UNIQUE,"
        f" kind {_ID}, base_url {_TEXT}, models {_TEXT}, free BIGINT NOT NULL,"
        f" created_at_us {_TIME})"
    ),
    (
        "CREATE TABLE provider_credentials (id VARCHAR(64) PRIMARY KEY,"
        f" provider_id {_ID} REFERENCES providers (id), name {_ID}, weight BIGINT NOT NULL,"
        f" organizations {_TEXT}, projects {_TEXT}, key_id {_ID}, sealed {_TEXT},"
        f" created_at_us {_TIME}, rotated_at_us {_TIME}, UNIQUE (provider_id, name))"
    ),
)
"""Providers, and their credentials under seal."""

PROVIDER_DATA: Final = (
    "ALTER TABLE providers ADD COLUMN regions TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE providers ADD COLUMN retention_days BIGINT",
    "ALTER TABLE providers ADD COLUMN trains BIGINT",
)
"""What becomes of data at a provider."""

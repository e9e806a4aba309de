"""What must be done for an organisation to be what a file says: an ordered list of steps. Each is
one call of auth, with its rights and its entry in the log.

A step is a text for people and what it asks for; ``declared_steps.py`` carries it out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cli.declared_file import Declared
from cli.limits import NUMBERS

NEW_LEVEL: Final[Declared] = {
    "models": {"mode": "deny", "patterns": []},
    "limits": [],
    "key_policy": {
        "max_lifetime_seconds": 0,
        "default_lifetime_seconds": 0,
        "networks": [],
        "tags": {},
    },
    "data_policy": {"class_min": "", "demands": []},
}
NEW_PROJECT: Final[Declared] = {
    **NEW_LEVEL,
    **{name: [] for name in ("roles", "users", "groups", "service_accounts", "keys")},
}
NEW_KEY: Final[Declared] = {
    "service_account": "",
    **{name: [] for name in ("models", "denied_models", "networks", "scopes", "limits")},
    "tags": {},
    "disabled": False,
}


NEW_PROVIDER: Final[Declared] = {"base_url": "", "models": [], "free": False, "regions": []}
NEW_CREDENTIAL: Final[Declared] = {"weight": 1, "organizations": [], "projects": []}
UPDATABLE: Final = ("models", "free", "regions", "retention_days", "trains")
"""What is known of a provider and bound to no secret."""


class PlanError(ValueError):
    """The file asks for what cannot be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change.

    Args:
        does: which (``project.create``).
        place: the project's name; empty for the organisation.
        name: of what; empty for the place itself.
        before: what is there.
        after: what is to be there.
    """

    does: str
    place: str = ""
    name: str = ""
    before: Any = None
    after: Any = None

    @property
    def is_deletion(self) -> bool:
        """Whether something ends for good."""
        return self.does.endswith(".delete")

    def text(self) -> str:
        """For people: ``+`` for what is made, ``-`` for what ends, ``~`` for what changes."""
        what, _, verb = self.does.partition(".")
        sign = {"create": "+", "delete": "-"}.get(verb, "~")
        where = f"project {self.place}: " if self.place and what != "project" else ""
        shown = f"{sign} {where}{what.replace('_', ' ')}"
        shown += f" {self.name or self.place}" if self.name or what == "project" else ""
        if verb in ("create", "delete"):
            return shown
        after = self.after["base_url"] if verb == "move" else self.after
        return f"{shown}: {_brief(self.before)} -> {_brief(after)}"


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        said = ", ".join(f"{name}={_brief(inner)}" for name, inner in value.items())
        return f"{{{said}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_brief, value))}]"
    return "none" if value in (None, "") else str(value)


def plan(live: Declared, wanted: Declared, *, prune: bool) -> list[Step]:
    """The steps, in an order in which each finds what it needs. Raises :class:`PlanError`."""
    steps = [
        *_named("user", "", live["users"], wanted.get("users", []), {"role": "reader"}),
        *_roles("", live["roles"], wanted.get("roles", [])),
        *_groups(live["groups"], wanted.get("groups", [])),
        *_level("", live["organization"], wanted.get("organization", {})),
    ]
    known = {project["name"]: project for project in live["projects"]}
    for project in wanted.get("projects", []):
        steps += _project(known.get(project["name"]), project)
    if "providers" in wanted:
        steps += _providers(live, wanted["providers"], prune=prune)
    if prune:
        steps += _pruned(live, wanted)
    return steps


def _pruned(live: Declared, wanted: Declared) -> Iterator[Step]:
    """What is there and not in the file, where the file has such a list at all."""
    known = {project["name"]: project for project in live["projects"]}
    for project in wanted.get("projects", []):
        place = project["name"]
        for what, field in (
            ("key", "keys"),
            ("service_account", "service_accounts"),
            ("project_group", "groups"),
            ("project_user", "users"),
            ("role", "roles"),
        ):
            if field in project and place in known:
                yield from _gone(what, place, known[place][field], project[field])
    for what, field in (
        ("project", "projects"),
        ("group", "groups"),
        ("role", "roles"),
        ("user", "users"),
    ):
        if field in wanted:
            yield from _gone(what, "", live[field], wanted[field])


def _gone(
    what: str, place: str, live: Sequence[Declared], wanted: Sequence[Declared]
) -> Iterator[Step]:
    kept = {_name(row) for row in wanted}
    for row in live:
        if _name(row) not in kept:
            if what == "project":
                yield Step(does="project.delete", place=row["name"], before=row)
            else:
                yield Step(does=f"{what}.delete", place=place, name=_name(row), before=row)


def _name(row: Declared) -> str:
    found: str = row["email"] if "email" in row else row["name"]
    return found


def _named(
    what: str,
    place: str,
    live: Sequence[Declared],
    wanted: Sequence[Declared],
    new: Mapping[str, Any],
) -> Iterator[Step]:
    """Objects that have a name and a role."""
    known = {_name(row): row for row in live}
    for row in wanted:
        name = _name(row)
        before = known.get(name)
        if before is None:
            yield Step(does=f"{what}.create", place=place, name=name, after={**new, **row})
        elif row.get("role", before["role"]) != before["role"]:
            yield Step(
                does=f"{what}.role",
                place=place,
                name=name,
                before=before["role"],
                after=row["role"],
            )


def _roles(place: str, live: Sequence[Declared], wanted: Sequence[Declared]) -> Iterator[Step]:
    known = {row["name"]: row for row in live}
    for row in wanted:
        before = known.get(row["name"])
        new = {"description": "", "permissions": [], **row}
        if before is None:
            yield Step(does="role.create", place=place, name=row["name"], after=new)
        elif {**before, **row} != before:
            changed = {name: value for name, value in row.items() if before[name] != value}
            old = {name: before[name] for name in changed}
            yield Step(does="role.update", place=place, name=row["name"], before=old, after=changed)


def _groups(live: Sequence[Declared], wanted: Sequence[Declared]) -> Iterator[Step]:
    known = {row["name"]: row for row in live}
    for row in wanted:
        name = row["name"]
        before = known.get(name, {"members": [], "roles": []})
        if name not in known:
            yield Step(does="group.create", name=name)
        for field in ("members", "roles"):
            if field in row and row[field] != before[field]:
                yield Step(does=f"group.{field}", name=name, before=before[field], after=row[field])


def _level(place: str, live: Declared, wanted: Declared) -> Iterator[Step]:
    """What an organisation and a project may both say."""
    models = wanted.get("models", live["models"])
    if models != live["models"]:
        yield Step(does="models.set", place=place, before=live["models"], after=models)
    if "limits" in wanted:
        before, after = _limits(place, live["limits"]), _limits(place, wanted["limits"])
        for model in sorted({*before, *after}):
            old, new = before.get(model, {}), after.get(model, {})
            if old != new:
                yield Step(does="limits.set", place=place, name=model, before=old, after=new)
    policy = {**live["key_policy"], **wanted.get("key_policy", {})}
    if policy != live["key_policy"]:
        yield Step(does="key_policy.set", place=place, before=live["key_policy"], after=policy)
    data = {**live["data_policy"], **wanted.get("data_policy", {})}
    data["demands"] = [demands for demands in map(_demands, data["demands"]) if len(demands) > 1]
    if data != live["data_policy"]:
        yield Step(does="data_policy.set", place=place, before=live["data_policy"], after=data)


def _demands(row: Declared) -> Declared:
    """Only what is demanded: an empty list demands nothing, and zero days do."""
    return {
        name: value
        for name, value in row.items()
        if name == "class" or (value != [] and value is not False)
    }


def _limits(place: str, rows: Sequence[Declared]) -> dict[str, dict[str, int]]:
    """Numbers by model; a whole organisation's bare names are of any provider, as auth has it."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        model: str = row["model"]
        if not place and model != "*" and "/" not in model:
            model = f"*/{model}"
        said: dict[str, int] = {name: row[name] for name in NUMBERS if name in row}
        if said:
            found[model] = said
    return found


def _project(live: Declared | None, wanted: Declared) -> Iterator[Step]:
    place = wanted["name"]
    if live is None:
        yield Step(does="project.create", place=place, after=wanted.get("residency", ""))
        live = {**NEW_PROJECT, "residency": wanted.get("residency", "")}
    if wanted.get("residency", live["residency"]) != live["residency"]:
        raise PlanError(
            f"project {place}: its residency is {live['residency'] or 'none'} and cannot change:"
            " make another project"
        )
    yield from _level(place, live, wanted)
    yield from _roles(place, live["roles"], wanted.get("roles", []))
    for what, field in (
        ("project_user", "users"),
        ("project_group", "groups"),
        ("service_account", "service_accounts"),
    ):
        yield from _named(what, place, live[field], wanted.get(field, []), {"role": "member"})
    yield from _keys(place, live["keys"], wanted.get("keys", []))


def _providers(live: Declared, wanted: Sequence[Declared], *, prune: bool) -> Iterator[Step]:
    """Providers are the gateway's: who is not the operator has none to compare with."""
    if "providers" not in live:
        raise PlanError(
            "the file has `providers`, which are the operator's and of no one organisation: add"
            " --as-operator after `onegate`, and leave out --org"
        )
    known = {row["name"]: row for row in live["providers"]}
    for row in wanted:
        before = known.pop(row["name"], None)
        if before is None:
            yield _new_provider(row)
        else:
            yield from _provider(before, row, prune=prune)
    if prune:
        for name, row in known.items():
            yield Step(does="provider.delete", name=name, before=row)


def _new_provider(row: Declared) -> Step:
    if not row.get("kind") or not row.get("credentials"):
        raise PlanError(f"provider {row['name']}: a new one needs `kind` and `credentials`")
    return Step(does="provider.create", name=row["name"], after={**NEW_PROVIDER, **row})


def _provider(live: Declared, wanted: Declared, *, prune: bool) -> Iterator[Step]:
    name = wanted["name"]
    if wanted.get("kind", live["kind"]) != live["kind"]:
        raise PlanError(f"provider {name}: it is of kind {live['kind']}, which cannot change")
    changed = {
        field: wanted[field]
        for field in UPDATABLE
        if field in wanted and wanted[field] != live.get(field)
    }
    if changed:
        old = {field: live.get(field) for field in changed}
        yield Step(does="provider.update", name=name, before=old, after=changed)
    rows = wanted["credentials"] if "credentials" in wanted else live["credentials"]
    said = {row["name"]: row for row in rows}
    known = {row["name"]: row for row in live["credentials"]}
    new = [row for row in said.values() if row["name"] not in known]
    for row in said.values():
        before = known.get(row["name"], {**NEW_CREDENTIAL, **row})
        if any(row.get(field, before[field]) != before[field] for field in NEW_CREDENTIAL):
            raise PlanError(
                f"provider {name}: the credential {row['name']} cannot change its weight or"
                " whose it is: make another one, and prune this"
            )
    if wanted.get("base_url", live["base_url"]) != live["base_url"]:
        moved = [said.get(each, row) for each, row in known.items()]
        after = {"name": name, "base_url": wanted["base_url"], "credentials": moved}
        yield Step(does="provider.move", name=name, before=live["base_url"], after=after)
    for row in new:
        place, after = f"{name}#{row['name']}", {"name": name, "credentials": [row]}
        yield Step(does="provider_credential.create", name=place, after=after)
    if prune and "credentials" in wanted:
        for row in live["credentials"]:
            if row["name"] not in said:
                place = f"{name}#{row['name']}"
                yield Step(does="provider_credential.delete", name=place, before=row)


def _keys(place: str, live: Sequence[Declared], wanted: Sequence[Declared]) -> Iterator[Step]:
    known = {row["name"]: row for row in live}
    for row in wanted:
        name = row["name"]
        before = known.get(name)
        if before is None:
            yield Step(does="key.create", place=place, name=name, after={**NEW_KEY, **row})
            before = {**NEW_KEY, **row, "disabled": False}
        if row.get("service_account", before["service_account"]) != before["service_account"]:
            raise PlanError(
                f"project {place}: the key {name} is of {before['service_account'] or 'nobody'},"
                " which cannot change: make another key"
            )
        changed = {
            field: value
            for field, value in row.items()
            if field not in ("name", "disabled") and before[field] != value
        }
        if changed:
            old = {field: before[field] for field in changed}
            yield Step(does="key.update", place=place, name=name, before=old, after=changed)
        if row.get("disabled", before["disabled"]) != before["disabled"]:
            yield Step(
                does="key.disabled",
                place=place,
                name=name,
                before=before["disabled"],
                after=row["disabled"],
            )

"""Stands between the official SDK's own test suite and a gateway.

The suite was written for a mock that takes any id: it asks for ``project_id`` and deletes
``role_id`` again and again. This proxy makes a real object for each placeholder of each request,
puts its id in the place, and the gateway's admin key in that of the suite's. Nothing else of the
request changes, and nothing of the answer.
"""

import http.client
import itertools
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ORGANIZATION = "/v1/organization"
READ = "api.projects.read"


class Objects:
    """Makes real objects through the gateway's own API."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.key = key
        self._numbers = itertools.count()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; fails when it is refused."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        found: dict[str, Any] = json.load(answer)
        connection.close()
        assert answer.status == 200, found
        return found

    def email(self) -> str:
        return f"suite{next(self._numbers)}@example.com"

    def name(self) -> str:
        return f"suite {next(self._numbers)}"

    def project(self) -> str:
        return str(self.post(f"{ORGANIZATION}/projects", {"name": "suite"})["id"])

    def user(self) -> dict[str, Any]:
        return self.post(f"{ORGANIZATION}/users", {"email": self.email()})

    def group(self) -> str:
        return str(self.post(f"{ORGANIZATION}/groups", {"name": "suite"})["id"])

    def role(self, place: str) -> str:
        body = {"role_name": self.name(), "permissions": [READ]}
        return str(self.post(f"{place}/roles", body)["id"])


class Binding:
    """One request of the suite, its placeholders bound to real objects."""

    def __init__(self, objects: Objects, method: str, target: str, body: bytes) -> None:
        self._objects = objects
        self._method = method
        self._email = ""
        path, _, query = target.partition("?")
        segments = path.split("/")
        self.bound: dict[str, str] = {}
        for place, segment in enumerate(segments):
            segments[place] = self._segment(segments, place, segment)
        self.body = self._body("/".join(segments), body)
        self.target = "/".join(segments) + self._query(path, query)

    def _segment(self, segments: list[str], place: int, segment: str) -> str:
        before = "/".join(segments[:place])
        match segment:
            case "project_id":
                return self._objects.project()
            case "user_id":
                return self._user(segments, before)
            case "group_id":
                return self._group(segments, before)
            case "role_id":
                return self._role(segments)
            case "invite_id":
                body = {"email": self._objects.email(), "role": "reader"}
                return str(self._objects.post(before, body)["id"])
            case "key_id" | "api_key_id" | "service_account_id":
                return str(self._objects.post(before, {"name": "suite"})["id"])
            case "rate_limit_id":
                return "rl-*"
            case _:
                return segment

    def _user(self, segments: list[str], before: str) -> str:
        user = self._objects.user()
        user_id = str(user["id"])
        if before != f"{ORGANIZATION}/users" and "roles" not in segments:
            role = {"role": "member"} if "/projects/" in before else {}
            self._objects.post(before, {"user_id": user_id, **role})
        return user_id

    def _group(self, segments: list[str], before: str) -> str:
        group_id = self._objects.group()
        if "/projects/" in before and "roles" not in segments:
            self._objects.post(before, {"group_id": group_id, "role": "member"})
        return group_id

    def _role(self, segments: list[str]) -> str:
        scope = "/".join(segments[:4]) if segments[2] == "projects" else ORGANIZATION
        scope = "/".join(["", "v1", "projects", segments[3]]) if "projects" in segments else scope
        role_id = self._objects.role(scope)
        if "users" in segments or "groups" in segments:
            holder = "/".join(segments[: segments.index("roles")])
            self._objects.post(f"{holder}/roles", {"role_id": role_id})
        return role_id

    def _query(self, path: str, query: str) -> str:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True)
        # A page of a report is said by the page before it; the first needs no word.
        pairs = [pair for pair in pairs if pair != ("page", "page")]
        bound = [(name, self._cursor(path, value)) for name, value in pairs]
        return f"?{urllib.parse.urlencode(bound)}" if bound else ""

    def _cursor(self, path: str, value: str) -> str:
        if value not in ("after", "before"):
            return value
        if path.endswith("rate_limits"):
            return "rl-*" if value == "after" else "rl-~"
        if path == f"{ORGANIZATION}/projects":
            return self._objects.project()
        if path.endswith("admin_api_keys"):
            return str(self._objects.post(path, {"name": "suite"})["id"])
        if path.endswith("/api_keys"):
            project = f"{ORGANIZATION}/projects/{self._objects.project()}"
            return str(self._objects.post(f"{project}/api_keys", {"name": "suite"})["id"])
        return self._objects.group()

    def _body(self, path: str, body: bytes) -> bytes:
        if not body:
            return body
        fields = json.loads(body)
        users = [self._objects.user()] if {"user_id", "email"} & fields.keys() else []
        for name, value in fields.items():
            fields[name] = self._field(path, name, value, users)
        return json.dumps(fields).encode()

    def _field(self, path: str, name: str, value: Any, users: list[dict[str, Any]]) -> Any:
        scope = path.rpartition("/roles")[0] if "/roles" in path else ORGANIZATION
        match name, value:
            case "user_id", "user_id":
                return users[0]["id"]
            case "email", "email":
                is_invite = path.endswith("invites")
                return self._objects.email() if is_invite else users[0]["email"]
            case "group_id", "group_id":
                return self._objects.group()
            case "role_id", "role_id":
                projects = scope.split("/projects/")
                if len(projects) == 2:
                    return self._objects.role(f"/v1/projects/{projects[1].split('/')[0]}")
                return self._objects.role(ORGANIZATION)
            case "role", "role":
                return "member" if "/projects/" in path else "reader"
            case "role_name", "role_name":
                return self._objects.name()
            case "permissions", ["string"]:
                return [READ]
            case "scopes", ["string"]:
                return ["model.request"]
            case "projects", list():
                return [{**entry, "id": self._objects.project()} for entry in value]
            case _:
                return value


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        bound = Binding(self.objects, self.command, self.path, body)
        connection = http.client.HTTPConnection("127.0.0.1", self.objects.port, timeout=30)
        headers = {
            "authorization": f"Bearer {self.objects.key}",
            "content-type": "application/json",
        }
        connection.request(self.command, bound.target, bound.body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        self.send_header("content-type", answer.headers["content-type"])
        self.send_header("content-length", str(len(content)))
        self.send_header("x-should-retry", "false")
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    # The names are http.server's.
    do_GET = do_POST = do_DELETE = _forward  # noqa: N815

    def log_message(self, *_arguments: object) -> None:
        """Says nothing."""


@contextmanager
def placeholder_proxy(port: int, key: str) -> Iterator[int]:
    """Listens on a port of its own."""
    handler = type("Handler", (_Handler,), {"objects": Objects(port, key)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

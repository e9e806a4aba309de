"""A PostgreSQL server of the tests' own: its data in a temporary directory, reached through a unix
socket and a loopback port. It ends with the tests, also when they are killed.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

PASSWORD = "canary p@ss/w:rd%"
"""Of the role ``owner``, which the loopback port asks for; no log and no error may ever show it."""

DEADLINE_S = 60.0


class PostgresServer:
    """One server. Databases are made for each test; nothing is synced to disk, so that they are
    quick: what was committed survives the end of the processes, not of the machine.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="onegate-pg-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.directory, account.pw_uid, account.pw_gid)
        self.port = _free_port()
        self._data = self.directory / "data"
        options = ("--no-sync", "--encoding=UTF8", "--locale=C", "--username=postgres")
        subprocess.run(
            [
                *_as_postgres(),
                _program("initdb"),
                *options,
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                f"--pgdata={self._data}",
            ],
            check=True,
            capture_output=True,
            cwd=self.directory,
            timeout=DEADLINE_S,
        )

    def start(self, **settings: str) -> None:
        """Starts the server with settings of ``postgresql.conf``; returns when it answers."""
        fixed = {
            "fsync": "off",
            "full_page_writes": "off",
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "max_connections": "200",
            "shared_buffers": "32MB",
            "autovacuum": "off",
        }
        arguments = [f"--{name}={value}" for name, value in {**fixed, **settings}.items()]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_postgres(), _program("postgres"), "-D", str(self._data), *arguments],
                cwd=self.directory,
                stdout=log,
                process_group=0,
                stderr=log,
            )
        deadline = time.monotonic() + DEADLINE_S
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server: SIGINT tidily, SIGQUIT as a crash does."""
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(DEADLINE_S)
        self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Sends every process of the server a signal: SIGSTOP makes it hang, SIGCONT go on."""
        assert self._process is not None
        # The first process last to go on, first to stop: it makes the others.
        root = psutil.Process(self._process.pid)
        family = [root, *root.children(recursive=True)]
        for process in reversed(family) if number == signal.SIGCONT else family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def close(self) -> None:
        """Stops the server and removes what it kept."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def make_database(self) -> str:
        """The name of a new, empty database."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy")
        return name

    def drop_database(self, name: str) -> None:
        """Removes a database, whoever uses it."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Runs one statement as the superuser."""
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def query(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """The rows of one statement, as the superuser."""
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()

    def dsn(self, database: str) -> str:
        """As the superuser, through the unix socket."""
        return f"postgresql://postgres@/{database}?host={self.directory}&port={self.port}"

    def network_dsn(self, database: str, role: str = "owner", password: str = PASSWORD) -> str:
        """Through the loopback port, with a password."""
        host = f"127.0.0.1:{self.port}"
        return f"postgresql://{role}:{quote(password, safe='')}@{host}/{database}"

    def log(self) -> str:
        """What the server has said."""
        return (self.directory / "log").read_text(errors="replace")

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.dsn("postgres")).close()
            return True
        return False


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to be run by root. It ends with the process that started it."""
    command = ["setpriv", "--pdeathsig=INT"] if shutil.which("setpriv") else []
    if os.geteuid() == 0:
        command += ["--reuid=postgres", "--regid=postgres", "--init-groups"]
    return command


def _program(name: str) -> str:
    """Debian keeps the server's programs beside the path."""
    found = shutil.which(name)
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    assert found or places, f"{name} is not installed: run tools/setup-tests"
    return found or str(places[-1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""What a process gives back once it serves."""

import subprocess
import sys

import pytest

from runtime.resident import code_of

SMAPS = """\
55d0a0000000-55d0a0002000 r--p 00000000 08:01 1311 /usr/bin/python3
Size:                  8 kB
Anonymous:             0 kB
55d0a0002000-55d0a0005000 r-xp 00002000 08:01 1311 /usr/bin/python3
Anonymous:             0 kB
55d0a0005000-55d0a0006000 r--p 00005000 08:01 1311 /usr/bin/python3
Anonymous:             4 kB
55d0a0006000-55d0a0007000 rw-p 00006000 08:01 1311 /usr/bin/python3
Anonymous:             0 kB
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7f0000100000-7f0000101000 r--s 00000000 08:01 1400 /data/shared
Anonymous:             0 kB
7f0000102000-7f0000103000 r-xp 00000000 08:01 0 /memfd:made (deleted)
Anonymous:             0 kB
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
"""


def test_only_code_and_constants_that_nobody_changed_are_given_back() -> None:
    assert list(code_of(SMAPS.splitlines())) == [
        (0x55D0A0000000, 0x2000),
        (0x55D0A0002000, 0x3000),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux")
def test_a_process_that_gave_back_is_smaller_and_works_on() -> None:
    program = """
import decimal, json, os, re, sqlite3, ssl
from runtime.resident import give_back
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])
before = resident()
give_back()
assert resident() < before - 100, (before, resident())
assert json.loads(json.dumps({"a": [1.5]})) == {"a": [1.5]}
assert str(decimal.Decimal(1) / 7).startswith("0.142857")
assert sqlite3.connect(":memory:").execute("select 1 + 1").fetchone() == (2,)
assert ssl.create_default_context() and re.fullmatch("a+", "aa")
give_back()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr

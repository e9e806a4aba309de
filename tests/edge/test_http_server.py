"""The edge's HTTP server over real sockets: what it serves, and every way in which it does not."""

import asyncio
import socket

import pytest

from edge.http import head
from tests.edge.wire import Client, serving, until

pytestmark = pytest.mark.anyio

HEAD = b"Host: x\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def get(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def post(path: str, body: bytes, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


async def test_a_connection_serves_one_request_after_another() -> None:
    async with serving() as site:
        client = await site.connect()
        for size in (0, 5, 70_000, 1):
            await client.send(post("/echo", b"b" * size))
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"b" * size)
            assert "connection" not in answer.headers
        assert site.server.connections == 1
        assert [status for _, status, _ in site.show.finished_requests] == [200] * 4


async def test_a_body_may_come_in_any_pieces() -> None:
    async with serving() as site:
        client = await site.connect()
        raw = CHUNKED + b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n"
        for index in range(len(raw)):
            await client.send(raw[index : index + 1])
            await asyncio.sleep(0)
        assert (await client.answer()).body == b"abcdefg"
        await client.send(CHUNKED + b"".join(b"1\r\nx\r\n" for _ in range(5000)) + b"0\r\n\r\n")
        assert (await client.answer()).body == b"x" * 5000


async def test_the_target_gives_path_and_query_in_both_forms() -> None:
    async with serving() as site:
        client = await site.connect()
        for target in ("/head?a=%20b", "http://elsewhere/head?a=%20b"):
            await client.send(get(target))
            assert (await client.answer()).body == b"GET b'a=%20b' 127.0.0.1"
        await client.send(get("http://elsewhere"))
        assert (await client.answer()).body.startswith(b"/ invalid_request")


async def test_head_answers_without_a_body() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(b"HEAD /sync HTTP/1.1\r\nHost: x\r\n\r\n" + get("/sync"))
        answer = await client.answer(has_body=False)
        assert answer.headers["content-length"] == "7"
        assert (await client.answer()).body == b"at once"


async def test_http_1_0_is_answered_and_closed_unless_it_asks() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(b"GET /sync HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.answer()).headers["connection"] == "keep-alive"
        await client.send(b"GET /stream HTTP/1.0\r\n\r\n")
        site.show.release.set()
        answer = await client.answer()
        assert answer.body == b"onetwothree"
        assert answer.headers["connection"] == "close"
        assert "transfer-encoding" not in answer.headers


async def test_connection_close_is_obeyed() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get("/sync", "Connection: close") + get("/sync"))
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.closed() == b""


async def test_an_offer_to_upgrade_is_answered_as_if_it_were_none() -> None:
    async with serving() as site:
        client = await site.connect()
        offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA")
        await client.send(post("/echo", b"body", *offer) + get("/sync"))
        assert (await client.answer()).body == b"body"
        assert (await client.answer()).body == b"at once"
        await client.send(get("/head?1", *offer))
        assert (await client.answer()).status == 200
        chunked = "Transfer-Encoding: chunked"
        await client.send(get("/echo", *offer, chunked).replace(b"GET", b"POST") + b"2\r\nab\r\n")
        await client.send(b"0\r\n\r\n")
        assert (await client.answer()).body == b"ab"


async def test_a_body_waits_for_its_permission() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(post("/echo", b"", "Expect: 100-continue").replace(b"h: 0", b"h: 4"))
        assert (await client.head())[0] == 100
        await client.send(b"data")
        assert (await client.answer()).body == b"data"
        await client.send(post("/denied", b"", "Expect: 100-continue").replace(b"h: 0", b"h: 4"))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get("/wait") + post("/echo", b"2") + get("/sync") + post("/echo", b"4"))
        await until(lambda: site.show.running == 1)
        site.show.release.set()
        bodies = [(await client.answer()).body for _ in range(4)]
        assert bodies == [b"waited", b"2", b"at once", b"4"]
        await client.send(get("/sync"))
        assert (await client.answer()).status == 200


async def test_a_pipelined_body_that_is_still_coming_is_read_when_its_turn_comes() -> None:
    async with serving(head_timeout_s=0.3, body_timeout_s=0.3) as site:
        client = await site.connect()
        await client.send(get("/wait") + post("/echo", b"12345")[:-3])
        await until(lambda: site.show.running == 1)
        await asyncio.sleep(0.5)
        site.show.release.set()
        assert (await client.answer()).body == b"waited"
        await client.send(b"345" + get("/sync"))
        assert (await client.answer()).body == b"12345"
        assert (await client.answer()).body == b"at once"


async def test_too_many_pipelined_requests_close_the_connection_after_those_that_fit() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get("/wait") + get("/sync") * 40)
        await until(lambda: site.show.running == 1)
        site.show.release.set()
        answers = [await client.answer() for _ in range(17)]
        assert {answer.status for answer in answers} == {200}
        assert answers[-1].headers["connection"] == "close"
        assert await client.closed() == b""


async def test_garbage_behind_a_request_is_refused_after_its_answer() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get("/wait") + b"garbage\r\n\r\n")
        await until(lambda: site.show.running == 1)
        site.show.release.set()
        assert (await client.answer()).body == b"waited"
        assert (await client.answer()).status == 400
        assert await client.closed() == b""


MALFORMED = {
    "both lengths": (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400),
    "a signed length": (POST + b"Content-Length: +1\r\n\r\na", 400),
    "an endless length": (POST + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
    "a coded transfer": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "a coded transfer that ends": (POST + b"Transfer-Encoding: identity\r\n\r\n", 400),
    "a bad chunk size": (CHUNKED + b"zz\r\n", 400),
    "a bad chunk end": (CHUNKED + b"1\r\nabc", 400),
    "a coded body": (POST + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\na", 415),
    "another expectation": (POST + b"Expect: the-moon\r\nContent-Length: 1\r\n\r\n", 417),
    "no host": (b"GET /sync HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /sync HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "a space before the colon": (b"GET /sync HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    "a folded header": (b"GET /sync HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400),
    "a bare line feed": (b"GET /sync HTTP/1.1\nHost: a\n\n", 400),
    "a NUL in a header": (b"GET /sync HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400),
    "a NUL in the target": (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a high byte in the target": (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a fragment": (b"GET /sync#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a star": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no version": (b"GET /sync\r\n\r\n", 505),
    "version 2": (b"GET /sync HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "a preface of version 2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "an unknown method": (b"FETCH /sync HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a tunnel": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a large head": (b"GET /sync HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 65_536 + b"\r\n\r\n", 431),
    "a large target": (b"GET /" + b"a" * 65_536 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
    "a head without an end": (b"GET /sync HTTP/1.1\r\nX: " + b"a" * 2_000_000, 431),
    "many headers": (b"GET /sync HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
} | {
    f"{chr(char)!r} in the host": (b"GET / HTTP/1.1\r\nHost: a%cb\r\n\r\n" % char, 400)
    for char in b"/?#@\\ "
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_what_could_be_misread_is_refused_and_the_connection_closed(case: str) -> None:
    raw, status = MALFORMED[case]
    async with serving() as site:
        client = await site.connect()
        await client.send(raw)
        answer = await client.answer()
        assert answer.status == status, answer
        assert answer.headers["connection"] == "close"
        assert await client.closed() == b""
        await client.leave()
        await until(lambda: site.server.connections == 0)


async def test_an_announced_body_that_is_too_large_is_refused_before_it_comes() -> None:
    async with serving(body_bytes_max=1024) as site:
        client = await site.connect()
        await client.send(post("/echo", b"x" * 1025)[:-1025])
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert site.show.running == 0


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large() -> None:
    async with serving(body_bytes_max=1024) as site:
        client = await site.connect()
        await client.send(CHUNKED + b"400\r\n" + b"x" * 1024 + b"\r\n")
        await until(lambda: site.show.running == 1)
        await client.send(b"1\r\nx\r\n5\r\nxxxxx\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_an_endpoint_may_take_less_than_the_server() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(post("/small", b"0123456789"))
        assert (await client.answer()).status == 200
        await client.send(post("/small", b"0123456789a"))
        assert (await client.answer()).status == 413


async def test_a_client_that_is_still_sending_gets_to_read_its_refusal() -> None:
    async with serving(body_bytes_max=1024) as site:
        client = await site.connect()
        await client.send(post("/echo", b"")[:-2].replace(b"h: 0", b"h: 50000000") + b"\r\n")
        for _ in range(100):
            await client.send(b"x" * 65_536)
        assert (await client.answer()).status == 413


async def test_an_answer_before_the_body_keeps_the_connection_when_the_body_is_there() -> None:
    async with serving() as site:
        client = await site.connect()
        for _ in range(3):
            await client.send(post("/denied", b"a body"))
            answer = await client.answer()
            assert answer.status == 401
            assert "connection" not in answer.headers
        await client.send(post("/denied", b"a body")[:-1])
        assert (await client.answer()).headers["connection"] == "close"
        await client.send(b"yGET /sync")
        assert await client.closed() == b""


@pytest.mark.parametrize(
    "raw",
    [b"GET /sync HTTP/1.1", b"GET /sync HTTP/1.1\r\nHost: x", b"GET / HTTP/1.1\r\nX: y\r\nHost: x"],
)
async def test_a_slow_head_is_refused_in_time(raw: bytes) -> None:
    async with serving(head_timeout_s=0.4) as site:
        client = await site.connect()
        began_s = asyncio.get_running_loop().time()
        await client.send(raw)
        drip = asyncio.create_task(_drip(client))
        assert (await client.answer()).status == 408
        drip.cancel()
        assert 0.3 < asyncio.get_running_loop().time() - began_s < 5.0


async def _drip(client: Client) -> None:
    await client.send(b"\r\nX")
    while True:
        await asyncio.sleep(0.05)
        await client.send(b"a")


async def test_a_slow_body_is_refused_in_time() -> None:
    async with serving(body_timeout_s=0.4) as site:
        client = await site.connect()
        await client.send(post("/echo", b"12345")[:-3])
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert answer.body.startswith(b"/echo request_timeout")


async def test_a_body_that_crawls_is_refused_before_its_deadline() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(post("/echo", b"x" * 100)[:-99])
        await until(lambda: site.show.running == 1)
        connection = next(iter(site.server._connections))
        connection.check(site.server.monotonic() + 4.9)
        assert site.show.running == 1
        connection.check(site.server.monotonic() + 6)
        assert (await client.answer()).status == 408


async def test_an_idle_client_is_let_go() -> None:
    async with serving(keepalive_timeout_s=0.3, head_timeout_s=0.3) as site:
        silent, served = await site.connect(), await site.connect()
        await served.send(get("/sync"))
        assert (await served.answer()).status == 200
        assert await silent.closed() == b""
        assert await served.closed() == b""
        await until(lambda: site.server.connections == 0)


@pytest.mark.parametrize("way", ["close", "reset", "half"])
@pytest.mark.parametrize("path", ["/wait", "/stream", "/flood"])
async def test_a_client_that_leaves_cancels_its_handler_at_once(path: str, way: str) -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get(path))
        await until(lambda: site.show.running == 1)
        match way:
            case "close":
                await client.leave()
            case "reset":
                await client.reset()
            case _:
                client.writer.write_eof()
        if path == "/flood" and way == "half":
            # A client that reads nothing and only half closes is found out by its stall.
            await client.reset()
        await until(lambda: site.show.cancelled == 1)
        await until(lambda: site.server.connections == 0)
        assert len(site.show.finished_requests) == 1


async def test_a_client_that_leaves_while_its_body_comes_cancels_too() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(post("/echo", b"12345")[:-3])
        await until(lambda: site.show.running == 1)
        await client.reset()
        await until(lambda: site.show.cancelled == 1)
        assert site.show.finished_requests == [(b"/echo", 499, 0)]


async def test_a_stream_goes_out_piece_by_piece() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get("/stream"))
        status, headers = await client.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert await client.chunk() == b"one"
        site.show.release.set()
        assert [await client.chunk() for _ in range(3)] == [b"two", b"three", b""]
        await client.send(get("/sync"))
        assert (await client.answer()).status == 200
        assert site.show.finished_requests[0] == (b"/stream", 200, 11)


async def test_a_client_that_reads_nothing_stops_its_writer_and_is_closed() -> None:
    async with serving(stall_timeout_s=0.5) as site:
        client = await site.connect()
        await client.send(get("/flood"))
        await until(lambda: site.show.written > 0)
        written = -1
        while written != site.show.written:
            written = site.show.written
            await asyncio.sleep(0.1)
        connection = next(iter(site.server._connections))
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() <= 64 * 1024 + 20_000
        await until(lambda: site.show.cancelled == 1)
        await until(lambda: site.server.connections == 0)


async def test_a_client_that_reads_slowly_but_reads_is_kept() -> None:
    async with serving(stall_timeout_s=0.5) as site:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", site.port))
        await loop.sock_sendall(raw, get("/flood"))
        began_s = loop.time()
        while loop.time() - began_s < 2.0:
            assert await loop.sock_recv(raw, 8192)
            await asyncio.sleep(0.01)
        assert site.show.cancelled == 0
        raw.close()
        await until(lambda: site.show.cancelled == 1)


async def test_a_large_answer_that_nobody_takes_is_given_up() -> None:
    async with serving(stall_timeout_s=0.4) as site:
        client = await site.connect(limit=1024)
        await client.send(get("/large"))
        await until(lambda: bool(site.show.finished_requests))
        await until(lambda: site.server.connections == 0)


async def test_a_large_answer_arrives_whole() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get("/large"))
        assert len((await client.answer()).body) == 3_000_000


async def test_a_handler_that_breaks_is_a_500_and_the_connection_goes_on() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get("/broken"))
        assert (await client.answer()).status == 500
        await client.send(get("/sync"))
        assert (await client.answer()).status == 200
        assert [str(defect) for defect in site.show.defects] == ["a defect"]


@pytest.mark.parametrize("path", ["/half", "/unfinished"])
async def test_a_stream_that_breaks_off_is_visibly_cut(path: str) -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get(path))
        rest = await client.closed()
        assert not rest.endswith(b"0\r\n\r\n")
        await until(lambda: site.server.connections == 0)


async def test_a_handler_without_an_answer_is_cut() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get("/silent"))
        assert await client.closed() == b""
        await until(lambda: site.show.finished_requests == [(b"/silent", 499, 0)])


async def test_an_application_that_breaks_over_a_head_answers_500_and_goes_on() -> None:
    async with serving() as site:
        client = await site.connect()
        await client.send(get("/wait") + post("/defect", b"x") + get("/sync"))
        await until(lambda: site.show.running == 1)
        site.show.release.set()
        statuses = [(await client.answer()).status for _ in range(3)]
        assert statuses == [200, 500, 200]
        assert [str(defect) for defect in site.show.defects] == ["a defect before the handler"]


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nset-cookie: b", "a\0set-cookie: b"])
def test_no_value_can_split_a_head(value: str) -> None:
    raw = head(200, [("x-model", value), ("x-other", "ä€")], "content-length: 0\r\n")
    assert raw == (
        b"HTTP/1.1 200 OK\r\nx-model: aset-cookie: b\r\nx-other: \xe4?\r\ncontent-length: 0\r\n\r\n"
    )


async def test_one_client_too_many_is_told_so() -> None:
    async with serving(connections_max=2) as site:
        clients = [await site.connect() for _ in range(2)]
        for client in clients:
            await client.send(get("/sync"))
            assert (await client.answer()).status == 200
        third = await site.connect()
        assert (await third.answer()).status == 503
        assert await third.closed() == b""


async def test_draining_finishes_what_is_under_way_and_takes_nothing_new() -> None:
    async with serving() as site:
        idle, busy, streaming = [await site.connect() for _ in range(3)]
        await idle.send(get("/sync"))
        await idle.answer()
        await busy.send(get("/wait"))
        await streaming.send(get("/stream"))
        assert (await streaming.head())[0] == 200
        stopping = asyncio.create_task(site.server.stop(5))
        assert await idle.closed() == b""
        with pytest.raises(ConnectionRefusedError):
            await site.connect()
        site.show.release.set()
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert [await streaming.chunk() for _ in range(4)] == [b"one", b"two", b"three", b""]
        assert await streaming.closed() == b""
        await stopping
        assert site.server.connections == 0


async def test_draining_asks_clients_to_come_back_on_a_new_connection() -> None:
    async with serving() as site:
        client = await site.connect()
        site.server.draining = True
        await client.send(get("/sync"))
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.closed() == b""


async def test_what_outlasts_the_drain_is_cut_with_a_last_word() -> None:
    async with serving() as site:
        waiting, streaming, stubborn = [await site.connect() for _ in range(3)]
        await waiting.send(get("/wait"))
        await streaming.send(get("/stream"))
        await stubborn.send(b"GET /sync HTTP/1.1\r\n")
        await until(lambda: site.show.running == 2)
        await site.server.stop(0.05)
        assert (await waiting.answer()).status == 503
        assert (await streaming.answer()).body == b"onecut"
        assert site.server.connections == 0


async def test_several_processes_may_listen_on_one_port() -> None:
    async with (
        serving(reuse_port=True) as first,
        serving(reuse_port=True, port=first.port) as second,
    ):
        assert first.port == second.port
        for _ in range(32):
            client = await first.connect()
            await client.send(get("/sync"))
            assert (await client.answer()).status == 200
        served = [len(site.show.finished_requests) for site in (first, second)]
        assert sum(served) == 32
        assert all(served)

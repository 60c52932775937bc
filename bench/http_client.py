"""The client process of commit_etcd.py and reads.py: HTTP/1.1 with keep-alive over plain TCP, and little else.

Usage: http_client.py '{"address": [host, port], "path": "/put", "body": "...", "connections": N, "seconds": S}'. Each
connection is one proposer (or reader): it sends the request, waits for the whole answer, and sends it again. The same
code drives every subject. Prints count, seconds, latencies and its own CPU as JSON; any answer but 200 ends it with 1.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
import time


def main() -> None:
    """One run."""
    order = json.loads(sys.argv[1])
    host, port = order["address"]
    body = order["body"].encode()
    request = (
        f"POST {order['path']} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    selector = selectors.EpollSelector()
    begun: dict[socket.socket, float] = {}
    answers: dict[socket.socket, bytes] = {}
    clock = time.perf_counter
    for _ in range(order["connections"]):
        connection = socket.create_connection((host, port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
        answers[connection] = b""
    took: list[float] = []
    before, start = resource.getrusage(resource.RUSAGE_SELF), clock()
    deadline = start + order["seconds"]
    for connection in answers:
        begun[connection] = clock()
        connection.sendall(request)
    while begun:
        for key, _ in selector.select(10):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            part = connection.recv(65536)
            if not part:
                raise SystemExit("the server closed a connection")
            answer = answers[connection] = answers[connection] + part
            if not is_whole(answer):
                continue
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"the server answered {answer[:300]!r}")
            now = clock()
            took.append(now - begun[connection])
            answers[connection] = b""
            if now >= deadline:
                del begun[connection]
                continue
            begun[connection] = now
            connection.sendall(request)
    elapsed, after = clock() - start, resource.getrusage(resource.RUSAGE_SELF)
    took.sort()
    print(
        json.dumps(
            {
                "count": len(took),
                "seconds": elapsed,
                "p50_ms": 1e3 * took[len(took) // 2],
                "p99_ms": 1e3 * took[int(len(took) * 0.99)],
                "client_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            }
        )
    )


def is_whole(answer: bytes) -> bool:
    """Whether head and body are there. Answers must say their length."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = answer[:end].lower()
    at = head.find(b"content-length:")
    if at < 0:
        raise SystemExit(f"an answer without a length: {answer[:300]!r}")
    return len(answer) >= end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])


if __name__ == "__main__":
    main()

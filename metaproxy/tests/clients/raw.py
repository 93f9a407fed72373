"""Sends bytes to the metadata service as they are, each request on a connection of its own, and tells what came back.

standard input: a JSON list of requests; each is a list of strings, sent one after the other with a pause between them.
Characters stand for bytes (latin-1), both ways. Standard output: a JSON list of pairs, what came until the connection
ended, or until nothing had come for PATIENCE seconds (first argument), and after how many seconds the first of it came.
"""

import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

PATIENCE = float(sys.argv[1])
ADDRESS = ("169.254.169.254", 80)


def exchange(pieces):
    answer, first = b"", None
    with socket.create_connection(ADDRESS, timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for number, piece in enumerate(pieces):
                if number:
                    time.sleep(0.05)
                connection.sendall(piece.encode("latin-1"))
            sent = time.monotonic()
            connection.settimeout(PATIENCE)
            while data := connection.recv(65536):
                first = first or time.monotonic() - sent
                answer += data
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
    return answer.decode("latin-1"), first or PATIENCE


with ThreadPoolExecutor(16) as pool:
    json.dump(list(pool.map(exchange, json.load(sys.stdin))), sys.stdout)

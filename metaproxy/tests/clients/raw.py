"""Sends raw bytes to the metadata service, each request on a connection of its own, and prints the answers.

Standard input is a JSON list of requests. Each request is a list of strings, which are sent one after the other with
a pause between them. Characters stand for bytes (latin-1) in both directions. Standard output is a JSON list of pairs:
the answer, and the seconds until its first byte. An answer ends with the connection, or when no byte has arrived for
PATIENCE seconds (first argument).
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

"""Proxies a client's requests to the metadata service, and fails once as a network or a busy service does.

Usage: faulty.py PORT FAULT LOG. The proxy listens on the loopback. FAULT is none, or WHAT-HOW. WHAT is token, list or
document. HOW is slow (1.5 s), 500, or cut (the connection is closed without an answer). The first request of that
kind fails, and is appended to LOG. All other requests pass unchanged.
"""

import http.client
import http.server
import sys
import threading
import time

port, fault, log = int(sys.argv[1]), sys.argv[2], sys.argv[3]
what, _, how = fault.partition("-")
left = threading.Semaphore(1)


def kind(path):
    if path.endswith("/api/token"):
        return "token"
    if "/iam/security-credentials" in path:
        return "list" if path.endswith("/") else "document"
    return "other"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if kind(self.path) == what and left.acquire(blocking=False):
            with open(log, "a") as file:
                file.write(f"{self.command} {self.path}\n")
            if how == "slow":
                time.sleep(1.5)
            elif how == "500":
                return self.answer(500, {}, b"")
            else:
                self.close_connection = True
                return None
        upstream = http.client.HTTPConnection("169.254.169.254", timeout=5)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        upstream.request(self.command, self.path, headers=headers)
        answer = upstream.getresponse()
        return self.answer(answer.status, answer.headers, answer.read())

    def answer(self, status, headers, body):
        try:
            self.send_response(status)
            for name, value in dict(headers).items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    do_GET = do_PUT = do_HEAD = handle_one

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()

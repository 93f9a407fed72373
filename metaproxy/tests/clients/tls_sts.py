"""A corporate network: STS behind TLS with a private CA, reached only through an HTTP proxy.

Usage: tls_sts.py DIRECTORY. Writes ca.pem there, and appends the first line of each request to the proxy to
proxy.log.
"""

import datetime
import http.server
import pathlib
import select
import socket
import socketserver
import ssl
import sys
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HERE, TLS_PORT, PROXY_PORT, HOST = "10.200.0.2", 8443, 3128, "sts.corporate.test"
directory = pathlib.Path(sys.argv[1])


def certificate(name, issuer, key, issuer_key, is_ca):
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if not is_ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
ca = certificate("Corporate CA", None, ca_key, ca_key, True)
leaf = certificate(HOST, ca.subject, key, ca_key, False)
private = key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
(directory / "server.pem").write_bytes(private + pem(leaf))

ANSWER = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ASIATLS</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>
<Expiration>{}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""

# The answer to GetCallerIdentity, which names the owner of the agent's credentials.
CALLER = """<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
<Arn>arn:aws:sts::123456789012:assumed-role/node/i-1</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>"""


class Sts(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        expiry = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        answer = CALLER if b"Action=GetCallerIdentity" in asked else ANSWER
        body = answer.format(expiry.strftime("%Y-%m-%dT%H:%M:%SZ")).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Proxy(socketserver.StreamRequestHandler):
    def handle(self):
        request = self.rfile.readline().decode().strip()
        while self.rfile.readline().strip():
            pass
        with open(directory / "proxy.log", "a") as log:
            log.write(request + "\n")
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection((HERE, TLS_PORT)) as server:
            pair = [self.connection, server]
            while True:
                for readable in select.select(pair, [], [])[0]:
                    data = readable.recv(65536)
                    if not data:
                        return
                    pair[1 - pair.index(readable)].sendall(data)


tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(directory / "server.pem")
sts = http.server.ThreadingHTTPServer((HERE, TLS_PORT), Sts)
sts.socket = tls.wrap_socket(sts.socket, server_side=True)
threading.Thread(target=sts.serve_forever, daemon=True).start()
socketserver.ThreadingTCPServer.allow_reuse_address = True
proxy = socketserver.ThreadingTCPServer((HERE, PROXY_PORT), Proxy)
# ca.pem is written last, because its existence tells the reader that everything is set up.
(directory / "ca.new").write_bytes(pem(ca))
(directory / "ca.new").rename(directory / "ca.pem")
proxy.serve_forever()

"""An HTTPS server that says who it is and which server name it was asked for.

    tls_server.py ADDRESS PORT NAME CERTIFICATE KEY

Says `port N` when it listens.
"""

import socket
import ssl
import sys
import threading


def serve(plain, context, name):
    try:
        with context.wrap_socket(plain, server_side=True) as connection:
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
                if b"\r\n\r\n" in received:
                    path = received.split(b" ")[1].decode()
                    host = next((line[5:].strip().decode() for line in received.split(b"\r\n") if line.lower().startswith(b"host:")), "")
                    body = f"{name} sni={connection.asked_for} host={host} path={path}\n".encode()
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                    received = b""
    except OSError as error:
        print("refused", error, flush=True)


def main():
    address, port, name, certificate, key = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])

    def note(connection, asked_for, _):
        connection.asked_for = asked_for

    context.sni_callback = note
    server = socket.create_server((address, int(port)), backlog=64)
    print("port", server.getsockname()[1], flush=True)
    while True:
        plain, _ = server.accept()
        threading.Thread(target=serve, args=(plain, context, name), daemon=True).start()


main()

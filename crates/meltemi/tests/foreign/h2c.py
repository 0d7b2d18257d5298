"""The smallest HTTP/2 server (RFC 9113, prior knowledge, in plaintext): every request is answered with 200 and a text.

    h2c.py PORT TEXT

It cannot speak HTTP/1.1: who connects without the preface is told nothing.
"""

import socket
import struct
import sys
import threading

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def exactly(connection, count):
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def serve(connection, text):
    with connection:
        try:
            if exactly(connection, len(PREFACE)) != PREFACE:
                return
            connection.sendall(frame(SETTINGS, 0, 0))
            while True:
                head = exactly(connection, 9)
                kind, flags = head[3], head[4]
                stream = struct.unpack("!I", head[5:])[0] & 0x7FFFFFFF
                payload = exactly(connection, int.from_bytes(head[:3], "big"))
                if kind == SETTINGS and not flags & ACK:
                    connection.sendall(frame(SETTINGS, ACK, 0))
                elif kind == PING and not flags & ACK:
                    connection.sendall(frame(PING, ACK, 0, payload))
                elif kind == GOAWAY:
                    return
                elif kind in (DATA, HEADERS) and flags & END_STREAM:
                    # 0x88 is `:status: 200` of HPACK's static table.
                    connection.sendall(frame(HEADERS, END_HEADERS, stream, b"\x88") + frame(DATA, END_STREAM, stream, text))
        except (EOFError, OSError):
            pass


def main():
    server = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=64)
    while True:
        connection, _ = server.accept()
        threading.Thread(target=serve, args=(connection, sys.argv[2].encode()), daemon=True).start()


main()

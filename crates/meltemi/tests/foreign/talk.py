"""One TCP connection, steered line by line.

    talk.py HOST PORT

Says `connected`, then answers each line of standard input with one line:
    get PATH [METHOD]   an HTTP/1.1 request: `STATUS BODY`
    send TEXT           bytes out and as many back: `received TEXT`
    line TEXT           the same with a line feed behind it
    hear                what the other side says unasked: `received TEXT`
    until-closed        `closed` as soon as the other side ends the connection
Whenever the connection has ended, the answer is `closed`.
"""

import socket
import sys


class Closed(Exception):
    pass


class Connection:
    def __init__(self, host, port):
        self.host = host
        self.socket = socket.create_connection((host, port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def more(self):
        chunk = self.socket.recv(65536)
        if not chunk:
            raise Closed
        self.buffer += chunk

    def until(self, mark):
        while mark not in self.buffer:
            self.more()
        head, self.buffer = self.buffer.split(mark, 1)
        return head

    def exactly(self, count):
        while len(self.buffer) < count:
            self.more()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def get(self, path, method="GET"):
        self.socket.sendall(f"{method} {path} HTTP/1.1\r\nhost: {self.host}\r\n\r\n".encode())
        head = self.until(b"\r\n\r\n").split(b"\r\n")
        status = head[0].split(b" ")[1].decode()
        fields = dict(line.lower().split(b":", 1) for line in head[1:])
        if fields.get(b"transfer-encoding", b"").strip() == b"chunked":
            body = b""
            while size := int(self.until(b"\r\n").split(b";")[0], 16):
                body += self.exactly(size)
                self.until(b"\r\n")
            self.until(b"\r\n")
        else:
            body = self.exactly(int(fields.get(b"content-length", b"0")))
        return f"{status} {body.decode(errors='replace').strip()}"

    def send(self, text):
        self.socket.sendall(text.encode())
        return "received " + self.exactly(len(text)).decode(errors="replace")

    def until_closed(self):
        while True:
            self.more()


def main():
    try:
        connection = Connection(sys.argv[1], int(sys.argv[2]))
    except OSError as error:
        print("refused", error, flush=True)
        return
    print("connected", flush=True)
    for line in sys.stdin:
        verb, *words = line.split()
        try:
            if verb == "get":
                answer = connection.get(*words)
            elif verb == "send":
                answer = connection.send(words[0])
            elif verb == "line":
                answer = connection.send(words[0] + "\n").rstrip()
            elif verb == "hear":
                answer = "received " + connection.until(b"\n").decode(errors="replace")
            else:
                connection.until_closed()
        except socket.timeout:
            answer = "timeout"
        except (Closed, OSError):
            answer = "closed"
        print(answer.replace("\n", " "), flush=True)


main()

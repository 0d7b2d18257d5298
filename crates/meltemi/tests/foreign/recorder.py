"""An application that writes down every connection and every byte that reaches it.

    recorder.py NAME PORT[:greet]...

Standard output: `ID accepted PORT`, `ID bytes REPR`, `ID closed`. An HTTP/1.1 request is answered with NAME, its method
and path; other bytes come back as they are. A port with `:greet` speaks first.
"""

import socket
import sys
import threading

METHODS = (b"GET ", b"POST ", b"PUT ", b"DELETE ", b"HEAD ", b"OPTIONS ", b"PATCH ")
NAME = sys.argv[1]


def head_and_rest(received):
    """The first whole request of `received`, and what follows it; (None, received) while it is incomplete."""
    head, separator, rest = received.partition(b"\r\n\r\n")
    if not separator:
        return None, received
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    length = int(fields.get(b"content-length", b"0"))
    if fields.get(b"transfer-encoding", b"").strip() == b"chunked":
        body, separator, rest = rest.partition(b"0\r\n\r\n")
        return (head, rest) if separator else (None, received)
    return (head, rest[length:]) if len(rest) >= length else (None, received)


def serve(number, connection, port, greets):
    print(number, "accepted", port, flush=True)
    received = b""
    try:
        if greets:
            connection.sendall(f"{NAME} greets\n".encode())
        while chunk := connection.recv(65536):
            print(number, "bytes", chunk, flush=True)
            received += chunk
            if not received.startswith(METHODS):
                connection.sendall(received)
                received = b""
                continue
            while received:
                head, received = head_and_rest(received)
                if head is None:
                    break
                method, path = head.split(b" ")[:2]
                body = b"%s %s %s\n" % (NAME.encode(), method, path)
                answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % len(body)
                connection.sendall(answer + (b"" if method == b"HEAD" else body))
    except OSError as error:
        print(number, "error", error, flush=True)
    print(number, "closed", flush=True)
    connection.close()


def listen(port, greets, numbers):
    server = socket.create_server(("0.0.0.0", port), backlog=128)
    while True:
        connection, _ = server.accept()
        with numbers["lock"]:
            numbers["next"] += 1
            number = numbers["next"]
        threading.Thread(target=serve, args=(number, connection, port, greets), daemon=True).start()


def main():
    numbers = {"next": 0, "lock": threading.Lock()}
    threads = []
    for word in sys.argv[2:]:
        port, _, manner = word.partition(":")
        threads.append(threading.Thread(target=listen, args=(int(port), manner == "greet", numbers)))
    for thread in threads:
        thread.start()


main()

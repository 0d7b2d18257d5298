"""A WebSocket service that repeats what it hears, and its caller.

    ws_peer.py server PORT
    ws_peer.py client URL

The client says, as one JSON object, what came back.
"""

import json
import sys

from websockets.sync.client import connect
from websockets.sync.server import serve


def echo(connection):
    for message in connection:
        connection.send(message)


def client(url):
    with connect(url, open_timeout=20) as connection:
        back = []
        for message in ["one", "two", "x" * 100_000]:
            connection.send(message)
            back.append(connection.recv(timeout=20))
        connection.send(b"\x00\xff")
        binary = connection.recv(timeout=20)
        connection.ping().wait(20)
    print(json.dumps({
        "text": back[:2], "long": len(back[2]), "binary": list(binary), "close": connection.close_code,
    }), flush=True)


if sys.argv[1] == "server":
    with serve(echo, "0.0.0.0", int(sys.argv[2])) as running:
        running.serve_forever()
else:
    client(sys.argv[2])

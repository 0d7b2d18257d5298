"""A WebSocket and a gRPC stream that go on for a while, and the servers that they go to.

    streams.py serve-websocket PORT
    streams.py serve-grpc PORT
    streams.py websocket HOST:PORT SECONDS
    streams.py grpc HOST:PORT SECONDS

The clients send a numbered message ten times a second, want each one back, and print how many came back. They use one
connection and one stream to the end: whatever breaks it is the end, with exit code 1.
"""

import sys
import time
from concurrent import futures

PAUSE = 0.1
PATIENCE = 20
METHOD = ("soak.Echo", "Stream")


def messages(seconds):
    """Numbered messages, paced, each a while after the last."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        yield f"message {number}"
        number += 1
        time.sleep(PAUSE)


def serve_websocket(port):
    from websockets.sync.server import serve

    def echo(connection):
        for message in connection:
            connection.send(message)

    with serve(echo, "0.0.0.0", port) as server:
        server.serve_forever()


def websocket(target, seconds):
    from websockets.sync.client import connect

    with connect(f"ws://{target}/echo", proxy=None) as connection:
        count = 0
        for message in messages(seconds):
            connection.send(message)
            answer = connection.recv(timeout=PATIENCE)
            if answer != message:
                raise SystemExit(f"sent {message!r}, got {answer!r}")
            count += 1
    return count


def serve_grpc(port):
    import grpc

    class Echo(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method == "/%s/%s" % METHOD:
                return grpc.stream_stream_rpc_method_handler(lambda requests, context: (bytes(r) for r in requests))
            return None

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def grpc_stream(target, seconds):
    import queue

    import grpc

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]) as channel:
        outgoing = queue.Queue()
        stream = channel.stream_stream("/%s/%s" % METHOD)(iter(outgoing.get, None))
        count = 0
        for message in messages(seconds):
            outgoing.put(message.encode())
            answer = next(stream).decode()
            if answer != message:
                raise SystemExit(f"sent {message!r}, got {answer!r}")
            count += 1
        outgoing.put(None)
        for rest in stream:
            raise SystemExit(f"nobody asked for {rest!r}")
    return count


def main(role, address, seconds="0"):
    roles = {"websocket": websocket, "grpc": grpc_stream}
    if role == "serve-websocket":
        serve_websocket(int(address))
    elif role == "serve-grpc":
        serve_grpc(int(address))
    else:
        print(roles[role](address, float(seconds)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

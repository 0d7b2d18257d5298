"""A gRPC service and its caller, without generated code: messages are plain bytes.

    grpc_peer.py server PORT
    grpc_peer.py client TARGET

The client says, as one JSON object, what its calls came to.
"""

import json
import sys
from concurrent import futures

import grpc

SERVICE = "test.Echo"


def say(request, context):
    if request == b"missing":
        context.abort(grpc.StatusCode.NOT_FOUND, "nobody of that name")
    context.set_trailing_metadata((("x-trailer", "at the end"),))
    return b"said " + request


def chat(requests, context):
    for request in requests:
        yield b"heard " + request


def server(port):
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    grpc_server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    grpc_server.add_insecure_port(f"0.0.0.0:{port}")
    grpc_server.start()
    grpc_server.wait_for_termination()


def client(target):
    channel = grpc.insecure_channel(target)
    unary = channel.unary_unary(f"/{SERVICE}/Say")
    answers = [unary(f"word {n}".encode(), timeout=20).decode() for n in range(3)]
    _, call = unary.with_call(b"word", timeout=20)
    trailers = {key: value for key, value in call.trailing_metadata()}
    try:
        unary(b"missing", timeout=20)
        status = "OK"
    except grpc.RpcError as error:
        status = f"{error.code().name}: {error.details()}"

    # The next message goes out when the answer to the one before is there: a stream, not a batch.
    replies = []
    turn = futures.Future()
    turns = [futures.Future() for _ in range(4)]
    turns[0].set_result(None)

    def messages():
        for number, ready in enumerate(turns[:3]):
            ready.result(20)
            yield f"line {number}".encode()
        turns[3].result(20)

    stream = channel.stream_stream(f"/{SERVICE}/Chat")(messages(), timeout=60)
    for number, reply in enumerate(stream):
        replies.append(reply.decode())
        turns[number + 1].set_result(None)
    turn.cancel()
    big = unary(b"x" * 1_000_000, timeout=20)
    print(json.dumps({
        "unary": answers, "status": status, "stream": replies, "code": stream.code().name,
        "trailer": trailers.get("x-trailer"), "big": len(big),
    }), flush=True)


if sys.argv[1] == "server":
    server(sys.argv[2])
else:
    client(sys.argv[2])

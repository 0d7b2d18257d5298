"""An external authorizer over HTTP and gRPC, for policies with action CUSTOM.

    authorizer.py HTTP_PORT GRPC_PORT

It does what the request's header `x-decide` says: `allow`, `deny`, `slow` (an answer after 60 s), `fail` (HTTP 500, or the gRPC
status INTERNAL). A TCP connection is allowed if its peer's service account is `friend`. Standard output: one JSON object a check.
"""

import json
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.type.v3 import http_status_pb2
from google.rpc import code_pb2, status_pb2

# To the upstream with an allowing answer, to the client with either.
ALLOWED = {"x-checked": "yes", "x-not-listed": "upstream"}
ANSWERED = {"x-answered": "yes"}
DENIED = {"x-reason": "because", "x-not-listed": "downstream"}


def tell(**check):
    print(json.dumps(check), flush=True)


class OverHttp(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def check(self):
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        tell(api="http", method=self.command, path=self.path, headers=headers, body=body.decode())
        decision = headers.get("x-decide", "deny")
        if decision == "slow":
            time.sleep(60)
        if decision == "fail":
            return self.answer(500, {}, b"")
        if decision == "allow":
            return self.answer(200, ALLOWED | ANSWERED, b"")
        return self.answer(401, DENIED, b"denied over http")

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = check

    def log_message(self, *_):
        pass


def options(headers):
    return [base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=key, value=value)) for key, value in headers.items()]


class OverGrpc(external_auth_pb2_grpc.AuthorizationServicer):
    def Check(self, request, context):
        attributes = request.attributes
        principal = attributes.source.principal
        if not attributes.request.HasField("http"):
            tell(api="tcp", principal=principal, port=attributes.destination.address.socket_address.port_value)
            allows = principal.endswith("/sa/friend")
            code = code_pb2.OK if allows else code_pb2.PERMISSION_DENIED
            return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=code))

        http = attributes.request.http
        headers = dict(http.headers)
        body = http.body or http.raw_body.decode()
        tell(api="grpc", method=http.method, path=http.path, headers=headers, body=body, principal=principal)
        decision = headers.get("x-decide", "deny")
        if decision == "slow":
            time.sleep(60)
        if decision == "fail":
            context.abort(grpc.StatusCode.INTERNAL, "it fails")
        if decision == "allow":
            ok = external_auth_pb2.OkHttpResponse(headers=options(ALLOWED), response_headers_to_add=options(ANSWERED))
            return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=code_pb2.OK), ok_response=ok)
        denied = external_auth_pb2.DeniedHttpResponse(
            status=http_status_pb2.HttpStatus(code=401), headers=options(DENIED), body="denied over grpc"
        )
        return external_auth_pb2.CheckResponse(
            status=status_pb2.Status(code=code_pb2.PERMISSION_DENIED), denied_response=denied
        )


def main():
    http = ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), OverHttp)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(OverGrpc(), server)
    server.add_insecure_port(f"0.0.0.0:{sys.argv[2]}")
    server.start()
    server.wait_for_termination()


main()

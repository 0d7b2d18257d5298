"""A service of the tutorial: `service.py NAME [URL]`.

It answers its name, and behind it what the service at URL answers. The header x-tester goes on to
that service, so that a route there can match on it.
"""

import http.server
import sys
import urllib.error
import urllib.request

NAME = sys.argv[1]
URL = sys.argv[2] if len(sys.argv) > 2 else None


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status, text = self.answer()
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self):
        if URL is None:
            return 200, NAME

        headers = {name: self.headers[name] for name in ["x-tester"] if name in self.headers}
        try:
            with urllib.request.urlopen(urllib.request.Request(URL, headers=headers)) as reply:
                return 200, f"{NAME} > {reply.read().decode().strip()}"
        except urllib.error.HTTPError as refusal:
            return 502, f"{NAME} > {refusal.code} {refusal.read().decode().strip()}"


http.server.ThreadingHTTPServer(("", 8080), Service).serve_forever()

"""Requests without pause until standard input ends, over a connection that is kept and over new ones.

    load.py HOST PORT PATH

Then says, as one JSON object: {"kept": N, "new": N, "reconnects": N, "failures": ["..."]}. A server may end an idle
connection between two requests; a request without a good answer is a failure.
"""

import http.client
import json
import sys
import threading

stop = threading.Event()
counts = {"kept": 0, "new": 0, "reconnects": 0, "failures": []}


def one(connection, path, what):
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        counts["failures"].append(f"{what}: {answer.status} {body[:100]!r}")
    counts[what] += 1
    if answer.will_close:
        connection.close()
        counts["reconnects"] += 1


def kept(host, port, path):
    connection = http.client.HTTPConnection(host, port, timeout=20)
    while not stop.is_set():
        try:
            one(connection, path, "kept")
        except Exception as error:
            counts["failures"].append(f"kept: {error!r}")
            connection.close()


def new(host, port, path):
    while not stop.wait(0.005):
        connection = http.client.HTTPConnection(host, port, timeout=20)
        try:
            one(connection, path, "new")
        except Exception as error:
            counts["failures"].append(f"new: {error!r}")
        connection.close()


def main():
    host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    threads = [threading.Thread(target=run, args=(host, port, path)) for run in (kept, new)]
    for thread in threads:
        thread.start()
    print("started", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    counts["failures"] = counts["failures"][:20]
    print(json.dumps(counts), flush=True)


main()

"""A small xDS server that shares no line with Meltemi: grpcio and Envoy's published messages.

    xds_server.py RESOURCES.json [PORT]

RESOURCES.json is an object from type URL to a list of resources in protobuf JSON. The server prints `port N` when it
listens. A line on standard input makes it read the file again and push what changed. What clients say is printed as one
JSON object a line: {"variant", "type", "ack": true} or {"variant", "type", "nack": "reason"}.
"""

import json
import queue
import sys
import threading
from concurrent import futures

import grpc
from envoy.config.cluster.v3 import cluster_pb2  # noqa: F401  registers what JSON names
from envoy.config.endpoint.v3 import endpoint_pb2  # noqa: F401
from envoy.config.listener.v3 import listener_pb2  # noqa: F401
from envoy.config.route.v3 import route_pb2  # noqa: F401
from envoy.extensions.access_loggers.file.v3 import file_pb2  # noqa: F401
from envoy.extensions.access_loggers.stream.v3 import stream_pb2  # noqa: F401
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2  # noqa: F401
from envoy.extensions.filters.http.cors.v3 import cors_pb2  # noqa: F401
from envoy.extensions.filters.http.fault.v3 import fault_pb2  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: F401
    http_connection_manager_pb2,
)
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2, json_format

PREFIX = "type.googleapis.com/"
WILDCARD = {PREFIX + "envoy.config.cluster.v3.Cluster", PREFIX + "envoy.config.listener.v3.Listener"}


def say(**words):
    print(json.dumps(words), flush=True)


class World:
    """The resources of the file, by type and name, and the streams that want to know of changes."""

    def __init__(self, path):
        self.path, self.version, self.types, self.streams = path, 0, {}, []
        self.lock = threading.Lock()
        self.read()

    def read(self):
        with open(self.path, encoding="utf-8") as file:
            raw = json.load(file)
        types = {}
        for url, resources in raw.items():
            named = types.setdefault(url, {})
            for resource in resources:
                name = resource.get("name") or resource["cluster_name"]
                packed = json_format.ParseDict({"@type": url, **resource}, any_pb2.Any())
                named[name] = (json.dumps(resource, sort_keys=True), packed)
        with self.lock:
            self.version += 1
            self.types = types
            streams = list(self.streams)
        for stream in streams:
            stream.put(None)

    def of(self, url):
        with self.lock:
            return dict(self.types.get(url, {})), str(self.version)

    def follow(self):
        stream = queue.Queue()
        with self.lock:
            self.streams.append(stream)
        return stream


class Ads(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def __init__(self, world):
        self.world = world

    def _events(self, requests):
        events = self.world.follow()

        def pump():
            try:
                for request in requests:
                    events.put(request)
            except grpc.RpcError:
                pass
            events.put("end")

        threading.Thread(target=pump, daemon=True).start()
        while (event := events.get()) != "end":
            yield event

    def StreamAggregatedResources(self, requests, context):
        wanted, sent = {}, {}
        for event in self._events(requests):
            if event is None:
                changed = list(wanted)
            else:
                url = event.type_url
                if event.response_nonce:
                    failed = event.HasField("error_detail")
                    say(variant="sotw", type=url, **({"nack": event.error_detail.message} if failed else {"ack": True}))
                if wanted.get(url) == list(event.resource_names) and event.response_nonce:
                    continue
                wanted[url] = list(event.resource_names)
                sent.pop(url, None)
                changed = [url]
            for url in sorted(changed, key=lambda u: ("cluster" not in u.lower(), "Listener" in u)):
                resources, version = self.world.of(url)
                if url not in WILDCARD:
                    resources = {name: r for name, r in resources.items() if name in wanted[url]}
                shape = {name: text for name, (text, _) in resources.items()}
                if sent.get(url) == shape:
                    continue
                sent[url] = shape
                yield discovery_pb2.DiscoveryResponse(
                    version_info=version, type_url=url, nonce=f"{url}-{version}",
                    resources=[packed for _, packed in resources.values()])

    def DeltaAggregatedResources(self, requests, context):
        wanted, sent, nonce = {}, {}, 0
        for event in self._events(requests):
            if event is None:
                changed = list(wanted)
            else:
                url = event.type_url
                first = url not in wanted
                names = wanted.setdefault(url, set())
                if event.response_nonce:
                    failed = event.HasField("error_detail")
                    say(variant="delta", type=url, **({"nack": event.error_detail.message} if failed else {"ack": True}))
                if first:
                    sent[url] = dict(event.initial_resource_versions)
                    if not event.resource_names_subscribe and url in WILDCARD:
                        names.add("*")
                names.update(event.resource_names_subscribe)
                names.difference_update(event.resource_names_unsubscribe)
                for name in event.resource_names_subscribe:
                    sent[url].pop(name, None)
                for name in event.resource_names_unsubscribe:
                    sent[url].pop(name, None)
                changed = [url]
            for url in sorted(changed, key=lambda u: ("cluster" not in u.lower(), "Listener" in u)):
                resources, version = self.world.of(url)
                if "*" not in wanted[url]:
                    resources = {name: r for name, r in resources.items() if name in wanted[url]}
                known = sent[url]
                new = {name: r for name, r in resources.items() if known.get(name) != r[0]}
                gone = [name for name in known if name not in resources]
                if not new and not gone:
                    continue
                nonce += 1
                for name in gone:
                    del known[name]
                known.update({name: text for name, (text, _) in new.items()})
                yield discovery_pb2.DeltaDiscoveryResponse(
                    type_url=url, nonce=str(nonce), system_version_info=version, removed_resources=gone,
                    resources=[discovery_pb2.Resource(name=name, version=text, resource=packed)
                               for name, (text, packed) in new.items()])


def main():
    world = World(sys.argv[1])
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Ads(world), server)
    port = server.add_insecure_port(f"127.0.0.1:{sys.argv[2] if len(sys.argv) > 2 else 0}")
    server.start()
    print(f"port {port}", flush=True)
    for _ in sys.stdin:
        world.read()
    server.stop(0)


main()

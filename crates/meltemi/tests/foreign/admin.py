"""Reads a proxy's admin interface with Envoy's own messages: what they cannot hold is an error.

    admin.py ADDRESS

Says, as JSON: {"config_dump": types of the parts, "clusters": names, "listeners": names, "certs": number, "state",
"foreign": types inside of configuration that are not Envoy's}.
"""

import importlib
import json
import pkgutil
import sys
import urllib.request

import envoy
from envoy.admin.v3 import certs_pb2, clusters_pb2, config_dump_pb2, listeners_pb2, server_info_pb2
from google.protobuf import descriptor_pool, json_format

# Every message that an Any may hold.
for module in pkgutil.walk_packages(envoy.__path__, "envoy."):
    if module.name.endswith("_pb2") and ".v2" not in module.name:
        importlib.import_module(module.name)
importlib.import_module("udpa.type.v1.typed_struct_pb2")
importlib.import_module("xds.type.v3.typed_struct_pb2")

foreign = set()


def known(value):
    """The value, with what only others than Envoy can read made empty."""
    if isinstance(value, list):
        return [known(item) for item in value]
    if not isinstance(value, dict):
        return value
    name = value.get("@type", "").rsplit("/", 1)[-1]
    if name:
        try:
            descriptor_pool.Default().FindMessageTypeByName(name)
        except KeyError:
            foreign.add(name)
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}
    return {key: known(item) for key, item in value.items()}


def get(path, message):
    with urllib.request.urlopen(f"http://{sys.argv[1]}{path}", timeout=20) as answer:
        return json_format.ParseDict(known(json.load(answer)), message)


dump = get("/config_dump?include_eds", config_dump_pb2.ConfigDump())
clusters = get("/clusters?format=json", clusters_pb2.Clusters())
listeners = get("/listeners?format=json", listeners_pb2.Listeners())
certs = get("/certs", certs_pb2.Certificates())
info = get("/server_info", server_info_pb2.ServerInfo())
print(
    json.dumps(
        {
            "config_dump": [part.type_url.rsplit(".", 1)[-1] for part in dump.configs],
            "clusters": [status.name for status in clusters.cluster_statuses],
            "listeners": [status.name for status in listeners.listener_statuses],
            "certs": len(certs.certificates),
            "state": server_info_pb2.ServerInfo.State.Name(info.state),
            "foreign": sorted(foreign),
        }
    )
)

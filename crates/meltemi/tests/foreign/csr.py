"""Asks the control plane for a certificate and for configuration, with the token of one workload.

    csr.py RUN_DIR CONTROL POD OTHER_IDENTITY OTHER_NODE_ID OWN_NODE_ID

Runs where the node's processes are visible: the token is the one that POD's sidecar inherited. Says, as JSON lines, what
became of each attempt: {"attempt", "code", "identity"?}.
"""

import glob
import json
import os
import subprocess
import sys
import tempfile
import threading

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import json_format, struct_pb2

CLUSTERS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"


def token_of(pod):
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            words = open(path, encoding="utf-8", errors="replace").read().split("\0")
        except OSError:
            continue
        if "--token-fd" in words and "--pod" in words and words[words.index("--pod") + 1] == pod:
            number = words[words.index("--token-fd") + 1]
            return open(f"{os.path.dirname(path)}/fd/{number}", encoding="utf-8").read().strip()
    raise SystemExit(f"no sidecar of {pod}")


def field(number, data):
    """A length-delimited field of a protobuf message."""
    length, out = len(data), bytes([number << 3 | 2])
    while length > 127:
        out, length = out + bytes([length & 127 | 128]), length >> 7
    return out + bytes([length]) + data


def strings(message):
    """All length-delimited fields of a message."""
    at, out = 0, []
    while at < len(message):
        assert message[at] & 7 == 2, message[at]
        at, shift, length = at + 1, 0, 0
        while True:
            byte, at = message[at], at + 1
            length, shift = length | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        out.append(message[at:at + length].decode())
        at += length
    return out


def request_for(identity):
    with tempfile.TemporaryDirectory() as folder:
        command = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/",
                   "-keyout", f"{folder}/key.pem", "-addext", f"subjectAltName=URI:{identity}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def identity_in(certificate):
    command = ["openssl", "x509", "-noout", "-ext", "subjectAltName"]
    text = subprocess.run(command, input=certificate, check=True, capture_output=True, text=True).stdout
    return text.split("URI:")[-1].strip()


def main():
    run_dir, control, pod, other, other_node, own_node = sys.argv[1:]
    token = token_of(pod)
    with open(f"{run_dir}/root-cert.pem", "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    channel = grpc.secure_channel(control, credentials, [("grpc.ssl_target_name_override", "istiod.istio-system.svc")])
    sign = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
    own = f"{other.rpartition('/')[0]}/{pod.rpartition('-')[0]}"
    csr, csr_of_other = field(1, request_for(own).encode()), field(1, request_for(other).encode())
    impersonated = struct_pb2.Struct()
    impersonated.update({"ImpersonatedIdentity": other})
    head, _, signature = token.rpartition(".")
    forged = f"{head}.{signature[:10]}{'A' if signature[10] != 'A' else 'B'}{signature[11:]}"

    def bearer(text):
        return [("authorization", f"Bearer {text}")]

    for attempt, message, metadata in [
        ("own identity", csr, bearer(token)),
        ("identity of another", csr_of_other, bearer(token)),
        ("impersonation", csr + field(4, impersonated.SerializeToString()), bearer(token)),
        ("no token", csr, []),
        ("forged token", csr, bearer(forged)),
        ("garbage", field(1, b"no request at all"), bearer(token)),
    ]:
        try:
            chain = strings(sign(message, metadata=metadata, timeout=20))
            print(json.dumps({"attempt": attempt, "code": "OK", "identity": identity_in(chain[0])}), flush=True)
        except grpc.RpcError as error:
            print(json.dumps({"attempt": attempt, "code": error.code().name, "says": error.details()}), flush=True)

    ads = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
    for attempt, node, metadata in [
        ("own configuration", own_node, bearer(token)),
        ("configuration of another", other_node, bearer(token)),
        ("configuration without token", own_node, []),
    ]:
        account = other.rsplit("/", 1)[-1] if node == other_node else pod.rsplit("-", 1)[0]
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTERS)
        request.node.id, request.node.cluster = node, "test"
        json_format.ParseDict({"NAMESPACE": "default", "SERVICE_ACCOUNT": account}, request.node.metadata)
        answered = threading.Event()

        def requests(request=request, answered=answered):
            yield request
            answered.wait(20)

        try:
            response = next(ads.DeltaAggregatedResources(requests(), metadata=metadata, timeout=20))
            print(json.dumps({"attempt": attempt, "code": "OK", "clusters": len(response.resources)}), flush=True)
        except grpc.RpcError as error:
            print(json.dumps({"attempt": attempt, "code": error.code().name, "says": error.details()}), flush=True)
        answered.set()


main()

"""Real istiod and real pilot-agents around our proxy, in a network namespace of their own.

    istio.py ISTIO MELTEMI FOLDER

ISTIO is the folder of `pilot-discovery`, `pilot-agent` and `envoy_bootstrap.json`, MELTEMI the
binary that the agents start in Envoy's place. Every workload has an address of 127.0.0.0/8:

    client (sidecar, 127.0.0.12)  -> web (sidecar, 127.0.0.11) -> application 127.0.0.1:18000
    gateway (router, 127.0.0.13)  -> web

Says one JSON object: what was seen, by the step's name.
"""

import fcntl
import http.client
import http.server
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

ISTIO, MELTEMI, FOLDER = (pathlib.Path(argument).absolute() for argument in sys.argv[1:])
PATIENCE = 60

MESH = """
accessLogFile: /dev/stdout
defaultProviders: {metrics: [prometheus]}
defaultConfig: {discoveryAddress: "127.0.0.1:15010"}
"""

CONFIG = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: default}
spec:
  hosts: [web.default.svc.cluster.local]
  addresses: [10.10.0.1]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8000, name: http, protocol: HTTP, targetPort: 9100}]
  workloadSelector: {labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web-0, namespace: default}
spec: {address: 127.0.0.11, labels: {app: web, version: v1}, serviceAccount: web}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web, namespace: default}
spec:
  workloadSelector: {labels: {app: web}}
  ingress: [{port: {number: 9100, name: http, protocol: HTTP}, defaultEndpoint: "127.0.0.1:18000"}]
  egress: [{hosts: ["istio-system/*"]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ["edge.test"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: default}
spec:
  hosts: ["edge.test"]
  gateways: [edge]
  http: [{route: [{destination: {host: web.default.svc.cluster.local, port: {number: 8000}}}]}]
"""

DENY = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: private, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/client"]}}], to: [{operation: {paths: ["/private"]}}]}]
"""


def bring_up_loopback():
    up_and_running = 0x41
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", up_and_running))


class Authority:
    """A CA of the test's own, which writes certificates where the agents look for them."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.openssl("req", "-x509", *self.new_key("ca.pem"), "-out", "root-cert.pem", "-days", "2", "-subj", "/O=test",
                     "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")

    @staticmethod
    def new_key(name):
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", name]

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def issue(self, account, into):
        """The serial number of the new certificate."""
        (self.folder / "extensions").write_text(
            f"subjectAltName=critical,URI:spiffe://cluster.local/ns/default/sa/{account}\n"
            "extendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature\n")
        self.openssl("req", *self.new_key("key.pem"), "-out", "request.pem", "-subj", "/")
        # Positive, and of sixteen digits.
        serial = int.from_bytes(os.urandom(8), "big") >> 1 | 1 << 62
        self.openssl("x509", "-req", "-in", "request.pem", "-CA", "root-cert.pem", "-CAkey", "ca.pem", "-set_serial", str(serial),
                     "-out", "cert-chain.pem", "-days", "1", "-extfile", "extensions")
        into.mkdir(parents=True, exist_ok=True)
        for name in ("root-cert.pem", "key.pem", "cert-chain.pem"):
            # Renamed into place, so that no reader sees half a file.
            (into / f".{name}").write_bytes((self.folder / name).read_bytes())
            (into / f".{name}").rename(into / name)
        return f"{serial:x}"


class Application(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = json.dumps({"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def listens(address, port):
    with socket.socket() as client:
        return client.connect_ex((address, port)) == 0


def get(address, port, host, path="/"):
    """Status and body; 0 and the error where there is no answer."""
    try:
        connection = http.client.HTTPConnection(address, port, timeout=10)
        connection.request("GET", path, headers={"host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error)


class Agent:
    """A pilot-agent with its proxy. Several share a namespace, so each has ports of its own."""

    def __init__(self, authority, name, number, role):
        self.name, self.address = name, f"127.0.0.1{number}"
        self.admin, self.status = 15000 + 100 * number, 15020 + 100 * number
        self.folder = FOLDER / name
        self.credentials = self.folder / "var/run/secrets/workload-spiffe-credentials"
        self.serial = authority.issue(name, self.credentials)
        labels = {"app": name, "version": "v1"} | ({"istio": "ingressgateway"} if role == "router" else {})
        config = {
            "binaryPath": str(FOLDER / "envoy"), "discoveryAddress": "127.0.0.1:15010", "controlPlaneAuthPolicy": "NONE",
            "configPath": str(self.folder / "etc/istio/proxy"), "proxyAdminPort": self.admin, "statusPort": self.status,
            "concurrency": 1, "drainDuration": "2s", "terminationDrainDuration": "1s",
        }
        environment = os.environ | {
            "POD_NAME": f"{name}-0", "POD_NAMESPACE": "default", "INSTANCE_IP": self.address, "SERVICE_ACCOUNT": name,
            "TRUST_DOMAIN": "cluster.local", "PROXY_CONFIG": json.dumps(config), "ISTIO_BOOTSTRAP": str(ISTIO / "envoy_bootstrap.json"),
            "ENVOY_PROMETHEUS_PORT": str(15090 + 100 * number), "ENVOY_STATUS_PORT": str(15021 + 100 * number),
            "ISTIO_META_CLUSTER_ID": "Kubernetes", "ISTIO_META_INTERCEPTION_MODE": "NONE", "ISTIO_META_WORKLOAD_NAME": name,
            "ISTIO_METAJSON_LABELS": json.dumps(labels),
        }
        self.log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(
            [ISTIO / "pilot-agent", "proxy", role, "--domain", "default.svc.cluster.local", "--proxyLogLevel=warning",
             "--proxyComponentLogLevel=misc:error"],
            cwd=self.folder, env=environment, stdout=self.log, stderr=subprocess.STDOUT)

    def page(self, path):
        return get("127.0.0.1", self.admin, "localhost", path)[1]

    def is_ready(self):
        return get("127.0.0.1", self.status, "localhost", "/healthz/ready")[0] == 200

    def serials(self):
        certificates = json.loads(self.page("/certs"))["certificates"]
        return [chain["serial_number"] for certificate in certificates for chain in certificate["cert_chain"]]


def wait(what, holds):
    deadline = time.monotonic() + PATIENCE
    while not (value := holds()):
        if time.monotonic() > deadline:
            tails = {log.parent.name: log.read_text(errors="replace")[-3000:] for log in FOLDER.glob("*/log")}
            sys.exit(f"{what}: did not come to hold\n" + "\n".join(f"== {name}\n{tail}" for name, tail in tails.items()))
        time.sleep(0.1)
    return value


def start_istiod():
    folder = FOLDER / "istiod"
    (folder / "config").mkdir(parents=True)
    (folder / "config/all.yaml").write_text(CONFIG)
    (folder / "mesh.yaml").write_text(MESH)
    log = open(folder / "log", "wb")
    environment = os.environ | {"XDS_AUTH": "false", "ENABLE_CA_SERVER": "false", "PILOT_CERT_PROVIDER": "none"}
    return subprocess.Popen(
        [ISTIO / "pilot-discovery", "discovery", "--registries=", "--configDir", folder / "config", "--meshConfig", folder / "mesh.yaml",
         "--httpsAddr", "", "--secureGRPCAddr", "", "--grpcAddr", "127.0.0.1:15010", "--httpAddr", "127.0.0.1:8180",
         "--monitoringAddr", "127.0.0.1:8114", "--ctrlz_port", "0"],
        cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def run(seen, started):
    bring_up_loopback()
    (FOLDER / "envoy").symlink_to(MELTEMI)
    application = http.server.ThreadingHTTPServer(("127.0.0.1", 18000), Application)
    threading.Thread(target=application.serve_forever, daemon=True).start()

    istiod = start_istiod()
    started.append(istiod)
    wait("istiod serves", lambda: listens("127.0.0.1", 15010))
    authority = Authority(FOLDER / "authority")
    web, client, gateway = (Agent(authority, *terms) for terms in (("web", 1, "sidecar"), ("client", 2, "sidecar"), ("gateway", 3, "router")))
    agents = [web, client, gateway]
    started.extend(agent.process for agent in agents)
    for agent in agents:
        wait(f"{agent.name} is ready", agent.is_ready)

    # The agents call a proxy ready when its first listeners were accepted; sockets follow.
    web_host = "web.default.svc.cluster.local:8000"
    wait("the client reaches web", lambda: get("127.0.0.1", 8000, web_host)[0] == 200)
    wait("the gateway reaches web", lambda: get("127.0.0.1", 8080, "edge.test")[0] == 200)
    seen["client"] = get("127.0.0.1", 8000, web_host, "/private")
    seen["gateway"] = get("127.0.0.1", 8080, "edge.test", "/a")
    seen["unknown host at the gateway"] = get("127.0.0.1", 8080, "other.test")
    seen["unknown host"] = get("127.0.0.1", 8000, "unknown.test")
    seen["plaintext to web"] = get("127.0.0.11", 9100, web_host)
    seen["rejected"] = {agent.name: [line for line in agent.page("/stats?filter=update_rejected").splitlines() if not line.endswith(": 0")]
                        for agent in agents}
    seen["not served"] = {agent.name: [state for state in ("error_state", "warming_state") if state in agent.page("/config_dump")]
                          for agent in agents}
    metrics = get("127.0.0.1", client.status, "localhost", "/stats/prometheus")[1]
    seen["requests in the agent's metrics"] = [line for line in metrics.splitlines() if line.startswith("istio_requests_total{") and 'response_code="200"' in line]

    dump = FOLDER / "dump.json"
    dump.write_text(web.page("/config_dump"))
    seen["istioctl"] = {
        what: subprocess.run([ISTIO / "istioctl", "proxy-config", what, "--file", dump], capture_output=True, text=True).stdout
        for what in ("all", "bootstrap", "secret")
    }

    # A policy of istiod's reaches the proxy, for one path and one identity.
    (FOLDER / "istiod/config/all.yaml").write_text(CONFIG + DENY)
    wait("the policy denies", lambda: get("127.0.0.1", 8000, web_host, "/private")[0] == 403)
    seen["denied"] = get("127.0.0.1", 8000, web_host, "/private")
    seen["not denied"] = get("127.0.0.1", 8000, web_host, "/public")
    seen["another identity"] = get("127.0.0.1", 8080, "edge.test", "/private")

    # The agent sees new files and sends the new certificate over SDS.
    before, renewed = web.serial, authority.issue("web", web.credentials)
    wait("web has its new certificate", lambda: renewed in web.serials())
    seen["renewed"] = {"old is gone": before not in web.serials(), "client": get("127.0.0.1", 8000, web_host)[0]}

    # The mesh serves on without istiod.
    istiod.kill()
    istiod.wait()
    seen["without istiod"] = [get("127.0.0.1", 8000, web_host)[0], get("127.0.0.1", 8080, "edge.test")[0]]

    # The agent ends its proxy in order.
    web.process.send_signal(signal.SIGTERM)
    seen["the agent ends"] = web.process.wait(timeout=PATIENCE)


def main():
    seen, started = {}, []
    try:
        run(seen, started)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    print(json.dumps(seen), flush=True)


main()

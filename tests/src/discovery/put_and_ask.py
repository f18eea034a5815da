"""How long a key takes from its put until a gateway, nginx or the name server has it, in milliseconds, a line each.

Usage: put_and_ask.py gateway|nginx|dns ROUNDS SECONDS_BETWEEN NAME=ADDRESS NAME=ADDRESS. The key of the service `bare`
moves to and fro between the two, which say their names. The clock starts before the put is sent.
"""

import base64
import http.client
import json
import re
import socket
import subprocess
import sys
import time

WHAT, ROUNDS, REST = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
TARGETS = [target.split("=") for target in sys.argv[4:]]
PATIENCE = 10.0

hub = http.client.HTTPConnection("127.0.0.1", 2379, timeout=5)


def put(value):
    code = lambda text: base64.b64encode(text.encode()).decode()
    body = json.dumps({"key": code("/services/bare/upstream/bare"), "value": code(value)})
    hub.request("POST", "/v3/kv/put", body)
    answer = hub.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()


class Http:
    def __init__(self, port, keep):
        self.port, self.keep, self.connection = port, keep, None

    def has(self, name, _address):
        try:
            self.connection = self.connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            self.connection.request("GET", "/", headers={"Host": "bare"})
            return f"<h1>{name}</h1>".encode() in self.connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            self.connection = None
            return False
        finally:
            # What is connected stays with nginx's old workers, a tenth of a second longer than nginx takes to start new ones.
            self.connection = self.connection if self.keep else None


class Dns:
    def __init__(self):
        addresses = subprocess.check_output(["ip", "-4", "-o", "addr", "show", "docker0"], text=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(5)
        self.socket.connect((re.search(r"inet ([0-9.]+)", addresses).group(1), 53))
        labels = "bare.svc.cluster.internal".split(".")
        name = b"".join(bytes([len(label)]) + label.encode() for label in labels)
        self.question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + name + b"\x00\x00\x01\x00\x01"

    def has(self, _name, address):
        self.socket.send(self.question)
        return self.socket.recv(1232).endswith(socket.inet_aton(address.split(":")[0]))


asked = {"gateway": lambda: Http(8080, True), "nginx": lambda: Http(80, False), "dns": Dns}[WHAT]()


def until(name, address):
    begun = time.monotonic()
    put(address)
    while not asked.has(name, address):
        assert time.monotonic() - begun < PATIENCE, f"{name} at {address} is not there after {PATIENCE} s"
    return (time.monotonic() - begun) * 1e3


until(*TARGETS[0])
for round in range(ROUNDS):
    time.sleep(REST)
    print(f"{until(*TARGETS[(round + 1) % 2]):.2f}")

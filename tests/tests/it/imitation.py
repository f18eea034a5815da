"""What fleetctl 1.0 asks of fleet's API, verb by verb, with its polling every 250 ms: an independent client.

Usage: imitation.py SOCKET UNIT. Ends with an error when a verb would hang, or when a restart restarts nothing.
"""

import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.parse

SOCKET, UNIT = sys.argv[1:]
OPTIONS = [{"section": "Service", "name": "ExecStart", "value": "/bin/sleep infinity"}]


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(SOCKET)


def ask(method, path, body=None):
    connection = Connection("fleet")
    headers = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, f"/fleet/v1/{path}?alt=json", body and json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    return answer.status, json.loads(text) if text else None


def unit(name):
    return "units/" + urllib.parse.quote(name, safe="")


def want(state):
    status, _ = ask("PUT", unit(UNIT), {"name": UNIT, "desiredState": state})
    assert status == 204, (state, status)


def wait(state, what):
    for _ in range(120):
        time.sleep(0.25)
        status, answer = ask("GET", unit(UNIT))
        if status == 200 and answer["currentState"] == state:
            return answer
    sys.exit(f"{what} hangs: {UNIT} is not {state} but {answer}")


def state():
    status, answer = ask("GET", "state/" + urllib.parse.quote(UNIT, safe=""))
    assert status == 200, status  # fleetctl panics at a 404
    return answer


def active():
    for _ in range(8):
        answer = state()
        if (answer.get("systemdLoadState"), answer.get("systemdActiveState")) == ("loaded", "active"):
            return
        time.sleep(0.25)
    sys.exit(f"{UNIT} is not active within 2 s of being launched: {answer}")


def pid():
    shown = ["muster", "ssh", UNIT, "systemctl", "show", "--property=MainPID", "--value", UNIT]
    return subprocess.run(shown, check=True, capture_output=True, text=True).stdout.strip()


assert state() == {}
assert ask("GET", unit(UNIT))[0] == 404
assert ask("PUT", unit(UNIT), {"name": UNIT, "desiredState": "inactive", "options": OPTIONS})[0] == 201
wait("inactive", "submit")
want("loaded")
answer = wait("loaded", "load")
assert answer["machineID"] in [machine["id"] for machine in ask("GET", "machines")[1]["machines"]], answer
want("launched")
wait("launched", "start")
active()
for _ in range(2):
    before = pid()
    want("loaded")
    wait("launched", "the first half of restart")  # sic
    want("launched")
    wait("launched", "the second half of restart")
    active()
    assert pid() not in (before, "0"), "restart restarted nothing"
want("loaded")
wait("loaded", "stop")
want("inactive")
wait("inactive", "unload")
assert ask("DELETE", unit(UNIT))[0] == 204
assert ask("GET", unit(UNIT))[0] == 404
print("done")

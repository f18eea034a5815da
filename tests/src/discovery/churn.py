"""Changes a service's keys at a steady rate, by the hub's JSON API, and prints how many changes a second were made.

Usage: churn.py SERVICE PER_SECOND SECONDS ADDRESS ADDRESS [ADDRESS...]. The first half of the addresses have keys that stay;
keys of the others are put and deleted in turn. Zero seconds only put the keys that stay. An ADDRESS may be anything.
"""

import base64
import http.client
import json
import sys
import time

SERVICE, PACE, SECONDS, ADDRESSES = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
hub = http.client.HTTPConnection("127.0.0.1", 2379, timeout=5)


def ask(path, **fields):
    body = {name: base64.b64encode(text.encode()).decode() for name, text in fields.items()}
    hub.request("POST", path, json.dumps(body))
    answer = hub.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()


def key(number):
    return f"/services/{SERVICE}/upstream/{SERVICE}-{number}"


half = (len(ADDRESSES) + 1) // 2
for number in range(half):
    ask("/v3/kv/put", key=key(number), value=ADDRESSES[number])
begun, count = time.monotonic(), 0
while count < PACE * SECONDS:
    number = half + count // 2 % (len(ADDRESSES) - half)
    if count % 2 == 0:
        ask("/v3/kv/put", key=key(number), value=ADDRESSES[number])
    else:
        ask("/v3/kv/deleterange", key=key(number))
    count += 1
    time.sleep(max(0.0, begun + count / PACE - time.monotonic()))
print(count / (time.monotonic() - begun) if count else 0)

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A client of fathomd in 30 lines: python3-msgpack and docs/PROTOCOL.md are all it needs."""
import os, socket, struct, sys, msgpack

sock = socket.socket(socket.AF_UNIX)
sock.connect(os.environ.get("FATHOM_SOCKET", "/run/fathom/api.sock"))
file = sock.makefile("rb")
last_id = 0

def call(method, on_item=print, **keys):
    global last_id
    last_id += 1
    body = msgpack.packb([0, last_id, method, [keys]])
    sock.sendall(struct.pack(">I", len(body)) + body)
    while True:
        (length,) = struct.unpack(">I", file.read(4))
        shape, _, *rest = msgpack.unpackb(file.read(length))
        if shape == 3:
            for item in rest[1]:
                on_item(item)
        elif shape == 1 and rest[0] is not None:
            sys.exit("%s: %s" % (rest[0]["name"], rest[0]["text"]))
        elif shape == 1:
            return rest[1]

call("hello", proto_min=1, proto_max=1, client="client.py")
call("session.new", name="python", if_absent=True)
call("append", name="python", text=" ".join(sys.argv[1:]))
call("sample", lambda t: print(t["text"], end="", flush=True), name="python", n=32, temperature=0)

"""`python -m tests.fake_data_plane`: takes the data plane's arguments, speaks only the steering.

Every frame it gets is noted as a line in the file FAKE_DATA_PLANE_NOTES. FAKE_DATA_PLANE_FAIL makes
it end at once.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import sys
import threading

from scheduler.v1 import dataplane_pb2 as pb


def note(text: str) -> None:
    with open(os.environ["FAKE_DATA_PLANE_NOTES"], "a") as notes:
        notes.write(f"{text}\n")


def send(peer: socket.socket, message: pb.FromDataPlane) -> None:
    payload = message.SerializeToString()
    peer.sendall(struct.pack("<I", len(payload)) + payload)


def serve(peer: socket.socket) -> None:
    send(peer, pb.FromDataPlane(hello=pb.Hello(interface_version=1, pid=os.getpid())))
    stream = peer.makefile("rb")
    while head := stream.read(4):
        message = pb.ToDataPlane.FromString(stream.read(*struct.unpack("<I", head)))
        kind = message.WhichOneof("message")
        note(f"{kind} {message.drain.deadline_ms}" if kind == "drain" else str(kind))
        if kind == "apply":
            applied = pb.Applied(generation=message.apply.generation)
            send(peer, pb.FromDataPlane(applied=applied))
        elif kind == "drain":
            send(peer, pb.FromDataPlane(drained=pb.Drained()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen-fd", type=int, action="append", required=True)
    parser.add_argument("--steering-fd", type=int, required=True)
    parser.add_argument("--counters-fd", type=int, required=True)
    parser.add_argument("--cold-socket", required=True)
    arguments = parser.parse_args()
    note(f"started {os.getpid()} counters {os.fstat(arguments.counters_fd).st_size}")
    if os.environ.get("FAKE_DATA_PLANE_FAIL"):
        sys.exit(7)
    listener = socket.socket(fileno=arguments.steering_fd)
    listener.setblocking(True)
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=serve, args=(peer,), daemon=True).start()


main()

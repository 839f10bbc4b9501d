"""What someone without a credential can reach; runs on a host: ``python strangers.py ports|calls ADDRESS ...``."""

from __future__ import annotations

import http.client
import json
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BINARIES = ("core/src/ray/gcs/gcs_server", "core/src/ray/raylet/raylet")
CRASHES = "/ray.rpc.syncer.RaySyncer/StartSync"
"""Ends the GCS, or the raylet, that gets it without a token: Ray 2.60 looks for the caller's name first."""
PAGES = ("/", "/metrics", "/api/version", "/api/jobs/", "/api/job_agent/jobs/", "/get_or_create_runtime_env")


def open_ports(address: str) -> list[int]:
    """All TCP ports that take a connection."""

    def answers(port: int) -> bool:
        with socket.socket() as dialed:
            dialed.settimeout(5)
            return dialed.connect_ex((address, port)) == 0

    ports = range(1, 2**16)
    with ThreadPoolExecutor(64) as threads:
        return [port for port, open_ in zip(ports, threads.map(answers, ports), strict=True) if open_]


def outcomes(address: str, port: int) -> dict[str, list[str]]:
    """Outcome -> what had it: each of Ray's remote procedures, and some pages, all asked without a token."""
    import grpc

    def call(procedure: str) -> str:
        try:
            next(iter(channel.stream_stream(procedure)(iter([b""]), timeout=5)), None)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "ANSWERED"

    def get(page: str) -> str:
        connection = http.client.HTTPConnection(address, port, timeout=5)
        try:
            connection.request("GET", page)
            return str(connection.getresponse().status)
        except (OSError, http.client.HTTPException):
            return "no HTTP"

    found: dict[str, list[str]] = {}
    with grpc.insecure_channel(f"{address}:{port}") as channel, ThreadPoolExecutor(16) as threads:
        for ask, questions in ((call, procedures()), (get, PAGES)):
            for question, outcome in zip(questions, threads.map(ask, questions), strict=True):
                found.setdefault(outcome, []).append(question)
    return found


def procedures() -> list[str]:
    """Names of the remote procedures that Ray's servers know, the one that would end them left out."""
    import ray
    from ray.core.generated import ray_client_pb2

    found = {
        f"/{service.full_name}/{method.name}"
        for service in ray_client_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    for binary in BINARIES:
        names = re.findall(rb"/ray\.rpc\.(?:\w+\.)*\w+/\w+(?=\0)", (Path(ray.__file__).parent / binary).read_bytes())
        found.update(name.decode() for name in names)
    return sorted(found - {CRASHES})


if __name__ == "__main__":
    what, *where = sys.argv[1:]
    if what == "ports":
        print(json.dumps({address: open_ports(address) for address in where}))
    else:
        ends = [end.rpartition(":") for end in where]
        print(json.dumps({f"{address}:{port}": outcomes(address, int(port)) for address, _, port in ends}))

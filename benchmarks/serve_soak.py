"""The service under a steady load for some minutes, with the memory of its replicas; see `benchmarks.serve`.

requests, errors      sent, and answered with something else than status 200 or not at all
rate                  requests per second that were wanted
late                  share of requests that were sent more than a second after their time
memory_mib            of the replicas of the service together, at the end of each minute
growth                the last of these over that of the second minute; null for less than three minutes
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLIENTS = 8
LATE_S = 1.0
MINUTE = 60.0
REPLICA = b"ServeReplica:tesserec:"  # begins the name of a replica's process, behind `ray::`


def soak(port: int, bodies: Sequence[dict[str, Any]], rate: float, minutes: float) -> dict[str, Any]:
    """Sends requests at a steady rate; says what went wrong and how memory grew."""
    began, counts, lock = time.monotonic(), {"requests": 0, "errors": 0, "late": 0}, threading.Lock()
    end = began + minutes * MINUTE

    def client(first: int) -> None:
        connection, number = http.client.HTTPConnection("127.0.0.1", port, timeout=60), first
        while (due := began + number / rate) < end:
            time.sleep(max(0.0, due - time.monotonic()))
            late = time.monotonic() - due > LATE_S
            try:
                body = json.dumps(bodies[number % len(bodies)])
                connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                failed = response.status != 200
            except (OSError, http.client.HTTPException):
                connection.close()  # the next request opens it again
                failed = True
            with lock:
                for name, more in {"requests": True, "errors": failed, "late": late}.items():
                    counts[name] += more
            number += CLIENTS

    threads = [threading.Thread(target=client, args=[first]) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    memory = []
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, MINUTE))
        memory.append(replica_memory())
    for thread in threads:
        thread.join()
    return {
        **counts,
        "late": counts["late"] / max(counts["requests"], 1),
        "rate": rate,
        "memory_mib": memory,
        "growth": memory[-1] / memory[1] if len(memory) > 2 else None,
    }


def replica_memory() -> float:
    """Returns what the replicas on this machine hold in memory, in MiB."""
    kib = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if REPLICA in (process / "cmdline").read_bytes():
                status = (process / "status").read_text()
                kib += int(status.partition("VmRSS:")[2].split()[0])
        except (OSError, IndexError):  # it has ended
            continue
    return kib / 1024

"""The service on this machine, in the foreground."""

from __future__ import annotations

import io
import ipaddress
import logging
import signal
import socket
import sys
import threading
from contextlib import redirect_stdout

from serving.api.security import read_keys
from serving.runs.rollout import started
from serving.settings import APPLICATION, Settings
from serving.stores.opening import open_store
from storage.errors import UserError


def check_port(host: str, port: int) -> None:
    """Makes sure that the service can listen there.

    Raises:
        UserError: the port is out of range or taken, or the host is not one of this machine's addresses.
    """
    if not 1 <= port <= 65_535:
        raise UserError(f"--port {port} is no port: choose one between 1 and 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"Cannot listen on {host}:{port} ({error.strerror}): choose another --port or --host."
        ) from error


def here(settings: Settings, host: str) -> Settings:
    """Returns the settings for an address to listen on: open without keys where no other machine reaches it.

    Raises:
        UserError: the keys cannot be read, or there are none and other machines could ask.
    """
    try:
        alone = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = False
    settings = settings.model_copy(update={"open": settings.open or alone})
    read_keys(settings)
    return settings


def deploy(settings: Settings, host: str, port: int) -> None:
    """Starts Ray Serve on the Ray of this process and waits until the application answers.

    Raises:
        UserError: Ray Serve runs on that Ray already, or the service did not come up.
    """
    from ray import serve

    from serving.deployments.service import application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # once imported: Ray sets it, too
    status = serve.status()
    if status.proxies or status.applications:  # its host and port are fixed, and the application may be someone's
        raise UserError("Ray Serve runs on that cluster already: use `tesserec build` and `serve deploy` there.")
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    try:
        serve.run(application(settings.model_dump(mode="json")), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        deployments = serve.status().applications[APPLICATION].deployments.values()
        mistake = next(filter(None, (user_mistake(deployment.message) for deployment in deployments)), None)
        shut_down()
        if mistake is None:
            raise
        raise UserError(mistake) from error


def user_mistake(message: str) -> str | None:
    """Returns the sentence of the UserError that ends the traceback in a deployment's status, if one does."""
    name, separator, sentence = message.strip().rpartition("\n")[2].partition(": ")
    return sentence if separator and name.endswith(UserError.__name__) else None


def shut_down() -> None:
    """End Ray Serve, and leave Ray."""
    import ray
    from ray import serve

    with redirect_stdout(io.StringIO()):  # the controller ends before its last call returns, and Ray prints that
        serve.shutdown()
        ray.shutdown()


def served(settings: Settings) -> list[str]:
    """Returns the URIs of the runs that a service with these settings answers from."""
    store = open_store(settings.store)
    runs = [part.run for part in started(store, settings.run).rollout.runs]
    store.close()
    return runs


def serve_forever(settings: Settings, host: str, port: int) -> None:
    """Serves finished runs until Ctrl-C or SIGTERM; prints where once they answer.

    Needs a Ray that this process has joined; `serving.settings.check_servable`, `check_port` and `here` come before.

    Args:
        settings: of the service.
        host, port: where to listen.

    Raises:
        UserError: Ray Serve runs there already, or the service did not come up.
    """
    stop = threading.Event()
    deploy(settings, host, port)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        sys.stdout.write(
            f"Serving {' and '.join(served(settings))} at http://{host}:{port} (routes: http://{host}:{port}/docs)\n"
        )
        sys.stdout.flush()
        stop.wait()
    finally:
        shut_down()

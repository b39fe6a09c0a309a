"""Serve an index as a search service: ``mtgrpo serve``."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import CompatibilityError, ConfigError, RetrievalError, RetrievalUnreachable
from verl_mtgrpo.retrieval.addresses import is_this_machine

if TYPE_CHECKING:
    from verl_mtgrpo.retrieval.server import ServerSettings

_DESCRIPTION = """\
Serve an index over HTTP in the format of Search-R1's retrieval server: POST /retrieve, and GET /health and
GET /metrics (Prometheus). One line is printed when the service is ready. On SIGTERM it finishes the requests
that it is working on, then ends.

With --ray the service is a Ray Serve application on the cluster that --ray-address or RAY_ADDRESS names (auto: the
one that runs on this machine), or on a private Ray. Every node listens on the same port, and the index has
to be at the same path on every node.

examples:
  mtgrpo serve indexes/wiki
  SEARCH_TOKEN=... mtgrpo serve indexes/wiki --host 0.0.0.0 --port 8000 --token-env SEARCH_TOKEN
  mtgrpo serve --ray --replicas 4 indexes/wiki
  mtgrpo serve --ray --min-replicas 1 --max-replicas 8 indexes/wiki
"""

_LIMITS = (
    # Fields of ServerSettings, whose import would take too long for `mtgrpo --help`; a test compares the defaults.
    ("--topk", "default_k", 3, "K", "passages if a request says none"),
    ("--queue", "queue", 512, "N", "requests that may wait"),
    ("--threads", "threads", 0, "N", "searches at once, 0 for one on each core and 32 at most"),
    ("--timeout", "timeout_s", 10.0, "S", "seconds a request may take"),
    ("--max-body", "max_body_bytes", 8_000_000, "BYTES", "largest body of a request"),
)


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help="serve an index over HTTP, in one process or on Ray",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("index", type=Path, metavar="INDEX_DIR", help="folder of the index (see mtgrpo index)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for any (default: %(default)s)")
    parser.add_argument("--token-env", metavar="NAME", help="environment variable with the token to require")
    for option, name, default, metavar, words in _LIMITS:
        words = f"{words} (default: %(default)s)"
        parser.add_argument(option, dest=name, type=type(default), default=default, metavar=metavar, help=words)
    ray = parser.add_argument_group("on Ray")
    ray.add_argument("--ray", action="store_true", help="run as a Ray Serve application")
    ray.add_argument("--ray-address", metavar="ADDRESS", help="cluster to join (default: RAY_ADDRESS, or a new one)")
    ray.add_argument("--replicas", type=int, metavar="N", help="number of replicas (default: 1)")
    ray.add_argument("--min-replicas", type=int, metavar="N", help="scale with the load, at least N (default: 1)")
    ray.add_argument("--max-replicas", type=int, metavar="N", help="scale with the load, at most N")
    ray.add_argument(
        "--replica-cpus", type=float, default=1.0, metavar="N", help="CPUs per replica (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    _check(args)
    settings = _settings(args)
    return _run_on_ray(args, settings) if args.ray else _run_here(args, settings)


def _check(args: argparse.Namespace) -> None:
    if not 0 <= args.port <= 65535:
        raise ConfigError(f"--port is {args.port}", expected="0 to 65535")
    scaled = args.min_replicas is not None or args.max_replicas is not None
    if not args.ray and (scaled or args.replicas is not None):
        raise ConfigError("replicas need Ray", fix="add --ray, or remove --replicas, --min-replicas and --max-replicas")
    if scaled and args.replicas is not None:
        raise ConfigError(
            "--replicas is a fixed number", fix="use either --replicas or --min-replicas and --max-replicas"
        )


def _settings(args: argparse.Namespace) -> ServerSettings:
    try:
        from verl_mtgrpo.retrieval.server import ServerSettings
    except ImportError as error:
        raise missing_extra(error) from error
    given = {name: value for name, value in vars(args).items() if name in ServerSettings.model_fields}
    given["max_k"] = max(ServerSettings().max_k, args.default_k)
    try:
        return ServerSettings.read(given, "")
    except ConfigError as error:
        raise _of_the_option(error) from error


def _of_the_option(error: ConfigError) -> ConfigError:
    """Return the error with the option that was typed instead of the field of ``ServerSettings``."""
    field, _, rest = str(error.args[0]).partition(" ")
    options = {name: option for option, name, *_ in _LIMITS}
    return ConfigError(f"{options.get(field, field)} {rest}", expected=error.expected, fix=error.fix)


def missing_extra(error: ImportError) -> CompatibilityError:
    """Return the error for a missing package that only ``mtgrpo serve`` needs."""
    return CompatibilityError(
        f"the search service needs more packages ({error})",
        fix='pip install "verl-mtgrpo[serve]"',
    )


def _run_here(args: argparse.Namespace, settings: ServerSettings) -> int:
    try:
        import uvicorn
    except ImportError as error:
        raise missing_extra(error) from error
    from verl_mtgrpo.retrieval import open_index
    from verl_mtgrpo.retrieval.server import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _say_ready(_url(args.host, listener.getsockname()[1]), index)

    index = open_index(args.index)
    app = create_app(index, settings)
    listener = _listen(args.host, args.port)
    warn_if_open(args.host, settings)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_keep_alive=30,
        # An accepted search ends by its own time-out; a lingering connection must not keep the process alive.
        timeout_graceful_shutdown=int(settings.timeout_s) + 5,
    )
    server = Server(config)
    # uvicorn raises the signal again after shutdown; the exit code must not be that of the signal.
    signal.signal(signal.SIGTERM, server.handle_exit)
    with listener:
        server.run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on {host} port {port} ({error})", fix="choose another --host or --port"
        ) from error


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warn_if_open(host: str, settings: ServerSettings) -> None:
    """Warn if other machines can search and no token is required."""
    if settings.token_env is None and not is_this_machine(_url(host, 1)):
        print(
            f"mtgrpo: warning: anyone who can reach {host} can search; set --token-env to require a token",
            file=sys.stderr,
        )


def _say_ready(url: str, index: Any) -> None:
    print(f"ready at {url}: {len(index)} passages, checksum {index.manifest.checksum[:12]}", flush=True)


def _run_on_ray(args: argparse.Namespace, settings: ServerSettings) -> int:
    from verl_mtgrpo.retrieval import open_index

    index = open_index(args.index)
    try:
        from verl_mtgrpo.integration import ray_serve
    except ImportError as error:
        raise missing_extra(error) from error
    if args.port == 0:
        raise ConfigError("--port is 0, but Ray Serve needs the same port on every node", fix="name a port")
    scale = ray_serve.Scale(
        replicas=1 if args.replicas is None else args.replicas,
        min_replicas=args.min_replicas,
        max_replicas=args.max_replicas,
        cpus=args.replica_cpus,
    )

    def stop(*_: object) -> None:
        sys.exit(0)

    with ray_serve.running(index.path, settings, scale, host=args.host, port=args.port, ray_address=args.ray_address):
        # When Ray connects, it sets a handler that exits with 15.
        signal.signal(signal.SIGTERM, stop)
        url = _url(args.host, args.port)
        _check_address(url)
        warn_if_open(args.host, settings)
        _say_ready(url, index)
        signal.pause()
    return 0


def _check_address(url: str) -> None:
    """Raise if Serve already ran on the cluster with another address, which it keeps."""
    from verl_mtgrpo.retrieval import HTTPRetriever

    try:
        HTTPRetriever(url.replace("://0.0.0.0:", "://127.0.0.1:").replace("://[::]:", "://[::1]:")).ping()
    except RetrievalUnreachable as error:
        raise ConfigError(
            f"nothing listens at {url}: Ray Serve is already running on this cluster with another address",
            fix="use that address (--host, --port), or stop it with: serve shutdown",
        ) from error
    except RetrievalError:
        pass  # it answers; clients wait while it is starting

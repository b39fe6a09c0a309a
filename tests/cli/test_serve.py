from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.retrieval.services import build_index
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.cli.serve import add_parser, warn_if_open
from verl_mtgrpo.retrieval.server import ServerSettings

pytestmark = [pytest.mark.process, pytest.mark.network]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(tmp_path_factory.mktemp("serve") / "index", 10)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["serve", *map(str, arguments)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("mtgrpo: error: ") and shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--port", 70000], "--port is 70000, expected 0 to 65535"),
        (["--topk", 0], "error: --topk is 0, expected at least 1"),
        (["--timeout", -1], "error: --timeout is -1.0, expected more than 0"),
        (["--queue", -1], "error: --queue is -1, expected at least 0"),
        (["--replicas", 2], "replicas need Ray; add --ray, or remove"),
        (["--max-replicas", 2], "replicas need Ray; add --ray, or remove"),
        (["--ray", "--replicas", 2, "--max-replicas", 3], "use either --replicas or --min-replicas and --max-replicas"),
        (["--ray", "--min-replicas", 2], "--min-replicas without --max-replicas; set both"),
        (["--ray", "--min-replicas", 3, "--max-replicas", 2], "expected 1 <= min <= max"),
        (["--ray", "--replicas", 0], "--replicas is 0, expected at least 1"),
        (["--ray", "--port", 0], "Ray Serve needs the same port"),
        (["--host", "no such host"], "cannot listen on no such host port 8000"),
        (["--token-env", "MTGRPO_TEST_UNSET"], "set the environment variable MTGRPO_TEST_UNSET"),
    ],
)
def test_wrong_options(index: Path, capsys: pytest.CaptureFixture[str], options: list[object], message: str):
    assert message in error_of(capsys, index, *options)


def test_the_defaults_are_those_of_the_service():
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    typed = vars(parser.parse_args(["serve", "index"]))
    shared = {name: default for name, default in ServerSettings() if name in typed}
    assert {name: typed[name] for name in shared} == shared
    assert len(shared) == 6


def test_no_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for options in ([], ["--ray"]):
        assert "there is no index at" in error_of(capsys, tmp_path / "missing", *options)


@pytest.mark.parametrize(
    "host, token_env, warned",
    [("0.0.0.0", None, True), ("10.0.0.7", None, True), ("::", None, True), ("0.0.0.0", "NAME", False)]
    + [(host, None, False) for host in ("127.0.0.1", "localhost", "::1")],
)
def test_an_open_service_is_warned_of(capsys: pytest.CaptureFixture[str], host: str, token_env: str, warned: bool):
    warn_if_open(host, ServerSettings(token_env=token_env))
    assert (f"anyone who can reach {host} can search; set --token-env" in capsys.readouterr().err) is warned


def test_a_port_that_is_taken(index: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}" in error_of(capsys, index, "--port", port)


@pytest.mark.parametrize("package, options", [("fastapi", []), ("uvicorn", []), ("ray.serve", ["--ray"])])
def test_a_missing_extra_is_named(index: Path, package: str, options: list[str]):
    script = (
        f"import sys; sys.modules[{package!r}] = None; from verl_mtgrpo.cli.main import main; "
        f"sys.exit(main(['serve', {str(index)!r}, *{options!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("mtgrpo: error: the search service needs more packages")
    assert 'pip install "verl-mtgrpo[serve]"' in done.stderr


def test_the_part_on_ray_does_not_import_verl():
    script = "import sys, verl_mtgrpo.integration.ray_serve; print('ray' in sys.modules, 'verl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False"


def test_neither_the_command_line_nor_the_client_load_the_service():
    script = (
        "import sys; from verl_mtgrpo.cli.main import build_parser; build_parser().format_help(); "
        "from verl_mtgrpo.retrieval import HTTPRetriever; HTTPRetriever('http://127.0.0.1:1'); "
        "print(sorted({'fastapi', 'uvicorn', 'aiohttp', 'prometheus_client', 'ray', 'verl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Mutual TLS over real gRPC on loopback: who is answered, who is believed, what a rotation does."""

import ast
import asyncio
import logging
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dapod import rpc
from dapod.config import ConfigError
from dapod.tls import Tls
from dapod.v1 import reward_pb2, reward_pb2_grpc
from tests.dapod.certificates import CALL, SERVE, Authority

REQUEST = reward_pb2.ScoreRequest()


class Caller(reward_pb2_grpc.RewardServiceServicer):
    """Remembers the serial number of whoever calls, and answers when `gate` is set."""

    def __init__(self) -> None:
        self.serials: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def Score(
        self, request: reward_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        (pem,) = context.auth_context()["x509_pem_cert"]
        self.serials.append(x509.load_pem_x509_certificate(pem).serial_number)
        assert self.gate.wait(30)
        return reward_pb2.ScoreResponse()


Serve = Callable[[Tls], tuple[str, Caller]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(tls: Tls) -> tuple[str, Caller]:
            server, caller = rpc.RpcServer(threads=2, tls=tls), Caller()
            reward_pb2_grpc.add_RewardServiceServicer_to_server(caller, server.grpc)
            port = server.start("127.0.0.1", 0)
            stack.callback(server.stop, 0)
            return f"127.0.0.1:{port}", caller

        yield start


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> Path:
    """A directory with an identity that may serve loopback and call."""
    authority.issue(tmp_path / "tls")
    return tmp_path / "tls"


def eventually(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


def ask(channel: grpc.Channel) -> reward_pb2.ScoreResponse:
    return reward_pb2_grpc.RewardServiceStub(channel).Score(REQUEST, timeout=10)


def refusal(channel: grpc.Channel) -> str:
    """Why a call fails; it is never answered."""
    with channel, pytest.raises(grpc.RpcError) as caught:
        ask(channel)
    assert rpc.status(caught.value) is grpc.StatusCode.UNAVAILABLE
    return str(caught.value.details())


def test_both_sides_of_one_authority_understand_each_other(serve: Serve, files: Path) -> None:
    address, caller = serve(Tls(files))
    with rpc.channel(address, Tls(files)) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        ask(channel)
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        stub.Score.future(REQUEST, timeout=10).result(timeout=10)
    assert len(caller.serials) == 2


async def test_and_so_they_do_in_an_event_loop(files: Path) -> None:
    tls, caller, server = Tls(files), Caller(), rpc.aio_server()
    reward_pb2_grpc.add_RewardServiceServicer_to_server(caller, server)
    port = rpc.bind(server, "127.0.0.1", 0, tls=tls)
    await server.start()
    async with rpc.aio_channel(f"dns:///localhost:{port}", tls) as channel:
        await channel.channel_ready()
        await reward_pb2_grpc.RewardServiceStub(channel).Score(REQUEST, timeout=10)
    await server.stop(0)
    assert len(caller.serials) == 1


def test_a_caller_in_plaintext_is_not_answered(serve: Serve, files: Path) -> None:
    address, caller = serve(Tls(files))
    refusal(rpc.channel(address))
    assert caller.serials == []


def test_a_caller_without_a_certificate_is_not_answered(serve: Serve, files: Path) -> None:
    address, caller = serve(Tls(files))
    believing = grpc.ssl_channel_credentials((files / "ca.crt").read_bytes())
    refusal(grpc.secure_channel(address, believing))
    assert caller.serials == []


def test_a_caller_of_another_authority_is_not_answered(
    serve: Serve, files: Path, tmp_path: Path
) -> None:
    address, caller = serve(Tls(files))
    Authority("another").issue(tmp_path / "other")
    shutil.copy(files / "ca.crt", tmp_path / "other" / "ca.crt")
    refusal(rpc.channel(address, Tls(tmp_path / "other")))
    assert caller.serials == []


def test_a_certificate_for_serving_does_not_let_its_holder_call(
    serve: Serve, authority: Authority, files: Path, tmp_path: Path
) -> None:
    authority.issue(tmp_path / "reward", usages=[SERVE])
    address, caller = serve(Tls(files))
    refusal(rpc.channel(address, Tls(tmp_path / "reward")))
    assert caller.serials == []


def test_a_server_of_another_authority_is_not_believed(
    serve: Serve, files: Path, tmp_path: Path
) -> None:
    Authority("another").issue(tmp_path / "other")
    address, caller = serve(Tls(tmp_path / "other"))
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(rpc.channel(address, Tls(files)))
    assert caller.serials == []


def test_a_server_with_another_name_is_not_believed(
    serve: Serve, authority: Authority, files: Path, tmp_path: Path
) -> None:
    authority.issue(tmp_path / "reward", names=["reward"], addresses=[])
    address, caller = serve(Tls(tmp_path / "reward"))
    assert "Hostname Verification" in refusal(rpc.channel(address, Tls(files)))
    refusal(rpc.channel(address.replace("127.0.0.1", "localhost"), Tls(files)))
    assert caller.serials == []


def test_a_certificate_for_calling_does_not_let_its_holder_serve(
    serve: Serve, authority: Authority, files: Path, tmp_path: Path
) -> None:
    authority.issue(tmp_path / "trainer", usages=[CALL])
    address, caller = serve(Tls(tmp_path / "trainer"))
    assert "unsupported certificate purpose" in refusal(rpc.channel(address, Tls(files)))
    assert caller.serials == []


def shown(address: str, files: Path) -> int:
    """The serial number that the server shows to a new connection."""
    context = ssl.create_default_context(cafile=files / "ca.crt")
    context.load_cert_chain(files / "tls.crt", files / "tls.key")
    context.set_alpn_protocols(["h2"])
    host, _, port = address.partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        return x509.load_der_x509_certificate(
            connection.getpeercert(binary_form=True) or b""
        ).serial_number


def test_a_server_takes_up_rotated_files_and_answers_old_connections_on(
    serve: Serve, authority: Authority, files: Path
) -> None:
    address, caller = serve(Tls(files))
    with rpc.channel(address, Tls(files)) as channel:
        ask(channel)
        serial = authority.issue(files)
        assert shown(address, files) == serial
        ask(channel)
    assert caller.serials[-1] == serial


async def test_a_server_in_an_event_loop_takes_them_up_too(
    authority: Authority, files: Path
) -> None:
    server, caller = rpc.aio_server(), Caller()
    reward_pb2_grpc.add_RewardServiceServicer_to_server(caller, server)
    port = rpc.bind(server, "127.0.0.1", 0, tls=Tls(files))
    await server.start()
    Authority("another").issue(files)
    async with rpc.aio_channel(f"127.0.0.1:{port}", Tls(files)) as channel:
        await reward_pb2_grpc.RewardServiceStub(channel).Score(REQUEST, timeout=10)
    await server.stop(0)


def test_a_channel_shows_rotated_files_at_its_next_call(
    serve: Serve, authority: Authority, files: Path, tmp_path: Path
) -> None:
    first = authority.issue(tmp_path / "caller")
    address, caller = serve(Tls(files))
    with rpc.channel(address, Tls(tmp_path / "caller")) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        stub.Score(REQUEST, timeout=10)
        second = authority.issue(tmp_path / "caller")
        stub.Score(REQUEST, timeout=10)
        stub.Score(REQUEST, timeout=10)
    assert caller.serials == [first, second, second]


async def test_so_does_a_channel_in_an_event_loop(
    serve: Serve, authority: Authority, files: Path, tmp_path: Path
) -> None:
    first = authority.issue(tmp_path / "caller")
    address, caller = serve(Tls(files))
    async with rpc.aio_channel(address, Tls(tmp_path / "caller")) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        await stub.Score(REQUEST, timeout=10)
        second = authority.issue(tmp_path / "caller")
        await stub.Score(REQUEST, timeout=10)
    assert caller.serials == [first, second]


def test_a_call_that_runs_ends_on_the_channel_it_began_on(
    serve: Serve, authority: Authority, files: Path, tmp_path: Path
) -> None:
    first = authority.issue(tmp_path / "caller")
    address, caller = serve(Tls(files))
    caller.gate.clear()
    with rpc.channel(address, Tls(tmp_path / "caller")) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        before = stub.Score.future(REQUEST, timeout=30)
        eventually("the server has the call", lambda: caller.serials == [first])
        second = authority.issue(tmp_path / "caller")
        after = stub.Score.future(REQUEST, timeout=30)
        eventually("the server has the other", lambda: caller.serials == [first, second])
        caller.gate.set()
        before.result(timeout=10), after.result(timeout=10)


async def test_so_it_does_in_an_event_loop(
    serve: Serve, authority: Authority, files: Path, tmp_path: Path
) -> None:
    authority.issue(tmp_path / "caller")
    address, caller = serve(Tls(files))
    caller.gate.clear()
    async with rpc.aio_channel(address, Tls(tmp_path / "caller")) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        before = asyncio.ensure_future(stub.Score(REQUEST, timeout=30))
        await asyncio.to_thread(eventually, "the server has the call", lambda: caller.serials)
        authority.issue(tmp_path / "caller")
        after = asyncio.ensure_future(stub.Score(REQUEST, timeout=30))
        await asyncio.to_thread(
            eventually, "the server has the other", lambda: len(caller.serials) == 2
        )
        caller.gate.set()
        await asyncio.wait_for(asyncio.gather(before, after), timeout=10)


def test_a_new_authority_on_both_sides_needs_no_restart(serve: Serve, files: Path) -> None:
    address, caller = serve(Tls(files))
    with rpc.channel(address, Tls(files)) as channel:
        ask(channel)
        serial = Authority("another").issue(files)
        ask(channel)
    assert caller.serials[-1] == serial


def test_files_behind_the_links_of_a_mounted_secret_are_taken_up(
    authority: Authority, tmp_path: Path
) -> None:
    mounted = tmp_path / "mounted"
    authority.issue(tmp_path / "..1")
    mounted.mkdir()
    (mounted / "..data").symlink_to(tmp_path / "..1")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (mounted / name).symlink_to(Path("..data") / name)
    tls = Tls(mounted)
    before = tls.identity
    assert tls.identity is before
    authority.issue(tmp_path / "..2")
    (mounted / "..coming").symlink_to(tmp_path / "..2")
    (mounted / "..coming").rename(mounted / "..data")
    assert tls.identity.certificate == (tmp_path / "..2" / "tls.crt").read_bytes()


def test_a_rotation_that_went_wrong_keeps_what_was_read_before_and_says_so_once(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = Tls(files)
    before = tls.identity
    (files / "tls.key").write_text("not a key")
    with caplog.at_level(logging.WARNING, "dapod.tls"):
        assert tls.identity is before
        assert tls.identity is before
    assert len(caplog.messages) == 1
    assert "tls.key does not open with tls.crt" in caplog.messages[0]


def test_a_missing_file_is_one_sentence_that_names_it(files: Path) -> None:
    (files / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"cannot read ca.crt \(No such file.*it must hold"):
        Tls(files)


def test_a_key_of_another_certificate_is_refused(
    authority: Authority, files: Path, tmp_path: Path
) -> None:
    authority.issue(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tls.key", files / "tls.key")
    with pytest.raises(ConfigError, match=r"tls.key does not open.*KEY_VALUES_MISMATCH"):
        Tls(files)


@pytest.mark.parametrize(("name", "said"), [("tls.crt", "PEM certificate"), ("ca.crt", "holds no")])
def test_a_file_of_something_else_is_refused(files: Path, name: str, said: str) -> None:
    (files / name).write_text("something else")
    with pytest.raises(ConfigError, match=said):
        Tls(files)


def health(address: str) -> int:
    with rpc.channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status


def test_the_health_port_answers_in_plaintext_and_nothing_but_health(files: Path) -> None:
    server, caller = rpc.RpcServer(threads=2, tls=Tls(files)), Caller()
    reward_pb2_grpc.add_RewardServiceServicer_to_server(caller, server.grpc)
    server.start("127.0.0.1", 0, health_port=0)
    address = f"127.0.0.1:{server.health_port}"
    try:
        assert health(address) == health_pb2.HealthCheckResponse.SERVING
        with rpc.channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            ask(channel)
        assert rpc.status(caught.value) is grpc.StatusCode.UNIMPLEMENTED
    finally:
        server.stop(0)


def test_no_service_opens_a_channel_or_a_server_without_its_certificate() -> None:
    opening = {"RpcServer", "rpc.bind", "channel", "rpc.channel", "rpc.aio_channel"}
    opened = [
        ast.unparse(call)
        for file in (Path(__file__).parents[2] / "services").rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in opening
    ]
    assert len(opened) >= 6, opened
    assert [call for call in opened if "tls" not in call] == []


def test_a_health_port_in_use_is_one_sentence(files: Path) -> None:
    first, second = (rpc.RpcServer(threads=2, tls=Tls(files)) for _ in range(2))
    first.start("127.0.0.1", 0, health_port=0)
    try:
        with pytest.raises(ConfigError, match="DAPOD_HEALTH_PORT"):
            second.start("127.0.0.1", 0, health_port=first.health_port)
    finally:
        first.stop(0)
        second.stop(0)

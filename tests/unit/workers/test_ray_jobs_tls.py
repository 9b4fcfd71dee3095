"""The Jobs API over TLS: which certificates are trusted, and what is said of the others.

The server is a stand-in with a certificate of its own; it answers what a head does.
"""

import asyncio
import datetime
import ipaddress
import ssl
import subprocess
import threading
from importlib.metadata import version

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from configs.errors import ClusterError
from workers.ray_jobs import MARK, ClusterAccess, JobClient

TOKEN = "a-token"
JOB = {
    "type": "SUBMISSION", "submission_id": "mergefront-x-1", "job_id": None, "driver_info": None,
    "status": "RUNNING", "entrypoint": "true", "message": "under way", "error_type": None,
    "start_time": 1000, "end_time": None, "metadata": {MARK: "1"}, "runtime_env": {},
    "driver_agent_http_address": None, "driver_node_id": None, "driver_exit_code": None,
}  # fmt: skip


def write_certificate(directory, *addresses):
    """Write a certificate that signs itself, and its key; returns where they are."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a head")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir()
    chain, secret = directory / "head.pem", directory / "head.key"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, secret


@web.middleware
async def wants_token(request, handler):
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        return web.Response(status=401)
    return await handler(request)


async def answer_version(_):
    return web.json_response(
        {"version": "4", "ray_version": version("ray"), "ray_commit": "", "session_name": "s"}
    )


async def answer_jobs(_):
    return web.json_response([JOB])


async def answer_job(_):
    return web.json_response(JOB)


async def answer_logs(_):
    return web.json_response({"logs": "all of it\n"})


async def tail_logs(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str("line by line\n")
    await socket.close()
    return socket


@pytest.fixture(scope="module")
def serve():
    """Serves over TLS with a certificate and its key, in a thread; returns the address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runners = []

    def wait_for(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=30)

    async def begin(chain, secret):
        app = web.Application(middlewares=[wants_token])
        app.add_routes(
            [
                web.get("/api/version", answer_version),
                web.get("/api/jobs/", answer_jobs),
                web.get("/api/jobs/{job}", answer_job),
                web.get("/api/jobs/{job}/logs", answer_logs),
                web.get("/api/jobs/{job}/logs/tail", tail_logs),
            ]
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(chain, secret)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        site = web.TCPSite(runners[-1], "127.0.0.1", 0, ssl_context=context)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    yield lambda *certificate: f"https://127.0.0.1:{wait_for(begin(*certificate))}"
    for runner in runners:
        wait_for(runner.cleanup())
    # Connections that were refused are closed by the loop's next rounds.
    wait_for(asyncio.sleep(0.2))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return write_certificate(tmp_path_factory.mktemp("tls") / "head", "127.0.0.1")


@pytest.fixture(scope="module")
def address(serve, certificate):
    return serve(*certificate)


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)


@pytest.mark.parametrize("trust", ["its certificate", "anything"])
def test_everything_is_asked_of_a_head_that_is_trusted(address, certificate, trust):
    named = {"ca": certificate[0]} if trust == "its certificate" else {"verify": False}
    client = JobClient(ClusterAccess(address, **named))
    assert [facts.job_id for facts in client.jobs()] == ["mergefront-x-1"]
    assert client.facts("mergefront-x-1").status == "RUNNING"
    assert client.logs("mergefront-x-1") == "all of it\n"
    assert list(client.follow("mergefront-x-1")) == ["line by line\n"]


def test_certificates_may_be_a_directory_of_them(address, certificate, tmp_path):
    # As `openssl rehash` names them.
    found = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", str(certificate[0])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (tmp_path / f"{found.stdout.strip()}.0").write_bytes(certificate[0].read_bytes())
    client = JobClient(ClusterAccess(address, ca=tmp_path))
    assert client.facts("mergefront-x-1").status == "RUNNING"


@pytest.mark.parametrize("kind", ["unknown", "of another", "of another address"])
def test_head_that_is_not_trusted_is_told_nothing(address, certificate, serve, tmp_path, kind):
    access = ClusterAccess(address)
    if kind == "of another":
        access = ClusterAccess(address, ca=write_certificate(tmp_path / "other", "127.0.0.1")[0])
    elif kind == "of another address":
        chain, secret = write_certificate(tmp_path / "elsewhere", "127.0.0.2")
        access = ClusterAccess(serve(chain, secret), ca=chain)
    with pytest.raises(ClusterError, match=r"cannot trust https://127\.0\.0\.1") as refused:
        JobClient(access)
    assert "Name its certificate with --tls-ca" in refused.value.message


def test_token_is_wanted_over_tls_too(address, certificate, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(ClusterError, match=r"refuses the token \(HTTP 401\)"):
        JobClient(ClusterAccess(address, ca=certificate[0]))


def test_file_of_certificates_that_is_not_there_is_named(address, tmp_path):
    with pytest.raises(ClusterError, match=r"none\.pem: certificates cannot be read"):
        JobClient(ClusterAccess(address, ca=tmp_path / "none.pem"))


def test_plain_http_to_a_port_of_tls_is_said(address):
    with pytest.raises(
        ClusterError, match=r"nobody answers at http://127\.0\.0\.1|is no dashboard of Ray"
    ):
        JobClient(ClusterAccess(address.replace("https", "http")))

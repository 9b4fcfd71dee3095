"""The Jobs API over TLS: which certificates are trusted, and what is said of the others.

The head is a stand-in (``tests.unit.workers.tls_head``) with a certificate of its own.
"""

import datetime
import ipaddress
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from configs.errors import ClusterError
from tests.unit.workers.tls_head import TOKEN
from workers.ray_jobs import ClusterAccess, JobClient


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


@pytest.fixture(scope="module")
def serve():
    """Serves with a certificate and its key; returns the address."""
    with ExitStack() as stack:

        def start(chain, key):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.unit.workers.tls_head", str(chain), str(key)],
                stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return f"https://127.0.0.1:{int(process.stdout.readline())}"

        yield start


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

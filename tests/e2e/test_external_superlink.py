"""A SuperLink that is up already, with TLS, and SuperNodes that somebody else has started."""

import datetime as dt
import ipaddress
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from small_federation import small_config

from flsparse.runtime import launch
from flsparse.runtime.deployment import Processes, _free_ports, _listens

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Write a root certificate, and a server's certificate and key for 127.0.0.1."""
    now = dt.datetime.now(dt.UTC)

    def signed(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey) -> Path:
        subject, root = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), name == issuer
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .sign(by, hashes.SHA256())
        )
        file = folder / f"{name}.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return file

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    key_file = folder / "server.key"
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return signed("root", root_key, "root", root_key), signed("server", key, "root", root_key), key_file


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Start a SuperLink with TLS and two SuperNodes; give its address and root certificate."""
    root, certificate, key = make_certificates(tmp_path)
    processes = Processes(tmp_path / "logs", tmp_path / "theirs")
    port, *node_ports = _free_ports(3)
    address = f"127.0.0.1:{port}"
    tls = ["--ssl-ca-certfile", str(root), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    try:
        processes.start("superlink", "flower-superlink", *tls, "--host", "127.0.0.1", "--port", str(port))
        while not _listens(port):
            processes.check()
            time.sleep(0.2)
        for partition, node_port in enumerate(node_ports):
            node = ["flower-supernode", "--root-certificates", str(root), "--superlink", address]
            config = f"partition-id={partition} num-partitions=2"
            processes.start(f"node-{partition}", *node, "--port", str(node_port), "--node-config", config)
        yield address, root
    finally:
        processes.stop()


def test_a_run_over_tls_equals_one_in_process(superlink: tuple[str, Path], tmp_path: Path) -> None:
    address, root = superlink
    nodes = {"num_clients": 2, "num_rounds": 2, "fraction_train": 1.0}
    there = {"superlink": address, "runtime": {"name": "deployment", "root_certificates": str(root)}}
    summary = launch(small_config(**nodes, **there, output_dir=str(tmp_path / "there")))
    here = launch(small_config(**nodes, output_dir=str(tmp_path / "here")))
    assert summary["status"] == "completed"
    for key in ("uplink_bytes", "downlink_bytes", "final_accuracy", "final_loss"):
        assert summary[key] == here[key]

"""Certificate authorities for tests, and certificates of theirs: valid ones, and expired ones."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from distributed.security import Security

#: Makes an authority and the certificate of a cluster.
SCRIPT = Path(__file__).parents[2] / "infra" / "tls.sh"
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """Files in PEM: a certificate, its key, and the authority that signed it."""

    cert: str
    key: str
    authority: str

    def security(self) -> Security:
        """As Dask's clients take it."""
        return Security(
            tls_ca_file=self.authority, tls_client_cert=self.cert, tls_client_key=self.key, require_encryption=True
        )

    def dask_arguments(self) -> list[str]:
        """As ``dask scheduler`` and ``dask worker`` take it."""
        return ["--tls-ca-file", self.authority, "--tls-cert", self.cert, "--tls-key", self.key]

    def client_context(self) -> ssl.SSLContext:
        """Shows this certificate, and takes any server's."""
        context = trusting()
        context.load_cert_chain(self.cert, self.key)
        return context

    def server_context(self) -> ssl.SSLContext:
        """Asks clients for a certificate of the same authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.authority)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.cert, self.key)
        return context


def trusting() -> ssl.SSLContext:
    """Of a client that shows no certificate, and takes any server's."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Authority:
    """Signs certificates for 127.0.0.1 and localhost; its files lie in ``folder``."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        extensions = [(x509.BasicConstraints(True, None), True), (usage, True)]
        made = self._sign(name, self._key.public_key(), datetime.datetime.now(datetime.UTC) + _DAY, extensions)
        self._own = made
        self.file = str(folder / f"{name}.pem")
        Path(self.file).write_bytes(made.public_bytes(Encoding.PEM))

    def issue(self, name: str, *, days: int = 1) -> Certificate:
        """A certificate that ends in so many days; negative: that has ended."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[Any] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        ends = datetime.datetime.now(datetime.UTC) + days * _DAY
        made = self._sign(name, key.public_key(), ends, [(x509.SubjectAlternativeName(names), False)])
        cert, key_file = self._folder / f"{self._name}-{name}.pem", self._folder / f"{self._name}-{name}.key"
        cert.write_bytes(made.public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Certificate(str(cert), str(key_file), self.file)

    def _sign(self, name: str, key: Any, ends: datetime.datetime, extensions: list[Any]) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_called(name))
            .issuer_name(_called(self._name))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(ends - 30 * _DAY)
            .not_valid_after(ends)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())


def cluster_material() -> str:
    """What ``infra/tls.sh`` prints for a secret: an authority, a certificate and its key, as JSON."""
    return subprocess.run([str(SCRIPT), "2"], capture_output=True, text=True, check=True).stdout


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

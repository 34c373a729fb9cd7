"""Certificate authorities of a rig: two that may be pinned, and a stranger's."""

import datetime
import ipaddress
import pathlib
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOSTS = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _signed(subject, key, issuer, issuer_key, days, extensions):
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=400))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def _pem(*certificates):
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


class Authority:
    """A CA with one server certificate for this machine, in DIR/<name>.pem (the CA) and DIR/<name>-server.pem."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.folder = folder
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(f"Keystead rig CA {name}")
        basic = [(x509.BasicConstraints(ca=True, path_length=0), True)]
        self.certificate = _signed(subject, key, subject, key, 30, basic)
        self.key, self.subject = key, subject
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(_pem(self.certificate))
        self.tls = self.server(f"{name}-server", 20)

    def server(self, name, days):
        """TLS with a fresh certificate that ends in so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.SubjectAlternativeName(HOSTS), False),
        ]
        certificate = _signed(_name("localhost"), key, self.subject, self.key, days, usage)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        served = self.folder / f"{name}.pem"
        served.touch(mode=0o600)
        served.write_bytes(private + _pem(certificate))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(served)
        return tls


class Expired:
    """What `authority` serves when nobody has renewed its certificate."""

    def __init__(self, authority):
        self.tls = authority.server("expired-server", -1)


class Authorities:
    """`ca` is served first and `ca-next` after a change; `stranger` is what a captive portal has."""

    def __init__(self, folder: pathlib.Path):
        self.current = Authority(folder, "ca")
        self.next = Authority(folder, "ca-next")
        self.stranger = Authority(folder, "stranger")
        self.expired = Expired(self.current)

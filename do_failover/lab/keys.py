"""SSH keys of a lab: ed25519, made in memory, written in OpenSSH's form. Nothing outlives the lab."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One key: the private file's bytes, and the public line (without a comment)."""

    private: bytes
    public: str

    def __repr__(self) -> str:
        """Never show the private part."""
        return f"KeyPair(public={self.public!r})"


def make_key() -> KeyPair:
    """Make a fresh ed25519 key."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return KeyPair(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), public.decode("ascii"))

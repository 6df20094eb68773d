"""Unit: which certificates and keys are refused, each with one line that helps and tells no secret."""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from kiseki.application.system import SystemClock
from kiseki.security.tls import InvalidTls, LoadedTls, ReloadingTls, TlsFiles, load_tls
from tests.servers.certificates import DAY, Authority, Pair, replace
from tests.support import ManualClock

PASSWORD = b"a password that nobody may see"
NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def load(pair: Pair, **more: object) -> LoadedTls:
    return load_tls(TlsFiles(certificate=pair.certificate, key=pair.key, **more), now=NOW)  # type: ignore[arg-type]


def refused(pair: Pair, **more: object) -> str:
    with pytest.raises(InvalidTls) as refusal:
        load(pair, **more)
    text = str(refusal.value)
    assert "\n" not in text
    assert PASSWORD.decode() not in text
    assert refusal.value.__cause__ is None
    return text


def test_tls_1_3_alone_without_tickets_or_compression(authority: Authority) -> None:
    loaded = load(authority.issue())
    context = loaded.context
    assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.num_tickets == 0
    assert context.verify_mode is ssl.CERT_NONE
    assert loaded.warnings == ()


def test_tls_1_2_only_by_setting_and_only_with_good_suites(authority: Authority) -> None:
    loaded = load(authority.issue(), minimum="1.2")
    assert loaded.context.minimum_version == ssl.TLSVersion.TLSv1_2
    for suite in loaded.context.get_ciphers():
        assert suite["protocol"] == "TLSv1.3" or suite["name"].startswith("ECDHE-")
        assert suite["aead"]
    assert loaded.warnings == ("TLS 1.2 is allowed by `tls_minimum`",)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65_537, 2_048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-256", "P-384", "RSA", "Ed25519"],
)
def test_good_keys_are_accepted(authority: Authority, key: ec.EllipticCurvePrivateKey) -> None:
    load(authority.issue(key=key))


def test_the_password_opens_an_encrypted_key(authority: Authority) -> None:
    pair = authority.issue(password=PASSWORD)
    load(pair, password=PASSWORD)
    load(pair, password=lambda: PASSWORD)


def test_no_password_and_a_wrong_one_are_told_apart_without_asking_the_terminal(authority: Authority) -> None:
    pair = authority.issue(password=PASSWORD)
    assert "is encrypted; give its password in `tls_key_password`" in refused(pair)
    assert "can't be opened with `tls_key_password`" in refused(pair, password=b"wrong")
    assert "is encrypted" in refused(pair, password=b"")


def test_a_password_for_a_key_that_is_not_encrypted_is_told(authority: Authority) -> None:
    assert "is not encrypted" in refused(authority.issue(), password=PASSWORD)


def test_the_password_is_in_no_repr(authority: Authority) -> None:
    pair = authority.issue(password=PASSWORD)
    files = TlsFiles(certificate=pair.certificate, key=pair.key, password=PASSWORD)
    for thing in (files, load_tls(files, now=NOW), ReloadingTls(files, clock=SystemClock())):
        assert "nobody may see" not in repr(thing)


def test_a_key_of_another_certificate_is_refused(authority: Authority) -> None:
    pair, other = authority.issue(), authority.issue("other")
    assert "does not belong to the certificate" in refused(Pair(pair.certificate, other.key))


def test_what_is_expired_or_not_valid_yet_is_refused(authority: Authority) -> None:
    assert "expired on" in refused(authority.issue(begins=NOW - 9 * DAY, ends=NOW - DAY))
    assert "is valid only from" in refused(authority.issue(begins=NOW + DAY, ends=NOW + 9 * DAY))


def test_weak_keys_are_refused(authority: Authority) -> None:
    weak = rsa.generate_private_key(65_537, 1_024)
    assert "too weak: RSA with 1024 bits" in refused(authority.issue(key=weak))
    assert "curve secp192r1" in refused(authority.issue(key=ec.generate_private_key(ec.SECP192R1())))


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o620, 0o777, 0o660])
def test_a_key_that_others_may_read_or_change_is_refused(authority: Authority, mode: int) -> None:
    pair = authority.issue()
    pair.key.chmod(mode)
    assert f"(mode {mode:04o})" in refused(pair)


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_a_key_that_its_group_may_read_is_accepted(authority: Authority, mode: int) -> None:
    pair = authority.issue()
    pair.key.chmod(mode)
    load(pair)


def test_an_authority_certificate_in_front_is_refused(authority: Authority) -> None:
    assert "is an authority's" in refused(authority.issue(authority=True, usage=None))


def test_a_certificate_for_clients_is_refused(authority: Authority) -> None:
    assert "not made for servers" in refused(authority.issue(usage=ExtendedKeyUsageOID.CLIENT_AUTH))
    load(authority.issue(usage=None))


def test_a_chain_is_sent_in_order_or_refused(authority: Authority, tmp_path: Path) -> None:
    intermediate = Authority(tmp_path, "Intermediate", issuer=authority)
    pair = intermediate.issue()
    load(pair)
    leaf, issuer = x509.load_pem_x509_certificates(pair.certificate.read_bytes())
    pem = [one.public_bytes(Encoding.PEM) for one in (leaf, issuer)]
    stranger = Authority(tmp_path, "Stranger").trust.read_bytes()
    replace(pair.certificate, pem[0] + stranger)
    assert "certificate 2 in" in refused(pair)
    replace(pair.certificate, pem[1] + pem[0])
    refused(pair)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"x" * 2_000_000]
)
def test_what_is_no_pem_is_refused(authority: Authority, content: bytes) -> None:
    pair = authority.issue()
    good = pair.certificate.read_bytes()
    replace(pair.certificate, content)
    assert str(pair.certificate) in refused(pair)
    replace(pair.certificate, good)
    replace(pair.key, content)
    assert str(pair.key) in refused(pair)


def test_files_that_are_missing_or_no_files_are_refused(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue()
    missing = tmp_path / "missing"
    for wrong in (Pair(missing, pair.key), Pair(pair.certificate, missing)):
        assert "can't be read: No such file" in refused(wrong)
    for wrong in (Pair(tmp_path, pair.key), Pair(pair.certificate, tmp_path)):
        assert "is no file" in refused(wrong)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "is no file" in refused(Pair(pair.certificate, fifo))
    with pytest.raises(InvalidTls, match="missing can't be read"):
        ReloadingTls(TlsFiles(certificate=missing, key=pair.key), clock=SystemClock())


def test_swapped_files_are_refused(authority: Authority) -> None:
    pair = authority.issue()
    refused(Pair(pair.key, pair.certificate))


def test_a_trust_store_makes_client_certificates_a_must(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue()
    assert load(pair, client_ca=authority.trust).context.verify_mode is ssl.CERT_REQUIRED
    empty = tmp_path / "empty.pem"
    for content in (b"", b"no certificate", pair.key.read_bytes()):
        replace(empty, content)
        assert "`tls_client_ca`" in refused(pair, client_ca=empty)
    assert "`tls_client_ca`" in refused(pair, client_ca=pair.certificate)
    assert "can't be read" in refused(pair, client_ca=tmp_path / "missing")


def test_what_clients_will_not_like_is_said(authority: Authority, tmp_path: Path) -> None:
    assert "names no host" in load(authority.issue(names=())).warnings[0]


def test_the_end_of_the_certificate_is_known(authority: Authority) -> None:
    pair = authority.issue(ends=NOW.replace(microsecond=0) + 10 * DAY)
    tls = ReloadingTls(TlsFiles(certificate=pair.certificate, key=pair.key), clock=SystemClock())
    assert 9.9 * 86_400 < tls.seconds_left <= 10 * 86_400
    assert tls.expires_soon
    later = authority.issue("later")
    assert not ReloadingTls(
        TlsFiles(certificate=later.certificate, key=later.key),
        clock=SystemClock(),
    ).expires_soon


async def test_a_running_process_says_once_that_the_end_is_near_and_once_that_it_came(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    now = clock.now()
    pair = authority.issue(begins=now - DAY, ends=now + 20 * DAY)
    tls = ReloadingTls(TlsFiles(certificate=pair.certificate, key=pair.key), clock=clock)
    for days in (0, 5, 7, 13, 19, 21, 22):
        clock.time = now + days * DAY
        await tls.look()
    said = f"the certificate in {pair.certificate}"
    assert [(record.levelname, record.message) for record in caplog.records if "certificate" in record.message] == [
        ("WARNING", f"{said} ends on {now + 20 * DAY:%Y-%m-%d %H:%M} UTC; renew it"),
        ("ERROR", f"{said} expired on {now + 20 * DAY:%Y-%m-%d %H:%M} UTC, and clients refuse it; renew it"),
    ]
    authority.issue(begins=now - DAY, ends=now + 30 * DAY)
    caplog.clear()
    assert await tls.look()
    clock.time = now + 31 * DAY
    await tls.look()
    assert [record.levelname for record in caplog.records if "expired" in record.message] == ["ERROR"]


def test_files_that_change_while_they_are_read_are_not_believed(authority: Authority) -> None:
    pair = authority.issue(password=PASSWORD)
    again = pair.certificate.read_bytes()

    def password() -> bytes:
        # What reads the password is the moment at which somebody else exchanges the certificate.
        replace(pair.certificate, again)
        return PASSWORD

    with pytest.raises(InvalidTls, match="changed while they were read"):
        ReloadingTls(TlsFiles(certificate=pair.certificate, key=pair.key, password=password), clock=SystemClock())

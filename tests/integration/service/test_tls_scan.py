"""Integration: what sslyze finds on the TLS port: TLS 1.3 with its suites, and no vulnerability that it knows of."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kiseki.application.system import SystemClock
from kiseki.security.tls import ReloadingTls, TlsFiles
from tests.integration.service.transport_parts import running
from tests.servers.certificates import Authority

SCANNER = Path(__file__).parents[3] / ".venv-scanners" / "bin" / "python"
OLD = ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1")


async def scan(port: int, authority: Authority) -> dict[str, Any]:
    outcome = await asyncio.to_thread(
        subprocess.run,
        [
            str(SCANNER),
            "-m",
            "sslyze",
            "--json_out=-",
            "--mozilla_config=disable",
            f"--certinfo_ca_file={authority.trust}",
            "--sni=localhost",
            *(f"--{old}" for old in ("sslv2", "sslv3", "tlsv1", "tlsv1_1", "tlsv1_2", "tlsv1_3")),
            *("--certinfo", "--compression", "--early_data", "--elliptic_curves", "--fallback", "--heartbleed"),
            *("--openssl_ccs", "--reneg", "--resum", "--robot", "--ems"),
            f"127.0.0.1:{port}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert outcome.stdout.startswith("{"), outcome.stdout[-2_000:] + outcome.stderr[-2_000:]
    [server] = json.loads(outcome.stdout)["server_scan_results"]
    assert server["scan_status"] == "COMPLETED", server
    return {name: one["result"] for name, one in server["scan_result"].items() if one and one["result"] is not None}


def suites(results: dict[str, Any], version: str) -> list[str]:
    return sorted(one["cipher_suite"]["name"] for one in results[f"{version}_cipher_suites"]["accepted_cipher_suites"])


@pytest.mark.parametrize("minimum", ["1.3", "1.2"])
@pytest.mark.skipif(not SCANNER.exists(), reason="sslyze is not installed (.venv-scanners)")
async def test_sslyze_finds_nothing(tmp_path: Path, minimum: Any, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue()
    files = TlsFiles(certificate=pair.certificate, key=pair.key, minimum=minimum)
    async with running(tls=ReloadingTls(files, clock=SystemClock())) as service:
        found = await scan(service.port, authority)
        await service.empty()
    accepted = {version: suites(found, version) for version in (*OLD, "tls_1_2", "tls_1_3")}
    with capsys.disabled():
        print(f"\nsslyze, TLS {minimum} and above:")
        for version, names in accepted.items():
            print(f"  {version.upper()}: {', '.join(names) or 'refused'}")
        print(
            f"  heartbleed: {found['heartbleed']['is_vulnerable_to_heartbleed']}, "
            f"CCS injection: {found['openssl_ccs_injection']['is_vulnerable_to_ccs_injection']}, "
            f"ROBOT: {found['robot']['robot_result']}, "
            f"compression: {found['tls_compression']['supports_compression']}, "
            f"early data: {found['tls_1_3_early_data']['supports_early_data']}, "
            f"renegotiation: {found['session_renegotiation']['is_vulnerable_to_client_renegotiation_dos']}"
        )
    assert all(not accepted[version] for version in OLD)
    assert accepted["tls_1_3"] == ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
    assert bool(accepted["tls_1_2"]) is (minimum == "1.2")
    assert all(name.startswith("TLS_ECDHE_") and ("GCM" in name or "CHACHA20" in name) for name in accepted["tls_1_2"])
    assert not found["heartbleed"]["is_vulnerable_to_heartbleed"]
    assert not found["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"]
    assert found["robot"]["robot_result"].startswith("NOT_VULNERABLE")
    assert not found["tls_compression"]["supports_compression"]
    assert not found["tls_1_3_early_data"]["supports_early_data"]
    assert not found["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"]
    if minimum == "1.2":
        assert found["session_renegotiation"]["supports_secure_renegotiation"]
        assert found["tls_fallback_scsv"]["supports_fallback_scsv"]
        assert found["tls_extended_master_secret"]["supports_ems_extension"]
    [deployment] = found["certificate_info"]["certificate_deployments"]
    assert deployment["received_chain_has_valid_order"]
    assert any(
        one["was_validation_successful"]
        for one in deployment["path_validation_results"]
        if one["trust_store"]["path"] == str(authority.trust)
    )

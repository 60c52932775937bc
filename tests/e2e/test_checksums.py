"""check-file on real nodes, as paramiko asks: right through every node, and each open of it is in the audit log."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import paramiko
from blake3 import blake3

from tests.e2e.harness import Cluster

MIB = 1 << 20


def test_digests_through_every_node(shared_cluster: Cluster, tmp_path: Path) -> None:
    data = os.urandom(9 * MIB + 5)
    source = tmp_path / "source"
    source.write_bytes(data)
    shared_cluster.sftp(shared_cluster.names[0], f"put {source} summed\n")
    expected = {"md5": hashlib.md5(data), "sha256": hashlib.sha256(data), "blake3": blake3(data)}
    for name in shared_cluster.names:
        for _ in range(2):  # the second session is told what the first one's worker computed
            host, port = shared_cluster.node(name)["sftp"].rsplit(":", 1)
            client = paramiko.SSHClient()
            client.load_host_keys(shared_cluster.about["known_hosts"])
            client.connect(host, int(port), "demo", key_filename=shared_cluster.about["users"][0]["key"],
                           allow_agent=False, look_for_keys=False)
            with client, client.open_sftp().open("summed") as file:
                for algorithm, digest in expected.items():
                    assert file.check(algorithm) == digest.digest(), f"{algorithm} through {name}"
                assert file.check("sha256", MIB - 3, 7) == hashlib.sha256(data[MIB - 3 : MIB + 4]).digest()
    opens = [record for record in shared_cluster.audit("--kind", "open") if record["path"] == "/summed"]
    assert len([record for record in opens if record["outcome"] == "ok"]) == 2 * len(shared_cluster.names)
    assert {record["digest"] for record in opens if record["outcome"] == "ok"} == {blake3(data).hexdigest()}

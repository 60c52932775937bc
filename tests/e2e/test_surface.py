"""The commands of surface.md as an operator types them, against real nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.e2e.harness import RAFTMFT, Cluster, wait_for


def test_config_is_set_everywhere_and_audited(shared_cluster: Cluster) -> None:
    cluster = shared_cluster
    one, two, *_ = cluster.names
    assert cluster.run("config", "get", "login.limit_s").stdout == b"30\n"
    assert b"login.limit_s is 31" in cluster.run("config", "set", "login.limit_s", "31", node=one).stdout
    assert json.loads(cluster.run("config", "get", "login.limit_s", "-o", "json", node=two).stdout)["value"] == "31"
    records = cluster.audit("--kind", "admin", node=two)
    assert [r["target"] for r in records if "login.limit_s" in r["target"]] == ["config set login.limit_s=31"]
    cluster.run("config", "set", "login.limit_s", "")
    rows = {o["key"]: o for o in json.loads(cluster.run("config", "list", "-o", "json", node=two).stdout)}
    assert rows["login.limit_s"]["value"] == "30" and not rows["login.limit_s"]["is_set"]
    assert b"replicas" in cluster.run("config", "list").stdout


def test_a_file_is_shown_with_its_chunks_and_their_holders(shared_cluster: Cluster, tmp_path: Path) -> None:
    cluster = shared_cluster
    one, two, *_ = cluster.names
    source = tmp_path / "f"
    source.write_bytes(os.urandom(2_500_000))
    cluster.sftp(one, f"put {source} shown.bin\n")

    def shown() -> dict[str, Any]:
        return json.loads(cluster.run("file", "show", "/demo/shown.bin", "-o", "json", node=two).stdout)

    value = wait_for("three copies of each chunk", lambda: (v := shown())["health"] == "ok" and v)
    assert (value["size"], value["chunk_count"], value["depth"], value["silent"]) == (2_500_000, 3, 0, [])
    assert [chunk["holders"] for chunk in value["chunks"]] == [sorted(cluster.names)] * 3
    assert [chunk["size"] for chunk in value["chunks"]] == [1 << 20, 1 << 20, 2_500_000 - (2 << 20)]
    assert value["digest"] == cluster.audit("--kind", "publish", "--path", "shown.bin")[-1]["digest"]
    text = cluster.run("file", "show", "/demo/shown.bin", "--first", "1", "--limit", "1").stdout.decode()
    assert "health:   ok, 3 copies wanted" in text and value["chunks"][1]["id"][:16] in text
    assert value["chunks"][0]["id"][:16] not in text
    done = cluster.run("file", "show", "/demo/nothing", check=False)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1


def test_the_number_of_copies_is_configured_for_the_whole_cluster(shared_cluster: Cluster, tmp_path: Path) -> None:
    cluster = shared_cluster
    one, two, *_ = cluster.names
    source = tmp_path / "f"
    source.write_bytes(os.urandom(3_000_000))
    cluster.sftp(one, f"put {source} copies.bin\n")
    try:
        cluster.run("config", "set", "replicas", "2", node=two)
        for node in cluster.names:
            value = json.loads(cluster.run("file", "show", "/demo/copies.bin", "-o", "json", node=node).stdout)
            assert value["replicas"] == 2 and {len(chunk["owners"]) for chunk in value["chunks"]} == {2}, node
        cluster.sftp(two, f"put {source} copies2.bin\nget copies2.bin {tmp_path}/back\n")
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        for bad in ("0", "17", "many"):
            done = cluster.run("config", "set", "replicas", bad, check=False)
            assert done.returncode == 1 and b"1 to 16" in done.stderr and done.stderr.count(b"\n") == 1
    finally:
        cluster.run("config", "set", "replicas", "")

    def owed() -> bool:
        shown = json.loads(cluster.run("file", "show", "/demo/copies2.bin", "-o", "json").stdout)
        return shown["replicas"] == 3 and shown["health"] == "ok"

    wait_for("what was written with two copies to have three", owed, 60)


def test_a_session_is_killed_wherever_it_is(shared_cluster: Cluster) -> None:
    cluster = shared_cluster
    one, two, *_ = cluster.names
    words = cluster.sftp_command(one)
    # ssh itself, as sftp does not look at its connection while it waits for a command
    client = subprocess.Popen(["ssh", "-p", words[words.index("-P") + 1], *words[words.index("-F"):-1], "-s", words[-1],
                               "sftp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        def sessions() -> list[dict[str, Any]]:
            return json.loads(cluster.run("sessions", "list", "--user", "demo", "-o", "json", node=two).stdout)

        (session,) = wait_for("one session", lambda: len(s := sessions()) == 1 and s)
        assert session["member"] in cluster.names and session["method"] == "publickey"
        said = cluster.run("sessions", "kill", str(session["id"]), node=two).stdout.decode()
        assert said == f"session {session['id']} of demo on {session['member']} is ended\n"
        assert sessions() == []
        client.wait(10)
        assert client.returncode == 255, "ssh's word for a connection that was closed"
    finally:
        client.kill()
        client.communicate()
    record = cluster.audit("--kind", "session_killed")[-1]
    assert record["session"] == session["id"] and record["outcome"] == "killed by local administrator"
    done = cluster.run("sessions", "kill", str(session["id"]), check=False)
    assert done.returncode == 1 and b"sessions list" in done.stderr


def test_admin_tokens_hold_on_every_node_at_once_and_in_their_role(shared_cluster: Cluster, tmp_path: Path) -> None:
    cluster = shared_cluster
    token = tmp_path / "token"
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RAFTMFT")}

    def ask(node: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        env = {**plain, "RAFTMFT_ADMIN": cluster.node(node)["admin"], "RAFTMFT_ADMIN_TOKEN_FILE": str(token)}
        return subprocess.run([*RAFTMFT, *words], env=env, capture_output=True, timeout=30)

    for role, may in (("viewer", (0, 1, 1)), ("operator", (0, 0, 1)), ("admin", (0, 0, 0))):
        token.write_bytes(cluster.run("admin-token", "create", f"t-{role}", "--role", role).stdout)
        for node in cluster.names:
            codes = tuple(ask(node, *words).returncode for words in (
                ("user", "list"), ("user", "enable", "demo"), ("config", "set", "login.limit_s", "30")))
            assert codes == may, (role, node)
        assert f"t-{role}" in cluster.run("admin-token", "list").stdout.decode()
        cluster.run("admin-token", "revoke", f"t-{role}")
        for node in cluster.names:
            done = ask(node, "user", "list")
            assert done.returncode == 1 and b"token" in done.stderr, (role, node)
    assert "admin token t-operator" in {record["user"] for record in cluster.audit("--kind", "admin")}


def test_the_audit_log_is_exported_verified_and_followed(shared_cluster: Cluster, tmp_path: Path) -> None:
    cluster = shared_cluster
    file = tmp_path / "audit.jsonl"
    cluster.run("user", "add", "exported")
    assert b"records in" in cluster.run("audit", "export", "--file", str(file)).stdout
    nowhere = {k: v for k, v in os.environ.items() if not k.startswith("RAFTMFT")}

    def verify(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*RAFTMFT, "audit", "verify", "--file", *words], env=nowhere, capture_output=True,
                              timeout=30)

    whole = file.read_bytes()
    done = json.loads(verify(str(file), "-o", "json").stdout)
    assert done["ok"] and done["from_beginning"] and done["count"] == whole.count(b"\n")
    file.write_bytes(whole.replace(b"user add exported", b"user add innocent"))
    assert verify(str(file)).returncode == 1
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:1] + lines[2:]))
    assert verify(str(file)).returncode == 1
    file.write_bytes(whole[:-5])
    assert verify(str(file)).returncode == 1
    file.write_bytes(b"".join(lines[1:]))
    done = json.loads(verify(str(file), "-o", "json").stdout)
    assert done["ok"] and not done["from_beginning"]
    online = json.loads(cluster.run("audit", "verify", "-o", "json").stdout)
    assert online["ok"] and online["count"] >= len(lines)
    assert cluster.run("audit", "export").stdout.startswith(whole)

    data_dir = cluster.node(cluster.names[1])["data_dir"]
    tail = subprocess.Popen([*RAFTMFT, "audit", "tail", "-n", "0", "-f", "-o", "json", "--kind", "admin", "--data-dir",
                             data_dir], stdout=subprocess.PIPE)
    try:
        assert tail.stdout is not None
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(tail.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        number = 0
        while not got:  # it may not have begun to look when the first is made
            number += 1
            assert number < 50
            cluster.run("user", "set", "exported", "--max-sessions", str(number))
        reader.join()
        assert "user set exported" in json.loads(got[0])["target"]
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 0
    finally:
        tail.kill()
        tail.wait()
        tail.stdout.close()
    last = cluster.run("audit", "tail", "-n", "1").stdout.decode()
    assert last.count("\n") == 1 and "admin" in last


def test_metrics_and_the_api_document_are_served(shared_cluster: Cluster) -> None:
    import urllib.request

    cluster = shared_cluster
    admin = cluster.node(cluster.names[0])["admin"]
    with urllib.request.urlopen(f"{admin}/metrics", timeout=10) as answer:
        text = answer.read().decode()
        assert answer.headers["content-type"].startswith("text/plain")
    assert "\nraftmft_members 3.0\n" in text and "raftmft_raft_term" in text
    token = Path(cluster.about["admin_token_file"]).read_text().strip()
    request = urllib.request.Request(f"{admin}/api/v1/openapi.json", headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert "/api/v1/file" in json.loads(answer.read())["paths"]


def test_every_verb_of_user_is_true_on_every_node_at_once(shared_cluster: Cluster, tmp_path: Path) -> None:
    cluster = shared_cluster
    one, two, *_ = cluster.names

    def may(password: str, user: str = "verbs") -> set[bool]:
        return {cluster.sftp_with_password(node, "pwd\n", password, user).returncode == 0 for node in cluster.names}

    def show() -> dict[str, Any]:
        return json.loads(cluster.run("user", "show", "verbs", "-o", "json", node=two).stdout)

    done = cluster.run("user", "add", "verbs")
    assert b"cannot log in yet" in done.stderr, "made, with neither password nor key"
    assert may("") == {False}
    cluster.run("user", "set", "verbs", "--password-stdin", input=b"se cret\n\n", node=two)
    assert may("se cret\n") == {False}, "sent by a client without the newline that was kept"
    cluster.run("user", "set", "verbs", "--password-stdin", input=b"se cret\n")
    assert may("se cret") == {True}, "one trailing newline is cut"
    cluster.run("user", "disable", "verbs")
    assert may("se cret") == {False} and show()["enabled"] is False
    cluster.run("user", "enable", "verbs", node=two)
    assert may("se cret") == {True} and may("other") == {False}
    cluster.run("user", "set", "verbs", "--quota", "1.5KiB", "--max-sessions", "7", "--read-only")
    assert {key: show()[key] for key in ("quota_bytes", "max_sessions", "read_only")} == {
        "quota_bytes": 1536, "max_sessions": 7, "read_only": True}
    assert cluster.sftp_with_password(two, "mkdir x\nbye\n", "se cret", "verbs").stderr
    cluster.run("user", "set", "verbs", "--read-write", "--quota", "0")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    done = cluster.run("user", "key", "add", "verbs", str(key), check=False)
    assert done.returncode == 2 and b"never the private key" in done.stderr
    added = json.loads(cluster.run("user", "key", "add", "verbs", f"{key}.pub", "-o", "json").stdout)
    for node in cluster.names:
        cluster.sftp(node, "pwd\n", user="verbs", key=str(key))
    keys = json.loads(cluster.run("user", "key", "list", "verbs", "-o", "json", node=two).stdout)
    assert [k["fingerprint"] for k in keys] == [added["fingerprint"]]
    assert added["fingerprint"] in cluster.run("user", "show", "verbs").stdout.decode()
    cluster.run("user", "key", "remove", "verbs", added["fingerprint"])
    assert cluster.sftp(two, "pwd\n", user="verbs", key=str(key), check=False).returncode != 0
    assert "verbs" in {u["name"] for u in json.loads(cluster.run("user", "list", "-o", "json", node=two).stdout)}
    assert b"verbs" in cluster.run("user", "list").stdout
    assert cluster.run("user", "remove", "verbs", input=b"n\n", check=False).returncode == 130
    assert show()["name"] == "verbs", "asked first"
    cluster.run("user", "remove", "verbs", "--yes")
    assert may("se cret") == {False}
    for words in (("show",), ("set", "--quota", "1"), ("disable",), ("enable",), ("remove", "--yes")):
        done = cluster.run("user", words[0], "verbs", *words[1:], check=False)
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"verbs" in done.stderr, words


def test_an_interrupted_or_impossible_export_leaves_no_file(shared_cluster: Cluster, tmp_path: Path) -> None:
    done = shared_cluster.run("audit", "export", "--file", str(tmp_path / "no" / "f"), check=False)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    (tmp_path / "d").mkdir()
    assert shared_cluster.run("audit", "export", "--file", str(tmp_path / "d"), check=False).returncode == 2
    assert list(tmp_path.rglob("*")) == [tmp_path / "d"]
    for text in (b"{}\n", b"nonsense\n", b"\xff\n", b"[1]\n", b"9" * 5000):
        file = tmp_path / "bad"
        file.write_bytes(text)
        done = shared_cluster.run("audit", "verify", "--file", str(file), check=False)
        assert done.returncode == 1 and b"line 1" in done.stderr and done.stderr.count(b"\n") == 1


def test_no_quorum_is_exit_code_4(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "c", nodes=2)
    try:
        cluster.start()
        one, two = cluster.names
        cluster.kill(two)
        for words in (("user", "list"), ("config", "set", "login.limit_s", "9"), ("file", "show", "/demo/x")):
            done = cluster.run(*words, node=one, check=False)
            assert done.returncode == 4 and b"quorum" in done.stderr and done.stderr.count(b"\n") == 1, (words, done)
        assert cluster.run("version", node=one).returncode == 0
    finally:
        cluster.stop()

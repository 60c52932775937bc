"""`raftmft init` with real processes: a cluster of one that serves, and each bad input answered by one line."""

from __future__ import annotations

import os
import socket

import pytest

from tests.e2e.hosts import Hosts, port_options, refused, small_disk, snapshot, taken_port


@pytest.mark.parametrize(("advertise", "name"), [
    ("127.0.0.1", "127.0.0.1"), ("::1", "ip6---1"), ("localhost", "localhost")])
def test_a_cluster_of_one_serves(hosts: Hosts, advertise: str, name: str) -> None:
    if advertise == "::1":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            advertise, name = "127.0.0.1", "127.0.0.1"  # this machine has no IPv6 at all
    host = hosts.init("d1", "--advertise", advertise)
    hosts.start(host)
    hosts.wait_ready(host)
    (member,) = hosts.members(host)
    assert (member["name"], member["host"], member["mode"]) == (name, advertise, "active")
    status = hosts.json(host, "status")
    assert (status["cluster"], status["verdict"], status["leader"]) == ("files", "ok", name)


def test_a_second_init_changes_nothing(hosts: Hosts) -> None:
    host = hosts.init("d1")
    before = snapshot(host.data_dir)
    line = refused(hosts.run_init("d1", *port_options()))
    assert "made there already" in line and snapshot(host.data_dir) == before
    hosts.start(host)
    hosts.wait_ready(host)


@pytest.mark.parametrize(("options", "text"), [
    (["--advertise", "0.0.0.0"], "own address"), (["--advertise", "10.0.0.1:7400"], "without a port"),
    (["--name", "a/b"], "--name"), (["--name", ""], "--name"), (["--cluster-name", "a\nb"], "--cluster-name"),
    (["--sftp-port", "7001", "--peer-port", "7001"], "choose different ports"),
    (["--listen", "192.0.2.1"], "192.0.2.1"), (["--listen", "no such"], "no such")])
def test_bad_options_get_one_line(hosts: Hosts, options: list[str], text: str) -> None:
    line = refused(hosts.run_init("d1", *port_options(), *options))
    assert text in line and not (hosts.folder / "d1").exists()


@pytest.mark.parametrize("setting", ["sftp-port", "peer-port", "admin-port", "gossip-port"])
def test_a_port_in_use_is_named(hosts: Hosts, setting: str) -> None:
    with taken_port(setting) as port:
        line = refused(hosts.run_init("d1", *port_options(), f"--{setting}", str(port)))
        assert f":{port}" in line and f"--{setting}" in line and not (hosts.folder / "d1").exists()


def test_too_few_open_files_are_told_by_init_and_node(hosts: Hosts) -> None:
    host = hosts.init("d1")
    options = ["--data-dir", str(hosts.folder / "d2"), "--cluster-name", "c", "--advertise", "127.0.0.1"]
    assert "LimitNOFILE" in refused(hosts.run_limited(200, "init", *options, *port_options()))
    assert not (hosts.folder / "d2").exists()
    before = snapshot(host.data_dir)
    assert "LimitNOFILE" in refused(hosts.run_limited(200, "node", "--data-dir", str(host.data_dir)))
    assert snapshot(host.data_dir) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")
@pytest.mark.parametrize("options", ["size=64k", "size=16m,ro"], ids=["full", "read-only"])
def test_a_full_or_read_only_disk_is_told_and_left_as_it_was(hosts: Hosts, options: str) -> None:
    with small_disk(hosts.folder / "disk", options) as disk:
        line = refused(hosts.run_init("disk/d", *port_options()))
        assert "No space left" in line or "Read-only" in line
        assert list(disk.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_another_users_directory_is_refused(hosts: Hosts) -> None:
    folder = hosts.folder / "d1"
    folder.mkdir()
    os.chown(folder, 12345, 0)
    assert "belongs to user 12345" in refused(hosts.run_init("d1", *port_options()))
    assert list(folder.iterdir()) == [] and folder.stat().st_uid == 12345

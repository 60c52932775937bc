"""The node process: what it is made of, in the order in which each part may rely on those before it.

 1. data directory, locked; keys; settings          nothing else may touch the files
 2. chunk store                                     peers can put and get chunks
 3. state machine, journal, replica, driver         Raft can vote and apply; nothing is served yet
 4. peer links and listener, gossip                 the others see us; an election can be won
 5. leader's duties, this member's epoch            commands can be proposed
 6. workers, front door                             clients are served
 7. admin API                                       open from 4 on, so that people can watch

A part that fails takes the node down: a node that cannot sync, apply or listen must not pretend to serve.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from raftmft import __version__
from raftmft.cluster import hello
from raftmft.cluster.bulk import BulkPool
from raftmft.cluster.bulk_server import BulkServer
from raftmft.cluster.certificates import CLUSTER_KEY_SIZE, load_member
from raftmft.cluster.fetcher import Fetcher
from raftmft.cluster.gossip import Gossip
from raftmft.cluster.holdings import Holdings
from raftmft.cluster.joining import JoinDoor
from raftmft.cluster.keyring import KeyRing
from raftmft.cluster.links import PeerLinks
from raftmft.cluster.listener import PeerListener
from raftmft.cluster.passing import Passing
from raftmft.cluster.relay import PrefaceGuard, RelayDoor, relay
from raftmft.cluster.renewing import settle
from raftmft.cluster.repairer import Repairer
from raftmft.cluster.replicator import Replicator
from raftmft.core.addresses import address_text
from raftmft.core.commands import Checkpoint, ConfigSet, Publish
from raftmft.core.errors import ConfigError, RaftmftError
from raftmft.core.machine import Entry
from raftmft.core.membership import Load
from raftmft.core.outcome import Outcome
from raftmft.node import admin
from raftmft.node.address import Address
from raftmft.node.admin_app import admin_app
from raftmft.node.admitting import Admitting
from raftmft.node.chunks import Chunks
from raftmft.node.clusterkeys import ClusterKeys
from raftmft.node.coverage import Coverage
from raftmft.node.datadir import DataDir
from raftmft.node.dispatch import Dispatch
from raftmft.node.divergence import Divergence
from raftmft.node.doorrules import StateRules
from raftmft.node.epoch import Epoch
from raftmft.node.evictions import Evictions
from raftmft.node.files import Files
from raftmft.node.frontdoor import FrontDoor
from raftmft.node.genesis import bootstrap_command
from raftmft.node.hits import Hits
from raftmft.node.holders import Holders
from raftmft.node.leader import LeaderDuties
from raftmft.node.logins import Logins
from raftmft.node.quorum import QuorumWatch
from raftmft.node.reads import Reads
from raftmft.node.renewal import Renewal
from raftmft.node.roster import INTRODUCTION, Roster
from raftmft.node.settings import Settings
from raftmft.node.sockets import Listeners
from raftmft.node.state import close_state, open_journal, open_state
from raftmft.node.stewards import Stewards
from raftmft.node.tokens import Tokens
from raftmft.node.view import ClusterView
from raftmft.node.workers import Worker, Workers
from raftmft.raft.driver import RaftDriver
from raftmft.raft.replica import Replica
from raftmft.raft.snapshots import SnapshotFolder
from raftmft.raft.snapshotter import Snapshotter
from raftmft.store.disk import SegmentStore
from raftmft.wire.joining import JOIN, RENEW, Admitted
from raftmft.wire.loglines import fields
from raftmft.wire.preface import Preface

log = logging.getLogger(__name__)

LOAD_EVERY_S = 0.25
WINDOW_CHUNKS = 8
HAND_OVER_LIMIT_S = 2.0
RAFT = "raft"


def now_ms() -> int:
    """This host's clock."""
    return time.time_ns() // 1_000_000


class Node:
    """One node. `run` serves until `stop` is set, then drains for `drain_s` and leaves everything clean."""

    def __init__(self, data_dir: DataDir, settings: Settings, listeners: Listeners, log_fd: int | None = None) -> None:
        self.data_dir, self.settings, self.listeners, self._log_fd = data_dir, settings, listeners, log_fd
        self.stop, self.removed = trio.Event(), trio.Event()
        self.drain_s = float(settings.drain_timeout_s)
        seed = self.seed = data_dir.read_seed()
        self.me = seed.me
        self.measured = Load()
        settle(data_dir.certificates)
        load_member(data_dir.certificates)
        # All files are opened, and refused if another version wrote them, before the mark of a clean stop is used up.
        self.ring = KeyRing.load(data_dir.cluster_key)
        self._make_store()
        self._make_raft()
        self._make_links()
        self._make_service()

    # --- parts ------------------------------------------------------------------------------------
    def _make_raft(self) -> None:
        journal = open_journal(self.data_dir)
        self.snapshots = SnapshotFolder(str(self.data_dir.snapshots))
        self.snapshots.drop_beyond(journal.last_index)
        self.state = open_state(self.data_dir, journal, self.snapshots)
        founders = [m.id for m in self.seed.members] if self.seed.founder else []
        self.replica = Replica(self.me, founders, journal, self.state, snapshots=self.snapshots.held)
        self.driver = RaftDriver(self.replica, lambda member, body: self.links.send(member, RAFT, body))

    def _make_store(self) -> None:
        # The nanoseconds keep segment names of one process apart from those of the one before.
        self.run_name = f"{time.time_ns():x}"
        self.storage = SegmentStore(self.data_dir.chunks, f"node{self.run_name}", self.settings.segment_bytes)
        self.holdings = Holdings(self.storage)

    def _make_links(self) -> None:
        files = self.data_dir.certificates
        nobodys_key = secrets.token_bytes(CLUSTER_KEY_SIZE)  # until ClusterKeys tells the one in force, below
        self.roster = Roster(self.seed, self.state, self._members_changed, now_ms)
        me = hello.Self.load(self.me, self.seed.cluster_id, files, self.roster.endorsed)
        self.view = ClusterView(self.seed, self.state, self.driver, self.roster)
        self.gossip = Gossip(self.me, (self.settings.listen, self.settings.gossip_port), nobodys_key,
                             self.roster.gossip_addresses)
        self.view.listen_to(self.gossip, self._load, lambda member: self.links.hears(member))
        self.links = PeerLinks(me, self.roster.peer_addresses, self.roster.directory,
                               on_up=self._link_up, on_down=self._link_down,
                               dial_all=lambda: self.address.is_stale(), on_removed=self.removed.set)
        self.links.on_message(RAFT, self.driver.receive)
        self.links.on_message(INTRODUCTION, self.roster.introduced)
        self.divergence = Divergence(self.me, self.state, self.driver, self.links)
        self.holders = Holders(self.me, self.links, lambda chunk_id: self.holdings.find(chunk_id) is not None)
        self.pool = BulkPool(lambda member: hello.dial(
            me, member, self.roster.peer_addresses()[member], "bulk", self.roster.directory))
        self.replicator = Replicator(self.me, self.pool.chain, self.view.alive, self.links.hears, self.view.ranking)
        self.fetcher = Fetcher(self.me, self.pool.get, self.holdings, self.view.alive, self.view.places)
        self.repairer = Repairer(self.state.manifests_since, self.view.owns,
                                 lambda: self.state.applied, self.holdings, self.fetcher, self.data_dir.repair_mark,
                                 placement=self.placement,
                                 stores=lambda: any(member == self.me for member, _ in self.view.storing()))
        self.coverage = Coverage(self.me, self.links, self.holdings, self.fetcher, self.replicator, self.view.storing,
                                 self.view.replicas, self.placement, self.view.write_quorum)
        self.state.subscribe(self._applied)
        self.hits = Hits(self.me, self.links, self.holdings, self.fetcher.read, self.state)
        self.passing = Passing(self.me, self.pool.chain, lambda member: self.view.member(member) is not None)
        self.bulk = BulkServer(self.holdings, on_damaged=self.repairer.damaged, other=self._part_of_snapshot,
                               shares=self.hits.shares, passing=self.passing)
        self.snapshotter = Snapshotter(self.driver, self.snapshots, self.state, str(self.data_dir.state),
                                       self.pool.get)
        self.prefaces = PrefaceGuard(nobodys_key, self.me)
        self.keys = ClusterKeys(
            self.ring, self.seed, self.state, self.links,
            (self.gossip.rekey, self.prefaces.rekey), leads=lambda: self.driver.status().role == "leader",
            execute=lambda command: self.epoch.execute(command))
        door = JoinDoor(self.seed.cluster_id, files, {JOIN: self._admit, RENEW: self._renew}, self.keys.present)
        self.contexts = (me.server, me.client, door.context)
        self.listener = PeerListener(me, self.roster.directory, on_control=self.links.serve, on_bulk=self.bulk.serve,
                                     on_relay=RelayDoor(self.prefaces, self._relayed).take,
                                     join_door=door)

    def _make_service(self) -> None:
        self.epoch = Epoch(self.driver, self.me, lambda: self.state.machine.settings.level)
        self.admitting = Admitting(self.state, self.epoch, self.data_dir.certificates,
                                   self.keys.present, now_ms, self._is_dead)
        self.renewal = Renewal(self.seed.cluster_id, self.me, self.data_dir.certificates, self.state, self.epoch,
                               self.keys.authority_key, self.contexts, now_ms)
        self.address = Address(self.settings, self.roster, self.epoch)
        self.logins = Logins(self.state, self.epoch, self.me)
        self.chunks = Chunks(self.me, self.storage, self.replicator, self.fetcher, self.repairer, self.view.storing,
                             self.view.replicas, self.coverage, self.view.write_quorum, self.hits)
        self.reads = Reads(self.state, self.epoch, self.me)
        self.files = Files(self.state, self.epoch, self.chunks, self.reads)
        self.dispatch = Dispatch(self.epoch, self.logins, self.files, self.chunks, self._greet)
        self.workers = Workers(self.settings.worker_count, self.dispatch.handle, self._worker_gone,
                               lambda start: f"worker{self.run_name}x{start}",
                               ("--log-level", self.settings.log_level, "--log-format", self.settings.log_format),
                               self._log_fd)
        self.door = FrontDoor(self.me, self.workers, StateRules(self.state), self.view.choose, self._relay)
        self.evictions = Evictions(self.workers, self.door.cut)
        self.state.subscribe(self.evictions.applied)
        self.state.on_installed(self._installed)
        bootstrap = bootstrap_command(self.seed) if self.seed.founder else None
        self.duties = LeaderDuties(self.driver, self.state, bootstrap, self.view.dead, self.me)
        self.stewards = Stewards(self.me, self.links, self.driver, self.roster, self.repairer)
        self.watch = QuorumWatch(self.epoch, self.view.has_quorum, self.workers.kill_all_sessions)
        self.api = admin_app(self)

    # --- life -------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Serves until `stop`; raises what took a part down. On return all is on disk and marked clean."""
        async with trio.open_nursery() as nursery:
            for part in (self.holdings.run, self.links.run, self.pool.run, self.replicator.run, self.driver.run,
                         self.snapshotter.run,
                         self._gossip, self.duties.run, self.keys.run, self._renew_if_expired, self._report_load,
                         self._serve_admin, self.divergence.run):
                nursery.start_soon(part)
            nursery.start_soon(self.listener.serve, self.listeners.peer)
            nursery.start_soon(self._serve_clients)
            nursery.start_soon(self._watch_removal)
            await self.stop.wait()
            await self._drain()
            nursery.cancel_scope.cancel()
        self.storage.close()
        close_state(self.state, self.data_dir)

    async def _gossip(self) -> None:
        try:
            await self.gossip.run()
        except OSError as error:
            where = f"{self.settings.listen}:{self.settings.gossip_port}"
            raise ConfigError(f"gossip_port {where} (UDP) cannot be opened: {error.strerror}; choose another in "
                              f"{self.data_dir.path}/raftmft.toml or stop what uses it") from None

    async def _serve_clients(self) -> None:
        await self.keys.wait_for_host_key()  # workers are given it as they greet
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.workers.run)
            await self.epoch.begin()
            for part in (self.address.run, self.renewal.run, self.logins.run, self.files.run, self.repairer.run,
                         self.hits.run, self.watch.run, self.evictions.run):
                nursery.start_soon(part)
            nursery.start_soon(self.door.run, trio.socket.from_stdlib_socket(self.listeners.sftp))
            notify_systemd("READY=1")

    async def _drain(self) -> None:
        log.info("stopping: sessions get %.0f s to end", self.drain_s)
        notify_systemd("STOPPING=1")
        self.door.close()
        await self.workers.drain(self.drain_s)
        with trio.move_on_after(2):
            await self.files.finish()
            await self.logins.finish()
        with trio.move_on_after(HAND_OVER_LIMIT_S):
            await self.driver.hand_over()

    async def _serve_admin(self) -> None:
        tokens = Tokens(self.data_dir.admin_token.read_bytes().strip(), self.state, self.epoch.barrier)
        await admin.serve(self.api, self.listeners.admin_unix, self.listeners.admin, tokens.authenticate,
                          self.data_dir.certificates)

    async def _report_load(self) -> None:
        cpu, at = time.process_time(), trio.current_time()
        before = 0
        while True:
            await trio.sleep(LOAD_EVERY_S)
            elapsed = trio.current_time() - at
            used, at = time.process_time() - cpu, trio.current_time()
            cpu += used
            workers = list(self.workers.live.values())
            moved = sum(w.bytes_in + w.bytes_out for w in workers)
            self.measured = Load(
                bytes_per_s=int(max(0, moved - before) / elapsed), cpu=min(1.0, used / elapsed),
                disk_free=shutil.disk_usage(self.data_dir.path).free, mode=self._mode(),
                version=__version__)
            self.gossip.set_load(self._load())
            before = moved

    def _load(self) -> Load:
        """This node's load now: what is measured at intervals, and what is known at any moment."""
        return replace(
            self.measured, sessions=sum(w.load for w in self.workers.live.values()), applied_index=self.state.applied,
            missing_chunks=self.repairer.lacking + self.replicator.owed,
            mode="draining" if self.stop.is_set() else self.measured.mode,
            has_quorum=self.epoch.begun.is_set() and bool(self.workers.live) and self.view.has_quorum()
            and self._is_joined())

    def _mode(self) -> str:
        mine = self.roster.mine()
        return mine.mode if mine is not None else self.seed.member(self.me).mode

    def _is_joined(self) -> bool:
        mine = self.roster.mine()
        return mine is not None and bool(mine.joined)

    def _applied(self, entries: Sequence[Entry], _: Sequence[Outcome]) -> None:
        if any(type(entry.envelope.command) in (Publish, Checkpoint, ConfigSet) for entry in entries):
            self.repairer.kick()  # did all copies of it arrive here?

    def _installed(self) -> None:
        """This member was so far behind that nobody told its parts what was applied: its sessions end, as if it had
        been away.
        """
        self.repairer.kick()
        if self.epoch.begun.is_set():
            self.epoch.over.set()

    # --- what the parts ask of the whole ----------------------------------------------------------
    def placement(self) -> int:
        """The present placement epoch."""
        return self.state.machine.settings.placement

    def _link_up(self, member: str) -> None:
        self.driver.peer_connected(member)
        self.links.send(member, INTRODUCTION, self.roster.introduction())
        self.divergence.link_up(member)

    def _members_changed(self, gone: set[str]) -> None:
        """Who may link, or where members are, changed: cuts off at once who may not any more."""
        self.links.refresh()
        self.listener.recheck()
        for member in gone:
            self.pool.cut_off(member)
        self.repairer.kick()
        if self.roster.is_removed:
            self.removed.set()

    async def _watch_removal(self) -> None:
        await self.removed.wait()
        raise RaftmftError("this member was removed from its cluster; let this host in again by raftmft join --replace")

    def _link_down(self, member: str) -> None:
        self.driver.peer_disconnected(member)
        self.pool.cut_off(member)  # or what it was asked would wait for a stopped process

    async def _part_of_snapshot(self, wanted: bytes) -> bytes | None:
        return await trio.to_thread.run_sync(self.snapshots.find, wanted)

    def _is_dead(self, member: str) -> bool:
        return self.view.states().get(member, "dead") == "dead" and not self.links.hears(member)

    async def _admit(self, table: dict[str, Any]) -> Admitted:
        return await self.admitting.join(table)

    async def _renew(self, table: dict[str, Any]) -> Admitted:
        return await self.admitting.renew(table)

    async def _renew_if_expired(self) -> None:
        await self.renewal.run_expired(self.seed.cluster_id, lambda: [
            address_text(*address) for member, address in self.roster.peer_addresses().items() if member != self.me])

    def _greet(self, worker: Worker) -> dict[str, Any]:
        return {"member": self.me, "name": self.settings.name, "host_key": self.keys.host_key(),
                "store_dir": str(self.data_dir.chunks), "writer": worker.name,
                "segment_bytes": self.settings.segment_bytes, "window_chunks": WINDOW_CHUNKS,
                "banner_version": f"raftmft_{__version__}"}

    async def _worker_gone(self, worker: Worker) -> None:
        await self.dispatch.worker_gone(worker)
        try:
            await trio.to_thread.run_sync(self.storage.index.adopt_all, worker.name)
        except (RaftmftError, OSError) as error:
            # What it left is looked at again at the next start; chunks that were acknowledged are in the index already.
            log.error("the segments of worker %d are not sealed: %s", worker.number, error,
                      extra=fields(worker=worker.number))

    async def _relay(self, connection: socket.socket, address: str, target: str,
                     left_s: Callable[[], float]) -> None:
        host, port = self.roster.peer_addresses()[target]
        client_host, client_port = address.rsplit(":", 1)
        await relay(connection, host, port, lambda: self.prefaces.make(
            target, client_host.strip("[]"), int(client_port), left_s()), fields(member=target, address=address))

    async def _relayed(self, sock: socket.socket, preface: Preface) -> None:
        await self.door.arrived(sock, (preface.address, preface.port), preface.limit_ms / 1000)

    def not_ready(self) -> str | None:
        """None when this node serves and holds all it should, else why not."""
        if not self.epoch.begun.is_set():
            return "this node has not joined its cluster yet"
        if not self.view.has_quorum():
            return "no quorum"
        if not self.workers.live:
            return "no session worker runs yet"
        # What no member has, although all are here, is not waited for: status tells of it, and the rest is served.
        lost = self.repairer.given_up if set(self.view.states().values()) <= {"alive"} else 0
        if self.replica.can_apply() or self.repairer.missing > lost or not self.repairer.caught_up:
            return "this node still fetches what it missed"
        return None


def notify_systemd(state: str) -> None:
    """Tells systemd (Type=notify) how we are; does nothing elsewhere."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else str(Path(path)))

"""Whatever is committed: the same state however entries are cut into batches, after reopening, replay and retries."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_world import BOOTSTRAP, HOUR_MS, MEMBERS, World, content, key_line, open_machine

from raftmft.core import commands as c
from raftmft.core.machine import Entry, Machine
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.wire.commands import decode_envelope, encode_envelope, encode_outcome

USERS = ("ann", "bob")
NAMES = (b"a", b"b", b"\xff", b"d")
TARGETS = (b"a", b"/b", b"d", b"d/a", b"../a", b"/d/..", b"nowhere/x", b"./d//b", b"/")
OPERATIONS = ("user", "set", "key", "remove user", "boot", "expire", "login", "logout", "refused", "open", "read end",
              "begin", "checkpoint", "publish", "end", "mkdir", "rmdir", "remove", "rename", "setstat", "symlink",
              "link", "copy", "record", "noop", "time", "retry", "config", "ban", "token", "kill")
CONFIG = (("replicas", "2"), ("replicas", ""), ("login.limit_s", "7"), ("proxy.trusted", "10.0.0.0/8"),
          ("replicas", "99"), ("audit.opens", "relaxed"), ("audit.opens", "strict"))
DISRUPTIVE = ("ban", "kill", "remove user", "boot", "expire", "logout", "set")
# Uploads and names are most of the machine: they are drawn more often.
WEIGHTED = OPERATIONS + (
    "begin", "checkpoint", "publish", "end", "mkdir", "rename", "remove", "open", "rmdir", "setstat", "symlink",
    "link", "copy") * 3
STEPS = st.lists(st.tuples(st.sampled_from(WEIGHTED), st.integers(0, 999), st.integers(0, 999), st.booleans()),
                 min_size=5, max_size=70)


class Author:
    """Turns drawn numbers into commands that mostly make sense, by watching one machine apply them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sessions: list[int] = []
        self.uploads: list[tuple[int, int]] = []
        self.opens: list[tuple[int, int]] = []
        self.sent: list[tuple[c.Envelope, Outcome]] = []
        self.seq = dict.fromkeys((m.id for m in MEMBERS), 0)
        self.outcomes: list[Outcome] = []
        self.send(BOOTSTRAP, False)
        for member in MEMBERS:
            self.send(c.MemberBoot(member.id, b"first", "1"), False)
        for user in USERS:
            self.send(c.UserAdd(user, quota_bytes=2000), True)
            for member in (0, 1):
                self.step("login", USERS.index(user) + 2 * member, 1, True)
            self.send(c.Mkdir(self.sessions[-1], (b"d",)), True)

    def step(self, operation: str, a: int, b: int, flag: bool) -> None:
        world = self.world
        if operation == "time":
            world.now_ms += (1000, 60_000, 25 * HOUR_MS, -5000)[a % 4]
            return
        if operation == "retry":
            if self.sent:
                self.retry(*self.sent[a % len(self.sent)])
            return
        if operation in DISRUPTIVE and b % 5:
            operation = "login"
        session = self.session(a)
        outcome = self.send(self.command(operation, a, b, flag), flag or a % 3 > 0)
        if "session" in outcome.value:
            self.sessions.append(outcome.value["session"])
        elif "upload" in outcome.value:
            self.uploads.append((session, outcome.value["upload"]))
        elif "open" in outcome.value:
            self.opens.append((session, outcome.value["open"]))

    def send(self, command: c.Command, has_id: bool) -> Outcome:
        member = MEMBERS[len(self.outcomes) % 3].id
        identity, acked = None, 0
        has_id = has_id and not isinstance(command, c.MemberBoot)  # it is proposed without
        if has_id:
            self.seq[member] += 1
            identity = c.CommandId(member, self.world.machine.members.epoch(member), self.seq[member])
            acked = max(0, self.seq[member] - 4)
        outcome = self.world.apply(command, identity=identity, acked_below=acked)
        self.outcomes.append(outcome)
        if has_id:
            self.sent.append((self.world.entries[-1].envelope, outcome))
        assert outcome.rejection is None or outcome.rejection.code != Code.INTERNAL, (command, outcome)
        return outcome

    def retry(self, envelope: c.Envelope, first: Outcome) -> None:
        identity = envelope.id
        assert identity is not None
        before = self.world.state()[0]
        again = self.world.apply(envelope.command, identity=identity, acked_below=envelope.acked_below)
        self.outcomes.append(again)
        stale = again.rejection is not None and again.rejection.code in (Code.STALE_EPOCH, Code.STALE_COMMAND)
        assert stale or encode_outcome(again) == encode_outcome(first)
        after = self.world.state()[0]
        for table in after:
            # The sweep falls due at any entry; and outcomes are forgotten as the mark moves.
            if table not in ("audit", "bans", "partials", "opens", "users", "inodes", "outcomes", "members"):
                assert after[table] == before[table], f"a retry changed {table}"

    def session(self, a: int) -> int:
        """Mostly a live session, sometimes one that may have ended."""
        live = [session.id for session in self.world.machine.sessions.list()]
        choice = live if live and a % 16 else self.sessions or [1]
        return choice[a % len(choice)]

    def upload(self, b: int) -> tuple[int, int]:
        """Mostly a live upload and its session."""
        live = [pair for pair in self.uploads if self.world.machine.uploads.get(pair[1])]
        choice = live if live and b % 16 else self.uploads or [(1, 1)]
        return choice[b % len(choice)]

    def command(self, operation: str, a: int, b: int, flag: bool) -> c.Command:
        world, user = self.world, USERS[a % 2]
        session, member = self.session(a), MEMBERS[a % 3].id
        one, two = self.path(b), self.path(b // 7)
        upload = self.upload(b)
        manifest, placement = content(b, a), world.placement + (b % 32 == 0)
        match operation:
            case "user":
                return c.UserAdd(user, quota_bytes=b * 5, max_sessions=3, read_only=b % 16 == 0)
            case "set":
                return c.UserSet(user, enabled=b % 3 > 0, quota_bytes=b * 5 if flag else None)
            case "key":
                return c.UserKeyAdd(user, key_line(b % 4))
            case "remove user":
                return c.UserRemove(user) if b % 2 == 0 else c.UserKeyRemove(user, "SHA256:none")
            case "boot":
                return c.MemberBoot(member, b"%d" % (b % 3), "2")
            case "expire":
                return c.ExpireMember(member, world.machine.members.epoch(member) - (b % 3 == 0))
            case "login":
                row = world.machine.users.get(user)
                return c.Login(member, world.machine.members.epoch(member), user, "192.0.2.7", "publickey",
                               (row.credential if row else 1) + (b % 16 == 0))
            case "logout":
                return c.Logout(session, ("closed", "killed")[b % 2])
            case "refused":
                return c.LoginRefused(member, (("192.0.2.8", user, "no", b),))
            case "open":
                return c.OpenRead(session, one)
            case "record":
                found = world.machine.opens.look(session, one)
                if isinstance(found, Rejection):
                    return c.RecordOpens(member, (), world.index + 1 - b % 3)
                value, who, where = found
                number = world.machine.opens.recorded(member) + a % 3
                if flag:
                    self.opens.append((session, -number))
                return c.RecordOpens(member, ((
                    number, session, who.user, who.address, value["file"], value["version"], where, value["size"],
                    value["digest"], world.index + (b % 16 == 0)),), world.index)
            case "read end":
                return c.ReadEnd(tuple((s, o, b, flag) for s, o in self.opens[-3:]))
            case "begin":
                return c.BeginUpload(session, one, create=a % 6 > 0, truncate=flag, exclusive=a % 8 == 0,
                                     append=b % 3 == 0)
            case "checkpoint":
                return c.Checkpoint(*upload, manifest, placement)
            case "publish":
                return c.Publish(*upload, manifest, placement, "d", c.Attrs(mtime=b if flag else None), b % 16)
            case "copy":
                mine = [o for s, o in self.opens if s == upload[0]] or [1]
                return c.CopyData(*upload, mine[a % len(mine)], manifest, b + (a % 9 == 0))
            case "end":
                return c.EndUpload(*upload, keep=flag)
            case "mkdir":
                return c.Mkdir(session, one)
            case "rmdir":
                return c.Rmdir(session, one)
            case "remove":
                return c.Remove(session, one)
            case "rename":
                return c.Rename(session, one, two, flag)
            case "setstat":
                return c.SetStat(session, one, c.Attrs(mode=b), file=0 if flag else b, follow=a % 2 > 0)
            case "symlink":
                return c.Symlink(session, one, TARGETS[a % len(TARGETS)])
            case "link":
                return c.Link(session, one, two)
            case "config":
                return c.ConfigSet(*CONFIG[b % len(CONFIG)])
            case "ban":
                network = f"192.0.2.{b % 3 + 6}"
                return c.BanAdd(network, world.now_ms + b * 1000) if flag and b % 8 else c.BanRemove(network)
            case "kill":
                return c.SessionKill(session, "op")
            case "token":
                return c.AdminTokenAdd(user, "viewer", f"{b % 5:064x}") if flag else c.AdminTokenRemove(user)
            case _:
                return c.NoOp(b"x" * (b % 5))

    @staticmethod
    def path(number: int) -> c.Path:
        name, other = NAMES[number // 8 % 4], NAMES[number // 32 % 4]
        return ((name,), (name,), (name,), (b"d", name), (b"d", name), (name, other), (b"d", name, other), (name,))[
            number % 8]


def author(folder: Path, steps: list[tuple[str, int, int, bool]]) -> Author:
    author = Author(World(folder / "author", bootstrap=False))
    for step in steps:
        author.step(*step)
    return author


def check_invariants(machine: Machine) -> None:
    db = machine._db
    assert machine.audit.verify() is None
    for uid, files, size, partial in db.execute("SELECT uid, files, file_bytes, partial_bytes FROM users"):
        published = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM inodes WHERE kind=1 AND nlink>0 AND uid=?",
                               (uid,)).fetchone()
        waiting = db.execute("SELECT coalesce(sum(size), 0) FROM partials WHERE uid=?", (uid,)).fetchone()
        assert (files, size, partial) == (*published, *waiting), "what a user has stored is counted right"
    empty: list[Any] = []
    for rule in (
            "SELECT * FROM partials p JOIN dentries d ON d.parent = p.parent AND d.name = p.name",
            "SELECT * FROM partials WHERE size = 0",
            "SELECT * FROM partials WHERE parent NOT IN (SELECT id FROM inodes WHERE kind = 0)",
            "SELECT * FROM partials WHERE upload > 0 AND upload NOT IN (SELECT id FROM uploads)",
            "SELECT * FROM partials p JOIN uploads u ON u.id = p.upload WHERE (u.parent, u.name, u.uid) != "
            "(p.parent, p.name, p.uid)",
            "SELECT * FROM dentries WHERE inode NOT IN (SELECT id FROM inodes)",
            "SELECT * FROM dentries WHERE parent NOT IN (SELECT id FROM inodes WHERE kind = 0)",
            "SELECT * FROM dentries d JOIN inodes i ON i.id = d.inode WHERE i.kind != d.kind "
            "OR (i.kind = 0 AND i.nlink != 1)",
            "SELECT inode FROM dentries d JOIN inodes i ON i.id = d.inode GROUP BY inode HAVING count(*) != i.nlink",
            "SELECT * FROM inodes WHERE nlink > 0 AND id NOT IN (SELECT inode FROM dentries) "
            "AND id NOT IN (SELECT home FROM users)",
            "SELECT * FROM inodes WHERE nlink = 0 AND id NOT IN (SELECT inode FROM opens) "
            "AND id NOT IN (SELECT file FROM uploads)",
            "SELECT * FROM sources WHERE upload NOT IN (SELECT id FROM uploads)",
            "SELECT * FROM sessions WHERE uid NOT IN (SELECT uid FROM users)",
            "SELECT * FROM sessions s JOIN members m ON m.id = s.member WHERE m.epoch != s.epoch",
            "SELECT * FROM uploads WHERE session NOT IN (SELECT id FROM sessions)",
            "SELECT * FROM opens WHERE left_ms = 0 AND session NOT IN (SELECT id FROM sessions)"):
        assert db.execute(rule).fetchall() == empty, rule
    reachable = db.execute(
        "WITH RECURSIVE t(id) AS (SELECT home FROM users UNION ALL SELECT d.inode FROM t JOIN dentries d "
        "ON d.parent = t.id) SELECT count(DISTINCT id) FROM t").fetchone()
    assert reachable == db.execute("SELECT count(*) FROM inodes WHERE nlink > 0").fetchone(), "no loops, no islands"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, cuts=st.lists(st.integers(0, 90), max_size=6), replay=st.integers(0, 30))
def test_state_does_not_depend_on_batches_reopening_replay_or_encoding(
        steps: list[tuple[str, int, int, bool]], cuts: list[int], replay: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = author(folder, steps)
        machine, entries = first.world.machine, first.world.entries
        check_invariants(machine)
        digest = machine.digest()
        machine.close()
        carried = [Entry(e.index, e.stamp_ms, decode_envelope(encode_envelope(e.envelope))) for e in entries]

        whole = open_machine(folder / "whole")
        assert list(map(encode_outcome, whole.apply_batch(carried))) == list(map(encode_outcome, first.outcomes))
        assert whole.digest() == digest and whole.applied == entries[-1].index
        whole.close()

        other, at = open_machine(folder / "cut"), 0
        for cut in [*sorted(cut % (len(entries) + 1) for cut in cuts), len(entries)]:
            other.apply_batch(carried[max(0, at - replay):cut])
            other.close()
            other, at = open_machine(folder / "cut"), max(at, cut)
        assert other.digest() == digest
        check_invariants(other)
        other.close()

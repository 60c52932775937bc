"""The model's names: what a path leads to, and MKDIR, RMDIR, REMOVE, RENAME, hardlink@openssh.com."""

from __future__ import annotations

from tests.table.things import (
    FAILURE,
    NO_SUCH_FILE,
    PERMISSION_DENIED,
    Denied,
    Dir,
    File,
    Partial,
    Session,
    Spot,
    Upload,
)


class Names:
    """The homes of all users, their partials, and the uploads under way."""

    def __init__(self, users: list[str]) -> None:
        self.homes = {user: Dir() for user in users}
        self.partials: dict[tuple[Dir, str], Partial] = {}
        self.uploads: list[Upload] = []

    def find(self, session: Session, path: str) -> Spot:
        """Follows a path to its last name, which may be missing; what it leads through may not."""
        directory = self.homes[session.user]
        *way, name = path.split("/")
        chain = [directory]
        for step in way:
            node = directory.names.get(step)
            if not isinstance(node, Dir):
                raise Denied(NO_SUCH_FILE, f"{step} is no directory")
            directory = node
            chain.append(node)
        return Spot(directory, name, directory.names.get(name), tuple(chain))

    def directory(self, session: Session, path: str) -> Dir:
        """The directory at a path; "" is the home."""
        node = self.find(session, path).node if path else self.homes[session.user]
        if not isinstance(node, Dir):
            raise Denied(NO_SUCH_FILE, "no such directory")
        return node

    def own(self, session: Session, spot: Spot) -> Upload | None:
        """The session's own upload that stands at a name: of several the one begun last."""
        found = [u for u in self.uploads if u.session is session and (
            (u.file is None and (u.directory, u.name) == (spot.directory, spot.name))
            or (u.file is not None and u.file is spot.node))]
        return max(found, key=lambda u: u.number, default=None)

    def mkdir(self, session: Session, path: str) -> None:
        """MKDIR. A partial of the name goes."""
        spot = self.find(session, path)
        if spot.node is not None:
            raise Denied(FAILURE, "exists")
        self._put(spot, Dir())

    def rmdir(self, session: Session, path: str) -> None:
        """RMDIR: no published name may be in it; partials go with it."""
        spot = self.find(session, path)
        if not isinstance(spot.node, Dir):
            raise Denied(NO_SUCH_FILE, "no directory")
        self._remove_directory(spot)

    def remove(self, session: Session, path: str) -> None:
        """REMOVE: the published name, the user's partial, and what this session itself is writing there."""
        spot = self.find(session, path)
        node, key = spot.node, (spot.directory, spot.name)
        if isinstance(node, Dir):
            raise Denied(FAILURE, "a directory")
        gone = [u for u in self.uploads if u.session is session and (
            (u.file is None and (u.directory, u.name) == key)
            or (u.file is not None and u.file is node and node.names == 1))]
        partial = self.partials.pop(key, None)
        if partial is not None and partial.owner is not None and partial.owner not in gone:
            gone.append(partial.owner)
        if node is None and partial is None and not gone:
            raise Denied(NO_SUCH_FILE, "nothing there")
        for upload in gone:
            self._gone(upload)
            upload.is_removed = upload.session is session
        if node is not None:
            self._unlink(spot)

    def rename(self, session: Session, source: str, target: str, replace: bool) -> None:
        """RENAME (nothing may stand at the target), or posix-rename."""
        one, two = self.find(session, source), self.find(session, target)
        is_same = (one.directory, one.name) == (two.directory, two.name)
        if one.node is None:
            self._rename_partial(session, one, two)
            return
        if is_same or (replace and one.node is two.node):
            return
        if one.node in two.chain:
            raise Denied(FAILURE, "into itself")
        if two.node is not None:
            if not replace:
                raise Denied(FAILURE, "exists")
            if isinstance(one.node, File):
                if isinstance(two.node, Dir):
                    raise Denied(FAILURE, "a directory")
                self._unlink(two)
            elif isinstance(two.node, Dir):
                self._remove_directory(two)
            else:
                raise Denied(NO_SUCH_FILE, "no directory")
        del one.directory.names[one.name]
        self._put(two, one.node)

    def _rename_partial(self, session: Session, one: Spot, two: Spot) -> None:
        mine = [u for u in self.uploads if u.session is session and u.file is None
                and (u.directory, u.name) == (one.directory, one.name)]
        if not mine:
            raise Denied(NO_SUCH_FILE, "others rename published names only")
        if (one.directory, one.name) == (two.directory, two.name):
            return
        if two.node is not None:
            raise Denied(FAILURE, "a partial takes no file's place")
        partial = self.partials.get((one.directory, one.name))
        if partial is not None and partial.owner in mine:
            self.partials[two.directory, two.name] = self.partials.pop((one.directory, one.name))
        for upload in mine:
            upload.directory, upload.name = two.directory, two.name

    def link(self, session: Session, source: str, target: str) -> None:
        """hardlink@openssh.com."""
        one = self.find(session, source)
        if one.node is None:
            raise Denied(NO_SUCH_FILE, "not published")
        if isinstance(one.node, Dir):
            raise Denied(PERMISSION_DENIED, "a directory")
        two = self.find(session, target)
        if two.node is not None:
            raise Denied(FAILURE, "exists")
        self._put(two, one.node)
        one.node.names += 1

    def _put(self, spot: Spot, node: File | Dir) -> None:
        spot.directory.names[spot.name] = node
        self.partials.pop((spot.directory, spot.name), None)

    def _unlink(self, spot: Spot) -> None:
        node = spot.directory.names.pop(spot.name)
        assert isinstance(node, File)
        node.names -= 1

    def _remove_directory(self, spot: Spot) -> None:
        directory = spot.node
        assert isinstance(directory, Dir)
        if directory.names:
            raise Denied(FAILURE, "not empty")
        directory.is_there = False
        del spot.directory.names[spot.name]
        for key in [key for key in self.partials if key[0] is directory]:
            del self.partials[key]

    def _gone(self, upload: Upload) -> None:
        upload.is_live = False
        self.uploads = [u for u in self.uploads if u is not upload]

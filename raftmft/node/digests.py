"""Digests of whole files that workers have computed for check-file, so that each is computed once while the node runs.

Not replicated: a digest can be computed again anywhere, few are asked for, and a command and a row for each would stay
for as long as the file. Kept by file and version, so what is kept is never out of date; bounded by MOST_FILES.
"""

from __future__ import annotations

from collections import OrderedDict

MOST_FILES = 4096
MOST_ALGORITHMS = 8
MOST_CHARS = 128


class Digests:
    """{algorithm: hex} of file versions, those asked for last."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int], dict[str, str]] = OrderedDict()

    def known(self, file: int, version: int) -> dict[str, str]:
        """What is known of this version."""
        found = self._known.get((file, version))
        if found is None:
            return {}
        self._known.move_to_end((file, version))
        return dict(found)

    def told(self, file: int, version: int, algorithm: str, digest: str) -> None:
        """A worker computed one. ValueError if it cannot be one."""
        if len(algorithm) > MOST_CHARS or not 32 <= len(digest) <= MOST_CHARS:
            raise ValueError("not a digest")
        bytes.fromhex(digest)
        of_file = self._known.setdefault((file, version), {})
        self._known.move_to_end((file, version))
        if len(of_file) < MOST_ALGORITHMS:
            of_file[algorithm] = digest
        while len(self._known) > MOST_FILES:
            self._known.popitem(last=False)

"""How open files end: a client's CLOSE publishes, everything else leaves a partial or nothing.

A file that was opened with APPEND, and was published by somebody else meanwhile, gets what was appended at its new end:
the bytes are written again behind the newer version and published on that (contract, "What each session sees of a
name"). The upload stays the same one to its node, so that it is published once.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from raftmft.core.errors import RaftmftError
from raftmft.core.outcome import Code
from raftmft.sftp.extended import MAX_DATA
from raftmft.sftp.files import Session
from raftmft.sftp.link import Refused
from raftmft.sftp.lookup import Lookup
from raftmft.sftp.upload import Upload

LAST_CHECKPOINT_S = 4.0
"""What the last checkpoint of an interrupted upload may take; what earlier ones covered is kept anyway."""
MOST_REBASES = 32
"""Each one means that another session's version was published in between: some session always gets on."""


async def publish(lookup: Lookup, session: Session, upload: Upload) -> None:
    """A CLOSE: publishes what changed; on any trouble the upload ends as a partial and the trouble is raised."""
    latest = upload
    try:
        if not upload.is_changed and upload.seals.failure is None:
            await upload.end(keep=False)
            return
        for attempt in range(MOST_REBASES + 1):
            try:
                await latest.publish()
                return
            except Refused as refusal:
                if refusal.code != Code.CONFLICT or latest.appended_from is None or attempt == MOST_REBASES:
                    raise
            latest = await _rebase(lookup, latest)
    except RaftmftError:
        await latest.end(keep=True)
        raise
    finally:
        session.closed(upload)
        upload.ended()
        if latest is not upload:
            latest.close()


async def _rebase(lookup: Lookup, upload: Upload) -> Upload:
    """The same upload over the file's present version, with what was appended at its end. `upload` has ended."""
    start = upload.appended_from
    assert start is not None
    fresh = upload.over_base(await lookup.ask("fs.base", upload=upload.id))
    try:
        while start < upload.size:
            data = await upload.read(start, MAX_DATA)
            await fresh.write(0, memoryview(data))  # an appending upload writes at its end
            start += len(data)
    except BaseException:
        fresh.close()
        raise
    upload.ended()
    return fresh


async def let_go(session: Session, upload: Upload) -> None:
    """Any other end: the latest bytes become the partial's, if that is possible; nothing is raised."""
    if not upload.file and not upload.is_removed:
        # What earlier checkpoints covered is kept anyway, and there is nobody left to tell of trouble.
        with suppress(RaftmftError, TimeoutError):
            async with asyncio.timeout(LAST_CHECKPOINT_S):
                await upload.checkpoints.now()
    await upload.end(keep=True)
    session.closed(upload)
    upload.ended()

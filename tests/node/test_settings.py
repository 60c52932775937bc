"""raftmft.toml: what is taken, and the one line that answers everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftmft.core.errors import ConfigError
from raftmft.node.settings import Settings, parse, render

GOOD = 'name = "a"\nadvertise = "10.0.0.1"\n'


def test_defaults() -> None:
    settings = parse(GOOD, "f")
    assert (settings.sftp_port, settings.peer_port, settings.gossip_port, settings.admin_port) == (
        2222,
        7400,
        7400,
        7480,
    )
    assert settings.admin_listen == "127.0.0.1" and settings.worker_count >= 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "not valid TOML"),
        (GOOD + "colour = 1", "unknown key 'colour'"),
        ('advertise = "x"', "name is missing"),
        ('name = "a"', "advertise is missing"),
        (GOOD + 'sftp_port = "22"', "sftp_port must be a whole number"),
        (GOOD + "sftp_port = 0", "1..65535"),
        (GOOD + "sftp_port = 70000", "1..65535"),
        (GOOD + "workers = true", "workers"),
        (GOOD + "workers = -1", "0..256"),
        (GOOD + "segment_mib = 1", "segment_mib"),
        (GOOD + 'log_level = "loud"', "log_level"),
        (GOOD + "sftp_port = 7400", "choose different ports"),
        (GOOD + "name2 = 1", "name2"),
        (GOOD + GOOD, "TOML"),
    ],
)
def test_everything_else_gets_one_line_that_names_file_and_key(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as trouble:
        parse(text, "/x/raftmft.toml")
    assert says in str(trouble.value) and "/x/raftmft.toml" in str(trouble.value)
    assert "\n" not in str(trouble.value)


@given(st.text(min_size=1, alphabet=st.characters(codec="utf-8")), st.integers(1, 65535))
def test_what_is_rendered_is_read_back(name: str, port: int) -> None:
    if port in (7400, 7480):
        port += 1
    settings = Settings(name=name, advertise="h", sftp_port=port)
    assert parse(render(settings), "f") == settings

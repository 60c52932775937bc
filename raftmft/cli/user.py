"""raftmft user"""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import quote

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import Size, print_json, print_table, size_text


@click.group(epilog="Example: raftmft user add acme --key acme.pub --quota 50GiB")
def user() -> None:
    """Manage users and their keys. What is acknowledged is true on every node at once."""


def _password() -> str:
    text = sys.stdin.buffer.read(1 << 16)
    try:
        text.decode()
    except UnicodeDecodeError:
        raise click.UsageError("the password is not UTF-8 text.") from None
    password = text.decode().removesuffix("\n")
    if not password:
        raise click.UsageError("the password from standard input is empty.")
    return password


def _key_line(file: str) -> str:
    with open(file, encoding="utf-8", errors="replace") as stream:
        lines = [line.strip() for line in stream.read(1 << 16).splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if keys and keys[0].startswith("-----"):
        raise click.UsageError(f"{file} holds no OpenSSH public key line; give the .pub file, never the private key.")
    if len(keys) != 1:
        raise click.UsageError(f"{file} must hold one OpenSSH public key (the .pub file), not {len(keys)} lines.")
    return keys[0]


_limits = (
    click.option("--quota", type=Size(), metavar="SIZE", help="Most bytes in the home, like 50GiB; 0 for no limit."),
    click.option(
        "--max-sessions",
        type=click.IntRange(min=0),
        metavar="N",
        help="Most sessions at once in the whole cluster; 0 for no limit.",
    ),
)


def _with_limits(command: Any) -> Any:
    for option in _limits:
        command = option(command)
    return command


@user.command(epilog="Example: echo secret | raftmft user add acme --password-stdin --key acme.pub")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="File with an OpenSSH public key; may be repeated.",
)
@click.option("--read-only", is_flag=True, help="The user may not change anything.")
@_with_limits
@node_options
def add(
    client: Client,
    output: str,
    name: str,
    password_stdin: bool,
    keys: tuple[str, ...],
    read_only: bool,
    quota: int | None,
    max_sessions: int | None,
) -> None:
    """Add a user with a home of its own."""
    body: dict[str, Any] = {
        "name": name,
        "keys": [_key_line(file) for file in keys],
        "read_only": read_only,
        "quota_bytes": quota or 0,
        "max_sessions": max_sessions or 0,
    }
    if password_stdin:
        body["password"] = _password()
    value = client.call("POST", "/api/v1/users", body)
    if output == "json":
        print_json(value)
        return
    click.echo(f"user {name} added")
    if not keys and not password_stdin:
        click.echo(f"it cannot log in yet: raftmft user key add {name} FILE", err=True)


@user.command("list", epilog="Example: raftmft user list -o json")
@node_options
def list_users(client: Client, output: str) -> None:
    """List the users."""
    users = client.get("/api/v1/users")["users"]
    if output == "json":
        print_json(users)
        return
    print_table(COLUMNS, [_row(u) for u in users])


COLUMNS = ("name", "uid", "login", "keys", "password", "files", "used", "sessions", "access")


def _row(u: dict[str, Any]) -> tuple[Any, ...]:
    return (
        u["name"],
        u["uid"],
        "enabled" if u["enabled"] else "disabled",
        len(u["keys"]),
        "yes" if u["has_password"] else "no",
        u["files"],
        f"{size_text(u['used_bytes'])} of {size_text(u['quota_bytes']) if u['quota_bytes'] else 'any'}",
        f"{u['sessions']} of {u['max_sessions'] or 'any'}",
        "read only" if u["read_only"] else "read and write",
    )


@user.command(epilog="Example: raftmft user show acme")
@click.argument("name")
@node_options
def show(client: Client, output: str, name: str) -> None:
    """Show one user."""
    value = client.get(f"/api/v1/users/{quote(name, safe='')}")
    if output == "json":
        print_json(value)
        return
    print_table(COLUMNS, [_row(value)])
    for key in value["keys"]:
        click.echo(f"key {key['fingerprint']}")


@user.command("set", epilog="Example: raftmft user set acme --quota 100GiB --max-sessions 8")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the new password from standard input.")
@click.option("--read-only/--read-write", default=None, help="May the user change anything?")
@_with_limits
@node_options
def set_user(
    client: Client,
    output: str,
    name: str,
    password_stdin: bool,
    read_only: bool | None,
    quota: int | None,
    max_sessions: int | None,
) -> None:
    """Change what is given."""
    given = {"quota_bytes": quota, "max_sessions": max_sessions, "read_only": read_only}
    body: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if password_stdin:
        body["password"] = _password()
    if not body:
        raise click.UsageError("nothing to set; see raftmft user set --help.")
    _change(client, output, name, body, "changed")


@user.command(epilog="Example: raftmft user disable acme")
@click.argument("name")
@node_options
def disable(client: Client, output: str, name: str) -> None:
    """Forbid the user to log in; nothing is removed."""
    _change(client, output, name, {"enabled": False}, "disabled")


@user.command(epilog="Example: raftmft user enable acme")
@click.argument("name")
@node_options
def enable(client: Client, output: str, name: str) -> None:
    """Let a disabled user log in again."""
    _change(client, output, name, {"enabled": True}, "enabled")


def _change(client: Client, output: str, name: str, body: dict[str, Any], done: str) -> None:
    value = client.call("PATCH", f"/api/v1/users/{quote(name, safe='')}", body)
    print_json(value) if output == "json" else click.echo(f"user {name} {done}")


@user.command(epilog="Example: raftmft user remove acme --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@node_options
def remove(client: Client, output: str, name: str, yes: bool) -> None:
    """Remove a user, its home and all files in it."""
    if not yes:
        click.confirm(f"Remove user {name} and all its files?", abort=True)
    value = client.call("DELETE", f"/api/v1/users/{quote(name, safe='')}")
    print_json(value) if output == "json" else click.echo(f"user {name} removed")


@user.group(epilog="Example: raftmft user key add acme acme.pub")
def key() -> None:
    """Manage a user's public keys."""


@key.command("add", epilog="Example: raftmft user key add acme acme.pub")
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@node_options
def add_key(client: Client, output: str, name: str, file: str) -> None:
    """Add the public key in FILE."""
    value = client.call("POST", f"/api/v1/users/{quote(name, safe='')}/keys", {"key": _key_line(file)})
    print_json(value) if output == "json" else click.echo(f"key {value['fingerprint']} added to {name}")


@key.command("list", epilog="Example: raftmft user key list acme")
@click.argument("name")
@node_options
def list_keys(client: Client, output: str, name: str) -> None:
    """List the user's keys."""
    keys = client.get(f"/api/v1/users/{quote(name, safe='')}/keys")["keys"]
    if output == "json":
        print_json(keys)
        return
    print_table(("fingerprint", "key"), [(k["fingerprint"], k["key"]) for k in keys])


@key.command("remove", epilog="Example: raftmft user key remove acme SHA256:...")
@click.argument("name")
@click.argument("fingerprint")
@node_options
def remove_key(client: Client, output: str, name: str, fingerprint: str) -> None:
    """Remove the key with this fingerprint."""
    value = client.call(
        "DELETE", f"/api/v1/users/{quote(name, safe='')}/keys?fingerprint={quote(fingerprint, safe='')}"
    )
    print_json(value) if output == "json" else click.echo(f"key removed from {name}")

"""The command `raftmft`. Subcommands are imported when they are called, so that --help stays quick.

Exit codes (surface.md): 0 ok, 1 failed, 2 wrong usage, 3 degraded, 4 no quorum, 5 node unreachable.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from raftmft import __version__
from raftmft.core.errors import NodeUnreachable, NoQuorum, RaftmftError

COMMANDS = {
    "dev": ("raftmft.cli.dev", "dev", "Run a local cluster of real node processes on loopback."),
    "init": ("raftmft.cli.init", "init", "Make a new cluster of one on this host."),
    "token": ("raftmft.cli.token", "token", "Make tokens by which hosts join."),
    "join": ("raftmft.cli.join", "join", "Have this host admitted to a cluster."),
    "node": ("raftmft.cli.node", "node", "Run a member in the foreground."),
    "status": ("raftmft.cli.status", "status", "Show the cluster and what it can lose now."),
    "member": ("raftmft.cli.member", "member", "Look at members and steer them."),
    "cert": ("raftmft.cli.cert", "cert", "Look at the members' certificates, renew them, cut one off."),
    "user": ("raftmft.cli.user", "user", "Manage users and their keys."),
    "sessions": ("raftmft.cli.sessions", "sessions", "List and end sessions."),
    "ban": ("raftmft.cli.ban", "ban", "Ban addresses, in the whole cluster."),
    "file": ("raftmft.cli.file", "file", "Show where a file's chunks are."),
    "config": ("raftmft.cli.config", "config", "Show and set cluster-wide options."),
    "audit": ("raftmft.cli.audit", "audit", "Ask who transferred what."),
    "backup": ("raftmft.cli.backup", "backup", "Back up the replicated state, and check a backup."),
    "restore": ("raftmft.cli.restore", "restore", "Make a new cluster of one out of a backup."),
    "recover": ("raftmft.cli.recover", "recover", "Go on with one member when a majority is lost for good."),
    "key": ("raftmft.cli.key", "key", "Export the cluster key, for disaster recovery."),
    "admin-token": ("raftmft.cli.admin_token", "admin_token", "Manage tokens for the admin API."),
    "completion": ("raftmft.cli.completion", "completion", "Print a shell's completion script."),
    "version": ("raftmft.cli.version", "version", "Show the version."),
}
FAILED, USAGE, NO_QUORUM, UNREACHABLE = 1, 2, 4, 5


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command."""
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list for --help, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: raftmft dev --nodes 3"
)
@click.version_option(__version__, prog_name="raftmft")
def cli() -> None:
    """An active-active SFTP cluster in one program, run once per host."""


def main() -> None:
    """The console script. Errors are one line on standard error."""
    try:
        code = cli.main(prog_name="raftmft", complete_var="_RAFTMFT_COMPLETE", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        hint = f" (see {command} --help)" if command else ""
        click.echo(f"raftmft: {' '.join(error.format_message().split()).removesuffix('.')}{hint}", err=True)
        sys.exit(error.exit_code)
    except RaftmftError as error:
        click.echo(f"raftmft: {error}", err=True)
        sys.exit(
            UNREACHABLE if isinstance(error, NodeUnreachable) else NO_QUORUM if isinstance(error, NoQuorum) else FAILED
        )
    except UnicodeEncodeError:
        click.echo("raftmft: an argument is not UTF-8 text; write it as UTF-8", err=True)
        sys.exit(USAGE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: nothing to say
        sys.exit(FAILED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"raftmft: {where}{error.strerror or error}", err=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()

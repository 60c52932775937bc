"""raftmft cert"""

from __future__ import annotations

from urllib.parse import quote

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table


@click.group(epilog="Example: raftmft cert list")
def cert() -> None:
    """Look at the members' certificates, renew them, cut one off."""


@cert.command("list", epilog="Example: raftmft cert list -o json")
@node_options
def list_certs(client: Client, output: str) -> None:
    """List certificates: listed ones let a member in; retired and revoked ones are refused for good."""
    certs = client.get("/api/v1/certs")["certs"]
    if output == "json":
        print_json(certs)
        return
    print_table(("member", "fingerprint", "state", "valid until", "added"),
                [(c["name"], c["fingerprint"][:16], c["state"], c["not_after"], c["added"]) for c in certs])


@cert.command(epilog="Example: raftmft cert renew --data-dir /var/lib/raftmft")
@node_options
def renew(client: Client, output: str) -> None:
    """Renew the certificate of the node that is asked, now. It renews by itself at two thirds of its life."""
    value = client.call("POST", "/api/v1/certs")
    if output == "json":
        print_json(value)
        return
    click.echo(f"renewed: {value['fingerprint'][:16]}")


@cert.command(epilog="Example: raftmft cert revoke n3")
@click.argument("which")
@node_options
def revoke(client: Client, output: str, which: str) -> None:
    """Cut off whoever shows a certificate: WHICH is a fingerprint (16 digits are enough) or a member's name. The
    cluster key is changed afterwards. The member stays listed: see also raftmft member remove.
    """
    value = client.call("DELETE", f"/api/v1/certs/{quote(which, safe='')}")
    if output == "json":
        print_json(value)
        return
    click.echo(f"revoked: {', '.join(fingerprint[:16] for fingerprint in value['revoked'])}")

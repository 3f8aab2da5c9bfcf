"""The commands `loadpart-edge credentials`: who may use the server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from loadpart_edge.access import issuing
from loadpart_edge.access.client import Right, moment
from loadpart_edge.access.folder import Folder

app = typer.Typer(
    name="credentials",
    help="Says who may use the server: 'init' once, then 'add' for each device, and 'revoke' to shut one out. "
    "A running server notices within a second.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Where = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the credentials; if absent, /etc/loadpart/credentials for root, ~/.config/loadpart/credentials "
        "for others."
    ),
]
Name = Annotated[str, typer.Argument(help="The client's name: letters, digits, '.', '_' and '-'.")]


@app.command()
def init(
    folder: Where = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Host name or IP address by which devices call this server; may be given several times."),
    ] = None,
    renew_server: Annotated[
        bool, typer.Option("--renew-server", help="Only make a new server certificate, from the CA that is there.")
    ] = False,
) -> None:
    """Makes a CA and the server's certificate.

    Writes ca.crt, ca.key, server.crt, server.key and an empty clients.toml, and prints what belongs into the server's
    settings. A CA that is there is never replaced.
    """
    target = Folder(folder)
    made = issuing.initialise(target, name or (), is_renewal=renew_server)
    typer.echo(
        f"The server's certificate is for {', '.join(made.names)}, until {moment(made.expires)}."
        + ("" if name or renew_server else " Devices on other machines need a --name.")
    )
    if renew_server:
        typer.echo(f"It is in {target.server_certificate}; a running server shows it from the next connection on.")
        return
    settings = {
        "tls_certificate": target.server_certificate,
        "tls_key": target.server_key,
        "tls_client_ca": target.ca_certificate,
        "clients": target.clients,
    }
    typer.echo("Put into the server's settings:\n")
    for setting, path in settings.items():
        typer.echo(f"{setting} = {_quoted(path)}")
    typer.echo(f"\nThen let devices in: loadpart-edge credentials add NAME --folder {target.path}")
    typer.echo(f"{target.ca_key} lets anybody in who has it: the server does not need it to run.")


@app.command()
def add(
    name: Name,
    folder: Where = None,
    right: Annotated[
        list[Right] | None, typer.Option(help="What the client may do; may be given several times; all if absent.")
    ] = None,
    token: Annotated[bool | None, typer.Option("--token/--no-token", help="Make a token.  [default: token]")] = None,
    certificate: Annotated[
        bool | None, typer.Option("--certificate/--no-certificate", help="Make a certificate.  [default: certificate]")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=36500, help="How long the credentials are valid.")] = 365,
    output: Annotated[
        Path | None, typer.Option(help="Where to put a folder NAME for the device; 'devices' in the folder if absent.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Give a client that is there new credentials; the old ones end at once.")
    ] = False,
    print_token: Annotated[bool, typer.Option("--print-token", help="Also print the token.")] = False,
) -> None:
    """Lets a client in: makes its token and certificate.

    Writes ca.crt, client.crt, client.key and token into a folder for the device, and prints what belongs into the
    device's settings. The server keeps only hashes. With --replace, a client keeps its rights and kinds of credential
    unless they are given.
    """
    made = issuing.add(
        Folder(folder),
        name,
        output=output,
        days=days,
        rights=right or (),
        has_token=token,
        has_certificate=certificate,
        is_replacement=replace,
    )
    client = made.client
    until = f" until {moment(client.expires)}" if client.expires is not None else ""
    typer.echo(f"Client '{client.name}' may {', '.join(client.ordered_rights)}{until}.")
    typer.echo("Move these files to the device, keep them from others, and put their paths there into its settings:\n")
    for setting, path in made.files.items():
        typer.echo(f"{setting} = {_quoted(path.absolute())}")
    if print_token and made.token is not None:
        typer.echo(f"\ntoken: {made.token}")


@app.command()
def revoke(name: Name, folder: Where = None) -> None:
    """Shuts a client out.

    Its entry stays, so that it is told why, and its name is not given to another one by mistake.
    """
    if issuing.revoke(Folder(folder), name):
        typer.echo(f"Client '{name}' was revoked; 'add {name} --replace' would let it in again.")
    else:
        typer.echo(f"Client '{name}' was revoked before.")


@app.command("list")
def show(folder: Where = None) -> None:
    """Lists the clients."""
    target = Folder(folder)
    table = Table("client", "rights", "token", "certificate", "expires", "state", box=None, header_style="bold")
    now = time.time()
    for client in target.read_clients().entries:
        table.add_row(
            client.name,
            ", ".join(client.ordered_rights),
            "yes" if client.token_sha256 is not None else "no",
            "yes" if client.certificate_sha256 is not None else "no",
            f"{client.expires:%Y-%m-%d}" if client.expires is not None else "never",
            "revoked" if client.is_revoked else "expired" if client.has_expired(now) else "valid",
        )
    if table.row_count:
        Console().print(table)
    else:
        typer.echo(f"no clients in {target.clients}: 'loadpart-edge credentials add' lets some in")


def _quoted(path: Path) -> str:
    """A path as a string in TOML."""
    return json.dumps(str(path), ensure_ascii=False)

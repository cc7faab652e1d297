"""`python -m fedrecon.ops.console`: runs the console as a service."""

from __future__ import annotations

import sys

from fedrecon.ops.clock import SystemClock
from fedrecon.ops.console.asking import Asking
from fedrecon.ops.console.links import Codes
from fedrecon.ops.console.routes import Console, Door
from fedrecon.ops.console.settings import ConsoleSettings
from fedrecon.ops.http_server import make_app, open_http_socket, serve_http
from fedrecon.ops.lifecycle import Service, run_service


async def start(service: Service[ConsoleSettings]) -> None:
    """Opens the port of the pages, and answers.

    On this machine's own address the pages come without TLS, since no browser knows the authority of a local stack and
    nothing leaves the machine; on any other address the certificate of the settings is shown.
    """
    settings, clock = service.settings, SystemClock()
    asking = Asking(settings.coordinator_target, settings)
    service.resources.push_async_callback(asking.close)
    opened = open_http_socket(settings, settings.console_http_port, "console_http_port")
    port = opened.getsockname()[1]
    service.http_address = f"{settings.host}:{port}"
    door = Door(f"fedrecon-console-{port}", settings.is_on_loopback)
    codes = Codes(settings.round_token_keys, clock.now_milliseconds())
    console = Console(asking, codes, clock, door, service.stopping)
    app = make_app(console.routes(), settings)
    plain = settings.model_copy(update={"tls_certificate": None, "tls_key": None})
    service.run("serve pages", serve_http(app, opened, plain if settings.is_on_loopback else settings))


if __name__ == "__main__":
    sys.exit(run_service("console", start, ConsoleSettings, "console_port", module="fedrecon.ops.console"))

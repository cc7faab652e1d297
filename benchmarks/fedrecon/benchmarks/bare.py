"""A bare grpc.aio server, the most that Python's gRPC gives here: it echoes calls, and discards streams.

Run as `python -m fedrecon.benchmarks.bare --ready-file FILE`, with the certificate that the settings name, or in
plaintext. Nothing is parsed, checked, counted or kept; one method hashes what it discards, to show what SHA-256 costs
on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from fedrecon.ops.lifecycle import SERVER_OPTIONS
from fedrecon.ops.ports import open_port
from fedrecon.ops.settings import Settings

SERVICE = "bare.Bare"
ECHO = f"/{SERVICE}/Echo"
DISCARD = f"/{SERVICE}/Discard"
DIGEST = f"/{SERVICE}/Digest"


async def _echo(request: bytes, context: Any) -> bytes:
    del context
    return request


async def _discard(requests: AsyncIterator[bytes], context: Any) -> bytes:
    del context
    async for _ in requests:
        pass
    return b""


async def _digest(requests: AsyncIterator[bytes], context: Any) -> bytes:
    del context
    seen = hashlib.sha256()
    async for request in requests:
        seen.update(request)
    return seen.digest()


async def _serve(ready_file: Path) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Discard": grpc.stream_unary_rpc_method_handler(_discard),
        "Digest": grpc.stream_unary_rpc_method_handler(_digest),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    address = open_port(server, Settings(), 0, "metrics_port")
    await server.start()
    partial = ready_file.with_suffix(".partial")
    partial.write_text(json.dumps({"address": address}))
    partial.rename(ready_file)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-file", type=Path, required=True)
    asyncio.run(_serve(parser.parse_args().ready_file))

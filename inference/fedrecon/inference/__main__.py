"""`python -m fedrecon.inference`: runs inference as a service."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from fedrecon.inference.calls import Calls
from fedrecon.inference.catalogue import Catalogue
from fedrecon.inference.http_face import HttpFace
from fedrecon.inference.measures import Measures
from fedrecon.inference.model_threads import ModelThreads
from fedrecon.inference.pages import Playground
from fedrecon.inference.service import InferenceService
from fedrecon.inference.settings import InferenceSettings
from fedrecon.ops.blob_service import BlobService
from fedrecon.ops.lifecycle import Service, run_service
from fedrecon.ops.storage import open_blob_store
from fedrecon.ops.tls import open_service_channel
from fedrecon.v1.admin_pb2_grpc import AdminStub
from fedrecon.v1.blobs_pb2_grpc import add_BlobsServicer_to_server
from fedrecon.v1.inference_pb2_grpc import add_InferenceServicer_to_server

_QUEUED_PER_THREAD = 200
"""Calls that may wait for each thread: what it does in a fraction of a second."""

_REFRESHED = 4
"""How often what is served is refreshed within the grace time of blobs."""


async def start(service: Service[InferenceSettings]) -> None:
    """Opens the blobs, follows the coordinator's tasks, and answers."""
    settings = service.settings
    watch = service.watch_storage()
    blobs = await open_blob_store(settings, watch)
    # Exports have a thread of their own: users never wait for one.
    exporting = ThreadPoolExecutor(1, thread_name_prefix="export")
    threads = ThreadPoolExecutor(settings.inference_threads, thread_name_prefix="recommend")
    for each in (exporting, threads):
        service.resources.callback(each.shutdown, wait=False, cancel_futures=True)
    measures = Measures(service.metrics)
    models = ModelThreads(threads, settings.inference_threads * _QUEUED_PER_THREAD, measures)
    calls = Calls(models, settings.inference_threads)
    channel = open_service_channel(settings.coordinator_target, settings)
    service.resources.push_async_callback(channel.close)
    catalogue = Catalogue(AdminStub(channel), blobs, exporting, measures)
    service.add(add_InferenceServicer_to_server, InferenceService(catalogue, calls))
    service.add(add_BlobsServicer_to_server, BlobService(blobs, service.metrics))
    if settings.inference_http_port >= 0:
        face = HttpFace(catalogue, blobs, calls)
        service.add_http([*face.routes(), *Playground().routes()], settings.inference_http_port, "inference_http_port")
    service.run("watch storage", watch.keep_watch(None, blobs, settings.tls_certificate))
    service.run("follow tasks", catalogue.follow())
    service.run("keep what is served", catalogue.keep_served(settings.blobs_grace_hours * 3600 / _REFRESHED))


if __name__ == "__main__":
    sys.exit(run_service("inference", start, InferenceSettings, "inference_port"))

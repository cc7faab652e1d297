"""ONNX graphs ready to run: one session of ONNX Runtime for each graph, shared by the whole process.

Sessions are immutable and safe to use from many threads, so a thousand devices of a test fleet use one. One thread
each: graphs of a plan are small, and a phone has other things to do. The runtime is loaded with the first graph.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.errors import StoppedError, UnusablePlanError
from fedrecon.device_sdk.stopping import running
from fedrecon.wire.digests import digest_of

Value = TypeVar("Value")

KEPT_SESSIONS = 64
_numpy_types: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}


class Memo(Generic[Value]):
    """Values that are made once for each digest; the ones used longest ago go first.

    Args:
        kept: how many are kept.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._values: OrderedDict[bytes, Value] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, digest: bytes, make: Callable[[], Value]) -> Value:
        """Returns the value of a digest, made now if it is not there; only one thread makes at a time."""
        with self._lock:
            if digest not in self._values:
                self._values[digest] = make()
                if len(self._values) > self._kept:
                    self._values.popitem(last=False)
            self._values.move_to_end(digest)
            return self._values[digest]


class RunnableGraph:
    """An ONNX graph that can be run.

    Args:
        content: the ONNX file.
        name: how to call it in errors.

    Attributes:
        metadata: the file's custom metadata.
        input_types: numpy type of every input.
        input_shapes: extents of every input, 0 where they are open.
        output_names: in the graph's order.

    Raises:
        UnusablePlanError: ONNX Runtime cannot load it.
    """

    def __init__(self, content: bytes, name: str) -> None:
        # Loaded here: 60 ms and 30 MB that an app without a model need not pay.
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.name = name
        self._run_options = onnxruntime.RunOptions
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UnusablePlanError(f"graph {name} cannot be loaded: {error}") from error
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.input_types = {value.name: _numpy_types[value.type] for value in self._session.get_inputs()}
        # Extents that a graph leaves open are 0 here.
        self.input_shapes = {
            value.name: tuple(extent if isinstance(extent, int) else 0 for extent in value.shape)
            for value in self._session.get_inputs()
        }
        self.output_names = [value.name for value in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Returns the graph's outputs by name.

        Args:
            feeds: a value for every input; types are converted where they differ.

        Raises:
            UnusablePlanError: an input is missing or its shape does not fit.
            StoppedError: what runs it was stopped, maybe inside the graph.
        """
        missing = self.input_types.keys() - feeds.keys()
        if missing:
            raise UnusablePlanError(f"graph {self.name} has inputs {sorted(missing)} that its plan does not name")
        ready = {name: np.asarray(feeds[name], dtype, order="C") for name, dtype in self.input_types.items()}
        stop, options = running.get(), self._run_options()

        def terminate() -> None:
            options.terminate = True

        try:
            with stop.heard_by(terminate) if stop is not None else contextlib.nullcontext():
                outputs = self._session.run(None, ready, options)
        except StoppedError:
            raise
        except Exception as error:
            if stop is not None:
                stop.check()
            shapes = {name: value.shape for name, value in ready.items()}
            raise UnusablePlanError(f"graph {self.name} failed on inputs of shapes {shapes}: {error}") from error
        return dict(zip(self.output_names, outputs, strict=True))


_graphs: Memo[RunnableGraph] = Memo(KEPT_SESSIONS)


def runnable_graph(content: bytes, name: str, digest: bytes | None = None) -> RunnableGraph:
    """Returns a graph ready to run, the same object for the same file.

    Args:
        content: the ONNX file.
        name: how to call it in errors.
        digest: the file's digest, where it is known.
    """
    return _graphs.get(digest or digest_of(content), lambda: RunnableGraph(content, name))

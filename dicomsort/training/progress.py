"""TensorFlow and Keras, loaded and used without their remarks; ``Reporter`` and ``Step`` show the progress."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from dicomsort.progress import Reporter, Step

__all__ = ["Reporter", "Step", "load_tensorflow", "stderr_captured"]


def load_tensorflow() -> None:
    """Import TensorFlow and Keras without their remarks on accelerators, drivers and retracing; errors still show.

    A person's own settings of Keras, in the environment or in keras.json, do not count: it has its defaults.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in [name for name in os.environ if name.startswith("KERAS_")]:  # also limits of epochs and batches
        del os.environ[name]
    os.environ.update(KERAS_BACKEND="tensorflow", KERAS_HOME=os.devnull)  # no keras.json there
    with stderr_captured():
        import keras  # noqa: F401 - takes long, and is what callers import next
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")
        tf.config.list_logical_devices()  # the drivers are looked for here, once


@contextmanager
def stderr_captured() -> Iterator[None]:
    """Capture what native code writes to stderr; it is written only if the block fails.

    TensorFlow's C++ logs about missing accelerators and the converter's remarks cannot be turned off otherwise.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured:
        saved = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except Exception:
            captured.seek(0)
            os.write(saved, captured.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)

"""Many tasks on one machine or several: chunks, meshes, split parameters."""

from metajax.parallel._chunks import TasksPerChunk
from metajax.parallel._cpu import use_every_core
from metajax.parallel._devices import put, task_mesh, to_host
from metajax.parallel._processes import from_first
from metajax.parallel._sharding import shard_params

__all__ = [
    "TasksPerChunk",
    "from_first",
    "put",
    "shard_params",
    "task_mesh",
    "to_host",
    "use_every_core",
]

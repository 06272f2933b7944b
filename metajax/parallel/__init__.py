"""Many tasks on one machine or several: chunks, meshes, sharding."""

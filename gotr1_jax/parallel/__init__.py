"""Devices and processes: `startup` (joins hosts), `mesh` and `sharding` (who holds which part of an
array), `placement` (arrays onto the mesh), `processes` (agreement between hosts)."""

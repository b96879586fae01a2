"""Devices and processes: `startup` (joins hosts), `mesh` and `sharding` (partition of arrays),
`placement` (arrays onto the mesh), `processes` (communication between hosts)."""

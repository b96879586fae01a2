"""Files, JSON, hub snapshots, tables and progress lines; every unit may use it."""

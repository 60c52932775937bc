"""The only place that imports pysyncobj: journal, snapshots, engine, replica, and the trio tasks that drive them."""

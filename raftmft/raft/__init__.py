"""The only place that imports pysyncobj: journal, engine, replica, transport and the trio task that drives them."""

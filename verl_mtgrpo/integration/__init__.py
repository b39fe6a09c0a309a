"""The glue between verl and the pure parts; with ``cpu/``, the only code that imports verl."""

"""Thousands of scenes: read, planned, made by workers here or on a cluster, recorded, and compared when a run is resumed."""

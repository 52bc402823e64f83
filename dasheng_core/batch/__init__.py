"""Thousands of scenes: read, planned, made by workers here or on a cluster, written down, and compared when a run goes on."""

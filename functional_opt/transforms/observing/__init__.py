"""Measurements that do not change the updates: metrics, monitors, the noise scale."""
